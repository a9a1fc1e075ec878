"""make bench-al in small: a world is embedded by a real inference process, and a curve runs on what it stored."""

import pytest

from services.trainer.comparison.cells import Cell
from services.trainer.datasets import ensure_dataset
from services.trainer.settings import Settings
from tests.bench.al import runs, worlds

pytestmark = pytest.mark.slow

CAMPAIGN = """\
name: small
source: {kind: digits, size: 8, pool: {split: train, limit: 320}, test: {split: test, limit: 50}}
backbone: {name: base_cnn, weights: none}
initial: {labels: 10}
rounds: {count: 1, batch: 10}
"""


@pytest.fixture
def world(tmp_path, monkeypatch) -> worlds.World:
    for folder in ("registry", "sources", "embeddings", "reports", "cache"):
        monkeypatch.setenv(f"TRAINER_{folder.upper()}_DIR", str(tmp_path / folder))
    monkeypatch.setenv("QUERENT_DATA_DIR", str(tmp_path / "data"))
    ensure_dataset("digits", None, tmp_path / "data", lambda line: None)
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    small = worlds.World("small", tmp_path / "campaign.yaml")
    monkeypatch.setitem(worlds.WORLDS, "small", small)
    worlds.embed_world(small, Settings())
    return small


def test_a_curve_of_ours_and_one_of_a_peer_from_embeddings_to_the_budget(world):
    pytest.importorskip("skactiveml", reason="the peers of bench-al are not installed")
    part = worlds.Part(world.name, ("margin", "modAL margin"), (0,), budget=300)
    ours, peers = (runs.one_curve(part, cell) for cell in part.cells())
    assert ours.cell == Cell(0, "small", "logistic", "margin")
    assert [p.labels for p in ours.points] == [100, 200, 300]
    assert all(0 < p.accuracy < 1 for p in ours.points)
    # The same 100 random labels for every strategy of a seed.
    assert ours.points[0].accuracy == peers.points[0].accuracy
