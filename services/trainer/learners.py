"""The learner that a campaign asks for, and the one that needs no training of the network.

torch is imported only where a network is built, so that rounds on a cached backbone start at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from services.trainer.config import CampaignConfig, LearnerConfig
from services.trainer.finetune import FinetuneLearner
from services.trainer.graph_cache import GraphCache
from services.trainer.heads import (
    HEADS,
    HeadTask,
    UnlabelledPool,
    fit_blocks,
    random_classes,
    require_learnable,
    zero_head,
)
from services.trainer.in_parts import in_parts
from services.trainer.learning import FittedModel, LabelledSamples, Learner, Watch
from services.trainer.pretrained import PretrainedBackbone

# Sample ids -> float32 (N, D) from the embedding store.
Embeddings = Callable[[Sequence[str]], np.ndarray]
# Sample ids -> uint8 RGB [N, H, W, 3].
Images = Callable[[Sequence[str]], np.ndarray]

_ROWS_AT_ONCE = 4096


def make_learner(
    config: CampaignConfig,
    source_height: int,
    source_width: int,
    weights_dir: Path | None,
    cache_dir: Path,
    embeddings: Embeddings,
    images: Images,
    threads: int,
    pool_ids: Sequence[str] = (),
    publishes: bool = True,
) -> Learner:
    """What a campaign's configuration asks for. Nothing is built or read before it is used.

    `pool_ids`: every sample of the pool, for heads that learn from unlabelled ones. `publishes`: False saves the export
    of trained networks.
    """
    cache = GraphCache(cache_dir)
    chosen = config.backbone
    if config.learner.mode == "finetune" and chosen.taps == "default":
        # The defaults are of frozen networks; one that is trained makes its last stage what it needs.
        chosen = chosen.model_copy(update={"taps": "last"})
    backbone = PretrainedBackbone(chosen, source_height, source_width, weights_dir, cache, config.seed, threads)
    if config.learner.mode == "head":
        return HeadLearner(backbone, config.learner, embeddings, threads, pool_ids)
    return FinetuneLearner(backbone, config.learner, images, cache_dir, threads, publishes)


class HeadLearner:
    """A frozen backbone; a head is fitted on stored embeddings."""

    def __init__(
        self,
        backbone: PretrainedBackbone,
        config: LearnerConfig,
        embeddings: Embeddings,
        threads: int,
        pool_ids: Sequence[str] = (),
    ) -> None:
        self._backbone = backbone
        self._pool_ids = pool_ids
        self._config = config
        self._embeddings = embeddings
        self._threads = threads

    def initial_model(self, class_count: int, watch: Watch) -> FittedModel:
        size = self._backbone.card(watch).embedding_size
        return self._backbone.model(zero_head(class_count, size), {}, {}, watch)

    def fit(self, labelled: LabelledSamples, class_count: int, seed: int, watch: Watch) -> FittedModel:
        require_learnable(labelled, class_count)
        rows = self._embeddings(labelled.ids)
        task = HeadTask(
            rows,
            labelled,
            class_count,
            seed,
            watch,
            self._config.c_grid,
            self._config.folds,
            self._config.members,
            self._unlabelled(labelled),
        )
        # Sums in another order round differently: the same number of threads gives the same model.
        with threadpool_limits(limits=self._threads):
            fit = fit_blocks(HEADS[self._config.head], task, self._backbone.card(watch).blocks)
        model = self._backbone.model(fit.head, fit.out_of_fold, fit.notes, watch)
        return replace(model, out_of_fold_classes=random_classes(labelled, fit.out_of_fold_logits))

    def _unlabelled(self, labelled: LabelledSamples) -> UnlabelledPool:
        known = set(labelled.ids)
        return UnlabelledPool(tuple(i for i in self._pool_ids if i not in known), self._embeddings)

    def probabilities(self, model: FittedModel, ids: Sequence[str], watch: Watch) -> np.ndarray:
        if not len(ids):
            return np.empty((0, model.head.weights.shape[1]), np.float32)

        def part(some: Sequence[str]) -> np.ndarray:
            return model.head.probabilities(self._embeddings(some))

        return in_parts(part, ids, _ROWS_AT_ONCE, "evaluate", watch)
