"""A file of a campaign that fine-tunes, and what becomes of it."""

from pathlib import Path

import onnxruntime as ort
import pytest
import yaml

from services.common.acquisition import ACQUISITIONS
from services.common.registry import Registry
from services.trainer import variants
from services.trainer.calibration import softmax
from services.trainer.campaign_store import CampaignStore
from services.trainer.config import DEFAULT_TAPS, CampaignConfig, load_config, parse_config
from services.trainer.database import open_database
from services.trainer.export import OnnxExporter
from services.trainer.leases import LeaseStore
from services.trainer.oracle import SimulatedOracle
from services.trainer.rounds import STEPS, RoundRunner, Tools
from tests.fakes import RecordingWatch
from tests.integration.learning.conftest import campaign
from tests.integration.learning.test_finetuning import CLASSES, POOL, Colours
from tests.integration.learning.test_learners import learner_for

EXAMPLES = Path(__file__).parents[3] / "examples"
SIDE, COMPARED = 32, 64
SHORTER = {"epochs": 2, "head_epochs": 1, "batch_size": 16, "device": "cpu", "precision": "fp32"}


def cut(path: Path) -> CampaignConfig:
    """The example from random weights on small images for a few steps, with every other setting as it stands there."""
    raw = yaml.safe_load(path.read_text())
    raw["backbone"] |= {"weights": "none", "input_size": SIDE}
    raw["learner"]["finetune"] |= SHORTER
    return parse_config({**raw, "initial": {"labels": 36}, "rounds": {"count": 1, "batch": 12}}, path.name)


class PublishedModels:
    """Scores and embeds the pool with the graph that was published, as inference does."""

    def __init__(self, registry: Registry, colours: Colours) -> None:
        self._registry, self._colours = registry, colours

    def score(self, at, ids, acquisition, watch):
        return ACQUISITIONS[acquisition](softmax(self._run("logits", at, ids)))

    def embeddings(self, at, ids, watch):
        return self._run("embedding", at, ids)

    def _run(self, output, at, ids):
        session = ort.InferenceSession(self._registry.version_dir(at.campaign, at.version) / "model.onnx")
        return session.run([output], {"image": self._colours.images(ids)})[0]


@pytest.mark.slow
def test_resnet50s_example_runs_from_the_backbone_to_a_promoted_version(tmp_path, monkeypatch):
    """Two rounds with everything real but the processes: trainings, graphs, their variants, registry, promotion."""
    monkeypatch.setattr(variants, "COMPARED", COMPARED)
    config, colours = cut(EXAMPLES / "resnet50-finetune.yaml"), Colours(SIDE)
    pool, tests = POOL[:200], POOL[200:260]
    registry, engine = Registry(tmp_path / "registry"), open_database(f"sqlite:///{tmp_path}/trainer.db")
    store, leases = CampaignStore(engine), LeaseStore(engine)
    started = store.create(config, "colours", ["red", "green", "blue"])
    compared = variants.Variants(config.export.variants, pool, colours.images)
    tools = Tools(
        pool_ids=pool,
        test_ids=tests,
        test_truth=colours.truth(tests),
        oracle=SimulatedOracle(dict(zip(pool, colours.truth(pool).tolist(), strict=True))),
        scorer=PublishedModels(registry, colours),
        learner=learner_for(config, colours, tmp_path / "cache"),
        exporter=OnnxExporter(lambda: colours.images(pool), colours.images, variants=compared),
    )
    steps: list[tuple[int, str]] = []
    lease = leases.take_lease(started.name, "me", 600)
    runner = RoundRunner(
        store, registry, started, tools, lease, RecordingWatch(), lambda step, round_no: steps.append((round_no, step))
    )
    for round_no in range(config.last_round + 1):
        if round_no:
            store.begin_round(lease, round_no, config.strategy_of(round_no))
            runner.select_batch(round_no)
        assert runner.train_round(round_no)
    engine.dispose()

    assert [step for round_no, step in steps if round_no == 2 and step in STEPS] == list(STEPS)
    assert registry.versions(started.name) == [1, 2, 3]
    assert registry.current(started.name) in (2, 3)
    backbone, first, second = (registry.manifest(started.name, version) for version in (1, 2, 3))
    assert (backbone.head, first.head, first.labels_used, second.labels_used) == ("zero", "linear", 36, 48)
    assert len({it.embedding_id for it in (backbone, first, second)}) == 3  # each round has its own network
    for manifest in (first, second):
        assert manifest.parity.top1_disagreements == 0
        assert set(manifest.metrics) == {"test", "random_slice"}
        assert set(manifest.variants) == set(config.export.variants)
        for kind, check in manifest.variants.items():
            assert (check.images, check.agreement is None) == (COMPARED, False)
            assert (f"model.{kind}.onnx" in manifest.files) == (not check.refused)
    notes = store.rounds(started.name)[2].report["notes"]
    assert notes["trainings"] == 3
    assert 1 <= notes["best_epoch"] <= 3


@pytest.mark.parametrize(
    ("mode", "taps", "stages", "size"),
    [("head", {}, "3,4", 384), ("finetune", {}, "last", 256), ("finetune", {"taps": 2}, "3,4", 384)],
)
def test_a_file_that_names_no_taps_has_the_last_stage_once_the_network_learns(
    tmp_path, watch, monkeypatch, mode, taps, stages, size
):
    monkeypatch.setitem(DEFAULT_TAPS, "base_cnn", 2)  # as vgg16 has it, and a tenth of the work
    raw = campaign({"name": "base_cnn", "weights": "none"}).model_dump(mode="json", exclude_defaults=True)
    raw |= {"learner": {"mode": mode}, "backbone": {**raw["backbone"], **taps}}
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(raw))
    learner = learner_for(load_config(tmp_path / "campaign.yaml"), Colours(SIDE), tmp_path / "cache")
    model = learner.initial_model(CLASSES, watch)
    assert (model.backbone.taps, model.embedding_size) == (stages, size)
