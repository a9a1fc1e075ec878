"""From saved rounds to the report's values, over a real database, a real registry and a real source."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sqlalchemy import text

from services.common.manifest import VariantCheck
from services.common.registry import Registry
from services.trainer.asked_images import asked_images
from services.trainer.campaign import Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.config import SourceConfig
from services.trainer.database import open_database
from services.trainer.oracle import Mistakes, SimulatedOracle
from services.trainer.purchases import pool_shares
from services.trainer.reporting import Folders, campaign_report, outlook_of, write_campaign_report
from services.trainer.rounds import RoundRunner, Tools
from services.trainer.sources import make_source
from tests.fakes import FakeExporter, FakeLearner, FakePool, FakeScorer, RecordingWatch
from tests.unit.trainer.conftest import make_config

CLASSES = ("cat", "dog")


@pytest.fixture
def images(tmp_path):
    """A source of 40 pool and 20 test images in two classes, 30 cats and 10 dogs in the pool."""
    rng = np.random.default_rng(0)
    for split, cats, dogs in (("pool", 30, 10), ("test", 10, 10)):
        for name, count in (("cat", cats), ("dog", dogs)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    config = SourceConfig.model_validate(
        {"kind": "folder", "location": ".", "size": 8, "pool": {"split": "pool"}, "test": {"split": "test"}}
    )
    source = make_source(config, tmp_path / "data", tmp_path / "sources", lambda *_: None)
    return SimpleNamespace(
        folders=Folders(tmp_path / "reports", tmp_path / "sources", tmp_path / "data"), source=source
    )


class RealIds(FakePool):
    """Embeddings of two clusters for the samples of a source."""

    def __init__(self, table):
        rng = np.random.default_rng(0)
        rows = list(zip(*(table[c].to_pylist() for c in ("id", "split", "label")), strict=True))
        self.pool_ids = tuple(i for i, split, _ in rows if split == "pool")
        self.test_ids = tuple(i for i, split, _ in rows if split == "test")
        self.truth = {i: label for i, _, label in rows}
        self._embedding = {i: rng.normal(size=4) + np.eye(4)[label] for i, _, label in rows}


class EqualScores(FakeScorer):
    def score(self, at, ids, acquisition, watch):
        return np.arange(len(ids), dtype=np.float32) / len(ids)


@pytest.fixture
def run(images, store, leases, registry):
    """Runs rounds 0 to `last` of a new campaign; gives the campaign."""
    table = pq.read_table(images.folders.sources / f"{images.source.source_id}.index.parquet")
    pool = RealIds(table)

    def finish(last, oracle=None, **changes):
        campaign = store.create(make_config(**changes), images.source.source_id, CLASSES)
        tools = Tools(
            pool_ids=pool.pool_ids,
            test_ids=pool.test_ids,
            test_truth=np.array([pool.truth[i] for i in pool.test_ids]),
            oracle=oracle or SimulatedOracle(pool.truth),
            scorer=EqualScores(pool),
            learner=FakeLearner(pool),
            exporter=FakeExporter(pool),
        )
        for round_no in range(last + 1):
            lease = leases.take_lease(campaign.name, "me", 30)
            runner = RoundRunner(store, registry, campaign, tools, lease, RecordingWatch())
            if round_no:
                store.begin_round(lease, round_no, campaign.config.strategy_of(round_no))
                runner.select_batch(round_no)
            if not runner.train_round(round_no):
                break
            leases.give_back(lease)
        return campaign

    finish.truth = pool.truth
    return finish


def test_the_report_says_what_was_said_of_each_sample_and_what_was_bought(run, images, store, registry):
    campaign = run(3)
    report = campaign_report(store, registry, images.folders.sources, campaign)
    assert [len(it.samples) for it in report.asked] == [10, 10, 10]
    for asked in report.asked:
        picks = {p.sample_id: p for p in store.picks(campaign.name, asked.round_no)}
        for it in asked.samples:
            assert it.answer == CLASSES[run.truth[it.sample_id]]
            if asked.round_no == 1:
                assert (it.predicted, it.confidence, it.score) == (None, None, None)
            else:
                assert it.predicted == CLASSES[picks[it.sample_id].predicted]
                assert it.score == picks[it.sample_id].score
    assert {n: sum(counts.values()) for n, counts in report.bought.items()} == {1: 10, 2: 10, 3: 10}
    assert sum(report.reliability.counts) == 20
    assert report.reliability.ece == pytest.approx(report.rows[-1].test("ece"))
    assert report.pool_shares == {"cat": 0.75, "dog": 0.25}


def test_a_noisy_oracle_is_told_by_what_it_answered_not_by_the_truth(run, images, store, registry):
    always_wrong = Mistakes(noise=0.99999, seed=0, instead=((1,), (0,)))
    campaign = run(1, oracle=SimulatedOracle(run.truth, always_wrong))
    report = campaign_report(store, registry, images.folders.sources, campaign)
    assert all(it.answer == CLASSES[1 - run.truth[it.sample_id]] for it in report.asked[0].samples)


def test_the_report_of_a_fresh_process_is_the_same(run, images, store, registry, tmp_path):
    campaign = run(2)
    first = campaign_report(store, registry, images.folders.sources, campaign)
    again = CampaignStore(open_database(f"sqlite:///{tmp_path}/trainer.db"))
    assert campaign_report(again, Registry(registry.root), images.folders.sources, campaign) == first


def test_a_campaign_that_waits_for_people_shows_what_it_asked_for(run, images, store, registry):
    class People:
        def request(self, ids): ...

        def answers(self, ids):
            return None

    campaign = run(1, oracle=People())
    report = campaign_report(store, registry, images.folders.sources, campaign)
    assert [it.answered for it in report.asked] == [0]
    # Nothing simulated has answered: what the source knows of its classes is not ours to tell.
    assert report.pool_shares == {}
    folder = write_campaign_report(store, registry, images.folders, campaign.name)
    page = (folder / "report.html").read_text()
    assert "10 images asked for; 10 wait for an answer" in page
    assert page.count('<img class="small"') == 10


def test_a_campaign_with_round_0_only_has_a_report(run, images, store, registry):
    campaign = run(0)
    folder = write_campaign_report(store, registry, images.folders, campaign.name)
    assert "Nothing measured yet" in (folder / "report.html").read_text()


def test_images_that_are_gone_are_left_out_and_the_others_shown(run, images, store, registry):
    campaign = run(1)
    asked = campaign_report(store, registry, images.folders.sources, campaign).asked
    folders, source_id = images.folders, images.source.source_id
    assert len(asked_images(asked, folders.sources, folders.data, source_id)) == 10
    cats = [it for it in asked[0].samples if it.answer == "cat"]
    for path in (folders.data / "pool" / "cat").iterdir():
        path.unlink()
    assert len(asked_images(asked, folders.sources, folders.data, source_id)) == 10 - len(cats)
    (folders.sources / f"{source_id}.index.parquet").unlink()
    assert asked_images(asked, folders.sources, folders.data, source_id) == {}
    assert pool_shares(folders.sources, source_id, store.labels(campaign.name), CLASSES) == {}
    assert write_campaign_report(store, registry, folders, campaign.name).is_dir()


def test_rounds_from_before_predictions_and_bins_were_kept_have_a_report(run, images, store, engine, registry):
    campaign = run(2)
    with engine.begin() as connection:
        connection.execute(text("UPDATE picks SET predicted = NULL, confidence = NULL"))
        connection.execute(text("UPDATE rounds SET report = json_remove(report, '$.reliability')"))
    report = campaign_report(store, registry, images.folders.sources, campaign)
    assert report.reliability is None
    assert {it.predicted for it in report.asked[1].samples} == {None}
    assert write_campaign_report(store, registry, images.folders, campaign.name).is_dir()


def measured_round(round_no, accuracy, rows=200):
    right = {f"s{i}": i < accuracy * rows for i in range(rows)}
    return Round("demo-1", round_no, "done", "margin", report={"labels": 100 * round_no, "out_of_fold": right})


def test_the_forecast_is_the_fitted_curve_with_its_interval_to_beyond_what_was_bought():
    config = make_config(initial={"labels": 100}, rounds={"count": 5, "batch": 100})
    accuracies = [0.50, 0.60, 0.65, 0.68, 0.70, 0.715]
    rounds = [measured_round(n, it) for n, it in enumerate(accuracies, start=1)]
    curve = outlook_of(config, rounds).curve
    assert list(curve.measured) == [(100 * n, it) for n, it in enumerate(accuracies, start=1)]
    assert (curve.labels[0], curve.labels[-1]) == (100, 900)
    assert all(low <= at <= high for low, at, high in zip(curve.low, curve.fit, curve.high, strict=True))
    assert np.interp([100, 600], curve.labels, curve.fit) == pytest.approx([0.50, 0.715], abs=0.02)
    assert list(curve.fit) == sorted(curve.fit)
    # A longer campaign is drawn to its budget.
    longer = make_config(initial={"labels": 100}, rounds={"count": 20, "batch": 100})
    assert outlook_of(longer, rounds).curve.labels[-1] == 2100


def test_no_forecast_is_drawn_of_too_few_rounds_or_of_noise():
    config = make_config()
    assert outlook_of(config, [measured_round(n, 0.5 + n / 10) for n in (1, 2, 3)]).curve is None
    assert outlook_of(config, [measured_round(n, 0.6 - n / 200) for n in range(1, 7)]).curve is None


def test_faster_variants_of_the_newest_version_are_told(run, images, store, registry):
    campaign = run(2)
    folder = registry.version_dir(campaign.name, 3)
    checks = {"fp16": VariantCheck(images=2000, agreement=0.999), "int8": VariantCheck(refused="too few images")}
    manifest = registry.manifest(campaign.name, 3).model_copy(update={"variants": checks})
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    report = campaign_report(store, registry, images.folders.sources, campaign)
    assert [(it.version, it.kind) for it in report.variants] == [(3, "fp16"), (3, "int8")]
    assert [it.check for it in report.variants] == list(checks.values())
    # A registry that is elsewhere costs the report this table and nothing more.
    assert list(campaign_report(store, Registry(images.folders.data), images.folders.sources, campaign).variants) == []


def test_the_pool_is_told_in_totals_alone(run, images, store, registry):
    campaign = run(1)
    report = campaign_report(store, registry, images.folders.sources, campaign)
    bought = {label.sample_id for label in store.labels(campaign.name)}
    assert {it.sample_id for asked in report.asked for it in asked.samples} == bought
    said = json.dumps(report.as_json())
    assert not [i for i in run.truth if i in said]
