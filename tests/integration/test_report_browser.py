"""The reports in a real browser: each loads without an error and without asking anybody, on a desk and on a phone."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.trainer.comparison.cells import CEILING, Cell, CellResult, Point
from services.trainer.comparison.write import write_comparison
from services.trainer.report.asked import gallery
from services.trainer.report.thumbnails import data_uri
from services.trainer.report.write import write_report
from tests.unit.comparison.conftest import make_comparison
from tests.unit.report.conftest import finished_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser, google-chrome or chrome on the PATH"),
]

# Appended to a copy of the page: it tells the page around it what it saw once everything has loaded.
PROBE = """<script>
addEventListener('load', () => {
  const images = [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.alt]);
  const asked = performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'));
  const seen = {images, asked, width: document.documentElement.scrollWidth, window: innerWidth};
  parent.postMessage('SEEN' + btoa(unescape(encodeURIComponent(JSON.stringify(seen)))) + 'END', '*');
});
</script>"""
# Around the page, since no window is as narrow as a phone; the title is what comes back.
FRAME = """<!doctype html><title>waiting</title>
<script>addEventListener('message', event => document.title = event.data);</script>
<iframe src="{name}" style="border: 0; width: {width}px; height: 900px"></iframe>"""


@dataclass(frozen=True)
class Seen:
    # Natural width and height, and the alternative text.
    images: list[Any]
    # Addresses that the page asked for.
    asked: list[str]
    console: list[str]
    # Pixels: what the page takes, and what the window has.
    width: int
    window: int


def look_at(page: str, folder: Path, width: int) -> Seen:
    """A copy of the page in a frame of that width."""
    copy = folder / f"seen-{width}.html"
    copy.write_text(page.replace("</body>", f"{PROBE}</body>"))
    frame = folder / f"frame-{width}.html"
    frame.write_text(FRAME.format(name=copy.name, width=width))
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--no-first-run", "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--window-size=1600,1000", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"SEEN(\S+)END", said.stdout)
    assert found, f"the page did not finish loading: {said.stderr[-2000:]}"
    seen = json.loads(base64.b64decode(found[1]))
    console = [line for line in said.stderr.splitlines() if "CONSOLE" in line]
    return Seen(seen["images"], seen["asked"], console, seen["width"], seen["window"])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    report = finished_report()
    rng = np.random.default_rng(0)
    shown = [it.sample_id for asked in gallery(report.asked) for it in asked.samples]
    sizes = [(32, 32, 3), (240, 320, 3)]
    images = {s: data_uri(rng.integers(0, 256, sizes[i % 2], dtype=np.uint8)) for i, s in enumerate(shown)}
    write_report(folder, report, images)
    return (folder / "report.html").read_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_loads_by_itself_and_fits_the_window(page: str, tmp_path: Path, width: int) -> None:
    seen = look_at(page, tmp_path, width)
    assert seen.console == []
    assert seen.asked == []
    assert len(seen.images) == 8 + 6 * 24
    assert [it for it in seen.images if not (it[0] and it[1])] == []
    assert seen.window == width
    assert seen.width <= seen.window  # tables may scroll inside their cards, the page may not


@pytest.mark.parametrize("width", [1280, 390])
def test_a_comparison_loads_by_itself_and_fits_the_window(tmp_path: Path, width: int) -> None:
    names = ("random", "margin", "uncertainty_herding")
    points = [[Point(n, 0.01 * n + 0.001 * s, 0.5, 0.1, 1.0, 0.2, 0.1, 3.0, 0.2) for n in (10, 20, 30)] for s in (0, 1)]
    runs = [CellResult(Cell(s, "small", "logistic", it), tuple(points[s])) for it in names for s in (0, 1)]
    runs.append(CellResult(Cell(0, "small", "logistic", CEILING), tuple(points[0][-1:])))
    write_comparison(tmp_path, make_comparison(strategies=names[1:]), runs)
    seen = look_at((tmp_path / "comparison.html").read_text(), tmp_path, width)
    assert (seen.console, seen.asked) == ([], [])
    assert len(seen.images) == 5
    assert [it for it in seen.images if not (it[0] and it[1])] == []
    assert seen.width <= seen.window == width


def test_the_check_sees_what_it_is_for(tmp_path: Path) -> None:
    bad = (
        '<body style="width: 2000px"><img alt="broken" src="data:image/png;base64,AAAA">'
        '<img alt="outside" src="http://example.invalid/a.png"><script>console.error("oh")</script></body>'
    )
    seen = look_at(bad, tmp_path, 800)
    assert [it[2] for it in seen.images if not it[0]] == ["broken", "outside"]
    assert seen.asked == ["http://example.invalid/a.png"]
    assert any("oh" in line for line in seen.console)
    assert seen.width > seen.window
