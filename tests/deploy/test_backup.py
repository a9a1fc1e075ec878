"""docs/deployment.md on backups, done: copy the state, restore it into an empty stack, and the campaign goes on."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from services.client.client import QuerentClient
from tests.deploy.manifests import ROOT
from tests.e2e.stack import Stack, wait_for
from tests.tiny_models import png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What the document says is to be kept; all else is made again.
KEPT = ("registry", "sources", "data")


def back_up(folder: Path, to: Path) -> None:
    """The database first, so that it never speaks of a version that the copy of the registry lacks."""
    to.mkdir()
    with sqlite3.connect(folder / "trainer.db") as source, sqlite3.connect(to / "trainer.db") as target:
        source.backup(target)
    for name in KEPT:
        shutil.copytree(folder / name, to / name)


def test_a_restored_stack_goes_on_with_the_campaign_and_serves_its_models(tmp_path: Path) -> None:
    first = Stack(tmp_path / "first")
    campaign = first.start_digits(rounds={"count": 4, "batch": 30})
    try:
        first.start_redis()
        first.start_inference()
        first.start_worker()
        # While everything runs: a backup needs no downtime.
        wait_for(lambda: first.store.finished_rounds(campaign.name)[-1:] >= [1], "the first trained round", 240)
        back_up(tmp_path / "first", tmp_path / "backup")
        backed_up = len(first.store.labels(campaign.name))
        first_labels = {label.sample_id for label in first.store.labels(campaign.name)}
    finally:
        first.end_all()
    shutil.rmtree(tmp_path / "first")

    shutil.copytree(tmp_path / "backup", tmp_path / "second")
    second = Stack(tmp_path / "second")
    restored = second.store.campaign(campaign.name)
    assert restored.state == "running"
    already = {label.sample_id for label in second.store.labels(campaign.name)}
    assert already
    assert already <= first_labels
    assert len(already) <= backed_up
    try:
        second.start_redis()
        second.start_inference()
        second.start_worker()
        ended = second.wait_until_at_rest(campaign.name, 400)
        assert ended.state == "finished", ended.reason
        labels = second.store.labels(campaign.name)
        assert len(labels) == campaign.config.budget
        assert already <= {label.sample_id for label in labels}
        with QuerentClient(f"127.0.0.1:{second.grpc_port}") as client:
            answer = client.predict([png()], model=campaign.name)
        assert answer.version == second.registry.current(campaign.name)
    finally:
        second.end_all()


def test_the_document_keeps_what_this_test_keeps() -> None:
    backup = (ROOT / "docs" / "deployment.md").read_text().split("## Backup and restore")[1].split("\n## ")[0]
    for name in KEPT:
        assert f"`{name}`" in backup
