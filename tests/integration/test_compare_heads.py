"""A comparison's cells give every head what a campaign gives it: also the unlabelled pool."""

from types import SimpleNamespace

import numpy as np
import pytest

from services.common.embeddings import EmbeddingStore
from services.trainer.comparison.running import StoredStudies
from services.trainer.learning import LabelledSamples, SilentWatch
from services.trainer.settings import Settings
from tests.tiny_models import Folders, TinyModel, embeddings
from tests.unit.comparison.conftest import make_comparison

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("head", ["label_propagation", "self_training"])
def test_a_head_that_learns_from_the_pool_is_given_the_pool(tmp_path, monkeypatch, head):
    folders = Folders(tmp_path)
    source = folders.source(splits={"pool": 100, "test": 20})
    ids = [*source.ids["pool"], *source.ids["test"]]
    store = EmbeddingStore(folders.embeddings_dir, "tiny-embedding", source.source_id)
    store.append(ids, embeddings(TinyModel(), source.images(ids)))
    for variable, folder in {
        "TRAINER_SOURCES_DIR": folders.sources_dir,
        "TRAINER_EMBEDDINGS_DIR": folders.embeddings_dir,
        "TRAINER_CACHE_DIR": tmp_path / "cache",
        "QUERENT_DATA_DIR": folders.data_dir,
    }.items():
        monkeypatch.setenv(variable, str(folder))
    config = make_comparison(heads={"taught": {"head": head, "folds": 3}})
    cell = config.cells()[0]
    comparison = SimpleNamespace(
        name="taught", config=config, source_id=source.source_id, embedding_ids={"small": "tiny-embedding"}
    )
    study, learner = StoredStudies(Settings(), 1)(comparison, cell, config.campaign(cell))

    def fitted(bought):
        classes = study.classes_of(bought)
        samples = LabelledSamples(bought, classes, np.ones(len(bought), bool))
        return learner.fit(samples, study.class_count, 0, SilentWatch())

    assert fitted(study.pool_ids[:30]).notes["pool_rows"] == 70
    assert fitted(study.pool_ids).notes["pool_rows"] == 0  # the ceiling has nothing left to learn from
