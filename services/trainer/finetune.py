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

from services.common.files import digest
from services.trainer.config import LearnerConfig
from services.trainer.fold_trainings import FoldTrainings
from services.trainer.graph_cache import GraphCache
from services.trainer.heads import require_learnable, zero_head
from services.trainer.in_parts import in_parts
from services.trainer.learning import FittedModel, Head, LabelledSamples, Watch
from services.trainer.pretrained import PretrainedBackbone, device_of, embed, export, use_threads

if TYPE_CHECKING:
    from services.trainer.backbones import Backbone
    from services.trainer.classifier import EmbeddingNet
    from services.trainer.training.checkpoint import Checkpoints
    from services.trainer.training.loop import TrainedNetwork

_IMAGES_AT_ONCE = 64
_NOT_EXPORTED = Path("not-exported.onnx")
# Of what is free: decoded images beyond that lie in a mapped file.
_SHARE_OF_RAM = 0.25


class FinetuneLearner:
    """The network learns; every fit begins again from the pretrained weights.

    `state_dir`: for graphs of trained networks, and for checkpoints of trainings that may be cut short.
    `publishes`: False exports no graph.
    """

    def __init__(
        self,
        backbone: PretrainedBackbone,
        config: LearnerConfig,
        images: Callable[[Sequence[str]], np.ndarray],
        state_dir: Path,
        threads: int,
        publishes: bool = True,
    ) -> None:
        self._backbone = backbone
        self._config = config
        self._images = images
        self._state_dir = state_dir
        self._trained = GraphCache(state_dir / "trained")
        self._threads = threads
        self._publishes = publishes
        # Embedding id and network of the last fit, on the device where it was trained.
        self._newest: tuple[str, EmbeddingNet | None] = ("", None)

    def initial_model(self, class_count: int, watch: Watch) -> FittedModel:
        size = self._backbone.card(watch).embedding_size
        return self._backbone.model(zero_head(class_count, size), {}, {}, watch)

    def fit(self, labelled: LabelledSamples, class_count: int, seed: int, watch: Watch) -> FittedModel:
        require_learnable(labelled, class_count)
        use_threads(self._threads)
        from services.trainer.training.memory import free_memory_of_cpu
        from services.trainer.training.pixels import decoded

        pixels = self._state_dir / "pixels"
        images = decoded(self._images, labelled.ids, pixels, int(_SHARE_OF_RAM * free_memory_of_cpu()), watch)
        backbone = self._backbone.build(watch)
        checkpoints = self._checkpoints(backbone, labelled, class_count, seed)
        trainings = FoldTrainings(backbone, self._config, images, labelled, class_count, seed, checkpoints, watch)
        judged = trainings.out_of_fold()
        members = trainings.committee(np.ones(len(labelled), bool))
        trained = as_one(backbone, members)
        graph = self._graph(trained, watch)
        self._newest = trained.embedding_id, joined([it.net for it in members])
        if not self._publishes:
            checkpoints.remove()
        return FittedModel(
            head=linear_head(members, judged.temperature),
            backbone=trained.info,
            embedding_id=trained.embedding_id,
            embedding_size=trained.embedding_size,
            embedding_shared=False,
            embedding_graph=graph,
            out_of_fold=judged.right,
            notes={**trainings.notes(members), **judged.notes},
            reference=partial(embed, trained.net),
            out_of_fold_classes=judged.classes,
            on_published=checkpoints.remove,
        )

    def probabilities(self, model: FittedModel, ids: Sequence[str], watch: Watch) -> np.ndarray:
        if not len(ids):
            return np.empty((0, model.head.weights.shape[1]), np.float32)

        newest, net = self._newest
        reference = partial(embed, net) if net is not None and newest == model.embedding_id else model.reference
        assert reference is not None  # every model of this learner has its network

        def part(some: Sequence[str]) -> np.ndarray:
            return model.head.probabilities(reference(self._images(some)))

        return in_parts(part, ids, _IMAGES_AT_ONCE, "evaluate", watch)

    def _checkpoints(
        self, backbone: "Backbone", labelled: LabelledSamples, class_count: int, seed: int
    ) -> "Checkpoints":
        from services.trainer.training.checkpoint import Checkpoints

        key = digest(
            {
                "labels": [labelled.ids, labelled.classes.tolist(), labelled.drawn_at_random.tolist()],
                "classes": class_count,
                "learner": self._config.model_dump(mode="json"),
                "network": backbone.embedding_id,
                "seed": seed,
                "threads": self._threads,
            }
        )
        checkpoints = Checkpoints(self._state_dir / "checkpoints", key)
        checkpoints.drop_older_than_a_day()
        return checkpoints

    def _graph(self, trained: "Backbone", watch: Watch) -> Path:
        if not self._publishes:
            return _NOT_EXPORTED
        # First: the same labels give the same network, and its graph may lie here from another day.
        self._trained.drop_older_than_a_day()
        card = self._trained.card(trained.embedding_id) or export(self._trained, trained, trained.info, watch)
        return self._trained.path(card.embedding_id)


def as_one(backbone: "Backbone", members: Sequence["TrainedNetwork"]) -> "Backbone":
    """The trained members in the place of the pretrained network, on the CPU."""
    from services.trainer.weights import fingerprint

    # Export and parity are of the CPU's numbers; a copy that is on a GPU answers for the test samples.
    net = joined([it.net if device_of(it.net) == "cpu" else copy.deepcopy(it.net).to("cpu") for it in members])
    info = backbone.info.model_copy(update={"weights_sha256": fingerprint(net.backbone)})
    return replace(backbone, net=net, info=info, embedding_size=len(members) * backbone.embedding_size)


def joined(nets: Sequence["EmbeddingNet"]) -> "EmbeddingNet":
    """One network for all members."""
    from services.trainer.classifier import SideBySide

    return nets[0] if len(nets) == 1 else SideBySide(nets).eval()


def linear_head(members: Sequence["TrainedNetwork"], temperature: float) -> Head:
    """K linear maps on the members' embeddings side by side, each zero outside its own member's block."""
    classes, size = members[0].weights.shape
    weights = np.zeros((len(members), classes, len(members) * size), np.float32)
    for member, network in enumerate(members):
        weights[member, :, member * size : (member + 1) * size] = network.weights
    return Head(
        kind="linear",
        mean=np.zeros(weights.shape[2], np.float32),
        scale=np.ones(weights.shape[2], np.float32),
        weights=weights,
        biases=np.stack([network.biases for network in members]),
        temperature=temperature,
    )
