"""The in-process scorer of `al-trainer compare` ranks a pool as the service does."""

from pathlib import Path

import numpy as np
import pytest

from services.common.acquisition import ACQUISITIONS
from services.common.embeddings import EmbeddingStore
from services.trainer.comparison.scoring import Embedded
from services.trainer.learning import FittedModel, Head
from tests.fakes import BACKBONE
from tests.integration.inference.harness import serving
from tests.tiny_models import Folders, TinyModel, publish

# Two ways to add up a product of matrices in float32.
ROUNDING = 1e-5


def fitted(model: TinyModel) -> FittedModel:
    size = model.embedding_size
    biases = np.zeros((model.members, len(model.classes)), np.float32)
    head = Head("logistic", np.zeros(size, np.float32), np.ones(size, np.float32), model.weights, biases)
    return FittedModel(head, BACKBONE, model.embedding_id, size, True, Path("none"))


@pytest.mark.parametrize("members", [1, 5])
async def test_compare_and_inference_rank_alike(folders: Folders, members: int) -> None:
    model = TinyModel(members=members)
    publish(folders.registry, model, promote=True)
    source = folders.source(splits={"pool": 1500, "test": 1})  # more than one block of rows
    ids = source.ids["pool"]
    async with serving(folders) as served:
        theirs = {name: await served.client.score_pool(source.source_id, name) for name in ACQUISITIONS}
    store = EmbeddingStore(folders.embeddings_dir, model.embedding_id, source.source_id)
    embedded = Embedded.stored(store, ids)
    for name, scored in theirs.items():
        ours = embedded.scores(fitted(model), ids, name)
        assert list(scored.sample_ids) == list(ids)
        np.testing.assert_allclose(ours, scored.scores, atol=ROUNDING, err_msg=name)
        # In their order ours never rise by more than rounding: the ranks are the same but for ties within it.
        in_their_order = ours[np.argsort(-scored.scores, kind="stable")]
        assert (np.diff(in_their_order) <= 2 * ROUNDING).all(), name
