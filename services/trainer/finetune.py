"""Learning with the network itself: every fit begins again from the pretrained weights.

torch is imported only where a network is built.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from services.trainer.config import LearnerConfig
from services.trainer.graph_cache import GraphCache
from services.trainer.heads import (
    ABSENT_BIAS,
    calibrated_temperature,
    known_in_other_folds,
    random_classes,
    random_rows,
    require_learnable,
    stratified_folds,
    zero_head,
)
from services.trainer.in_parts import in_parts
from services.trainer.learning import FittedModel, Head, LabelledSamples, Watch
from services.trainer.pretrained import PretrainedBackbone, device_of, embed, export, use_threads

if TYPE_CHECKING:
    from services.trainer.backbones import Backbone
    from services.trainer.classifier import EmbeddingNet
    from services.trainer.training import TrainedNetwork

# Each fold is a whole training: as many as a temperature needs, not as many as a head can afford.
_MOST_TRAININGS = 3
_IMAGES_AT_ONCE = 64
_NOT_EXPORTED = Path("not-exported.onnx")


class FinetuneLearner:
    """The network learns; every fit begins again from the pretrained weights."""

    def __init__(
        self,
        backbone: PretrainedBackbone,
        config: LearnerConfig,
        images: Callable[[Sequence[str]], np.ndarray],
        trained: GraphCache | None,
        threads: int,
    ) -> None:
        """`trained`: where graphs of fitted networks go; None exports none, for models that are never published."""
        self._backbone = backbone
        self._config = config
        self._images = images
        self._trained = trained
        self._threads = threads
        # Embedding id and network of the last fit, on the device where it was trained.
        self._newest: tuple[str, EmbeddingNet | None] = ("", None)

    def initial_model(self, class_count: int, watch: Watch) -> FittedModel:
        size = self._backbone.card(watch).embedding_size
        return self._backbone.model(zero_head(class_count, size), {}, {}, watch)

    def fit(self, labelled: LabelledSamples, class_count: int, seed: int, watch: Watch) -> FittedModel:
        require_learnable(labelled, class_count)
        images = in_parts(self._images, labelled.ids, _IMAGES_AT_ONCE, "read", watch)
        use_threads(self._threads)
        fits = _Fits(self._backbone, self._config, images, labelled, class_count, seed, watch)
        temperature, out_of_fold, classes = fits.out_of_fold()
        network = fits.train(np.ones(len(labelled), bool))
        head = _linear_head(network, temperature)
        notes = {"epochs": float(self._config.epochs), "trainings": float(fits.planned)}
        if out_of_fold:
            notes["out_of_fold_accuracy"] = float(np.mean(list(out_of_fold.values())))
        model = self._fitted(network, head, out_of_fold, notes, watch)
        return replace(model, out_of_fold_classes=classes)

    def probabilities(self, model: FittedModel, ids: Sequence[str], watch: Watch) -> np.ndarray:
        if not len(ids):
            return np.empty((0, model.head.weights.shape[1]), np.float32)

        newest, net = self._newest
        reference = partial(embed, net) if net is not None and newest == model.embedding_id else model.reference
        assert reference is not None  # every model of this learner has its network

        def part(some: Sequence[str]) -> np.ndarray:
            return model.head.probabilities(reference(self._images(some)))

        return in_parts(part, ids, _IMAGES_AT_ONCE, "evaluate", watch)

    def _fitted(
        self,
        network: "TrainedNetwork",
        head: Head,
        out_of_fold: dict[str, bool],
        notes: dict[str, float],
        watch: Watch,
    ) -> FittedModel:
        from services.trainer.weights import fingerprint

        # Export and parity are of the CPU's numbers; a copy that is on a GPU answers for the test samples.
        net = network.net if device_of(network.net) == "cpu" else copy.deepcopy(network.net).to("cpu")
        pretrained = self._backbone.build(watch)
        info = pretrained.info.model_copy(update={"weights_sha256": fingerprint(net.backbone)})
        trained = replace(pretrained, net=net, info=info)
        graph = self._graph(trained, watch)
        self._newest = trained.embedding_id, network.net
        return FittedModel(
            head=head,
            backbone=info,
            embedding_id=trained.embedding_id,
            embedding_size=trained.embedding_size,
            embedding_shared=False,
            embedding_graph=graph,
            out_of_fold=out_of_fold,
            notes=notes,
            reference=lambda images: embed(net, images),
        )

    def _graph(self, trained: "Backbone", watch: Watch) -> Path:
        if self._trained is None:
            return _NOT_EXPORTED
        # First: the same labels give the same network, and its graph may lie here from another day.
        self._trained.drop_older_than_a_day()
        card = self._trained.card(trained.embedding_id) or export(self._trained, trained, trained.info, watch)
        return self._trained.path(card.embedding_id)


class _Fits:
    """The trainings of one round: one for each fold with a row that must be predicted, then one on everything."""

    def __init__(
        self,
        backbone: PretrainedBackbone,
        config: LearnerConfig,
        images: np.ndarray,
        labelled: LabelledSamples,
        class_count: int,
        seed: int,
        watch: Watch,
    ) -> None:
        self._backbone = backbone.build(watch)
        self._config = config
        self._images = images
        self._labelled = labelled
        self._class_count = class_count
        self._seed = seed
        self._watch = watch
        self._fold_of = stratified_folds(labelled.ids, labelled.classes, min(config.folds, _MOST_TRAININGS), seed)
        self._folds = [
            fold for fold in np.unique(self._fold_of) if (labelled.drawn_at_random & (self._fold_of == fold)).any()
        ]
        self.planned = len(self._folds) + 1
        self._begun = 0

    def out_of_fold(self) -> tuple[float, dict[str, bool], dict[str, int]]:
        """The temperature, and correctness and predicted class of the randomly drawn rows, each from a network that
        never saw it.
        """
        labelled, fold_of = self._labelled, self._fold_of
        logits = np.zeros((len(labelled), self._class_count))
        for fold in self._folds:
            here = (fold_of == fold) & labelled.drawn_at_random
            others = fold_of != fold
            head = _linear_head(network := self.train(others), 1.0)
            logits[here] = head.logits(embed(network.net, self._images[here]))[:, 0]
            absent = np.setdiff1d(np.arange(self._class_count), labelled.classes[others])
            logits[np.ix_(here, absent)] = ABSENT_BIAS
        judged = known_in_other_folds(labelled.classes, fold_of)
        right = logits.argmax(axis=1) == labelled.classes
        temperature = calibrated_temperature(logits, judged, labelled)
        return temperature, random_rows(labelled, right), random_classes(labelled, logits)

    def train(self, rows: np.ndarray) -> "TrainedNetwork":
        """A network from the rows where bool (N,) is true."""
        from services.trainer.training import steps_of, train_network

        total = steps_of(int(rows.sum()), self._config)
        number, step = self._begun, 0
        self._begun += 1

        def look() -> None:
            nonlocal step
            self._watch.progress("train", number * total + step, self.planned * total)
            step += 1

        rng = np.random.default_rng([self._seed, number])
        return train_network(
            self._backbone,
            self._images[rows],
            self._labelled.classes[rows],
            self._class_count,
            self._config,
            rng,
            look,
        )


def _linear_head(network: "TrainedNetwork", temperature: float) -> Head:
    size = network.weights.shape[1]
    return Head(
        kind="linear",
        mean=np.zeros(size, np.float32),
        scale=np.ones(size, np.float32),
        weights=network.weights[None],
        biases=network.biases[None],
        temperature=temperature,
    )
