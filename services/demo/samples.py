"""Test images of a finished campaign, to look at and to ask about."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from services.common.errors import NotFound
from services.common.samples import SampleStore
from services.demo.state import State


@dataclass(frozen=True)
class TestImage:
    path: Path
    # None when nobody has said what it shows.
    true_class: str | None


def save_test_images(state: State, campaign: str, data_dir: Path, count: int) -> list[TestImage]:
    """Write `count` test images of the campaign as PNG files, of different classes as far as they go.

    Raises NotFound when the campaign's report does not name its source.
    """
    report = json.loads((state.reports / campaign / "report.json").read_text())
    if not report.get("source_id"):
        raise NotFound(f"the report of {campaign} does not name its source")
    store = SampleStore.open(state.sources, data_dir, report["source_id"])
    truth = _true_classes(state.sources / f"{report['source_id']}.index.parquet", store.source.classes)
    chosen = _of_different_classes(store.ids("test"), truth, count)
    shutil.rmtree(state.samples, ignore_errors=True)
    state.samples.mkdir(parents=True)
    saved = []
    for number, (sample, pixels) in enumerate(zip(chosen, store.images(chosen), strict=True), start=1):
        true_class = truth.get(sample)
        path = state.samples / f"{number:02d}-{_file_part(true_class or 'unknown')}.png"
        Image.fromarray(pixels).save(path)
        saved.append(TestImage(path, true_class))
    return saved


def _true_classes(index: Path, classes: tuple[str, ...]) -> dict[str, str]:
    table = pq.read_table(index, columns=["id", "label"])
    rows = zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True)
    return {sample: classes[label] for sample, label in rows if label >= 0}


def _of_different_classes(ids: list[str], truth: dict[str, str], count: int) -> list[str]:
    """The first sample of each class in turn, then the second of each, until there are enough."""
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, str]] = []
    for sample in ids:
        name = truth.get(sample, "")
        ranked.append((seen.get(name, 0), len(ranked), sample))
        seen[name] = seen.get(name, 0) + 1
    return [sample for _, _, sample in sorted(ranked)[:count]]


def _file_part(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:40]
