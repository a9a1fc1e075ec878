"""The port between the story of a round and what learns: plain values, no framework."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from services.common.manifest import BackboneInfo, Manifest


class Watch(Protocol):
    """Looked at by every long computation at least once a second."""

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Tell how far `phase` is, and in a few words how it goes ("loss 0.81, accuracy 78%").

        Raises Stopped or LeaseLost when the work must end now.
        """


class SilentWatch:
    """Never stops anything and tells nobody."""

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None: ...


@dataclass(frozen=True)
class LabelledSamples:
    """What the budget was spent on, in the order in which it was."""

    ids: tuple[str, ...]
    # Class index of each sample, int64 (N,).
    classes: np.ndarray
    # True where the sample was drawn at random, bool (N,): the rows that may decide anything.
    drawn_at_random: np.ndarray
    # Round in which each sample was bought, int64 (N,); None: all in one.
    rounds: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


NO_LABELS = LabelledSamples((), np.empty(0, np.int64), np.empty(0, bool))


# Of a standardised embedding; a shorter one has no direction worth the name.
SHORTEST = 1e-6


@dataclass(frozen=True)
class Hidden:
    """A layer of rectified units that all members share."""

    weights: np.ndarray  # (H, D)
    biases: np.ndarray  # (H,)


@dataclass(frozen=True)
class Head:
    """Standardisation, K linear maps, one temperature: everything of a model that depends on labels."""

    kind: str
    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    weights: np.ndarray  # (K, C, D), or (K, C, H) behind a hidden layer
    biases: np.ndarray  # (K, C)
    temperature: float = 1.0
    # Only the direction of the standardised embedding counts: it is brought to unit length.
    unit: bool = False
    hidden: Hidden | None = None

    def features(self, embeddings: np.ndarray) -> np.ndarray:
        """What the linear maps are applied to.  (N, D) -> (N, D), or (N, H) behind a hidden layer"""
        features = (embeddings - self.mean) / self.scale
        if self.unit:
            features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), SHORTEST)
        if self.hidden is not None:
            features = np.maximum(features @ self.hidden.weights.T + self.hidden.biases, 0)
        return np.asarray(features)

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Logits divided by the temperature.  (N, D) -> (N, K, C)"""
        logits = np.einsum("nd,kcd->nkc", self.features(embeddings), self.weights, optimize=True) + self.biases
        return np.asarray(logits / self.temperature, dtype=np.float32)

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Mean over members of the softmax.  (N, D) -> (N, C)"""
        logits = self.logits(embeddings)
        exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray((exp / exp.sum(axis=-1, keepdims=True)).mean(axis=1), dtype=np.float32)


@dataclass(frozen=True)
class FittedModel:
    """A classifier that can be evaluated and exported."""

    head: Head
    backbone: BackboneInfo
    embedding_id: str
    embedding_size: int
    # False when the backbone was trained for this model, so that stored embeddings of others do not fit it.
    embedding_shared: bool
    # ONNX graph `image` uint8 [N, H, W, 3] -> `embedding` float32 [N, D].
    embedding_graph: Path
    # Out-of-fold correctness of the randomly drawn labelled samples: sample id -> was it right?
    out_of_fold: dict[str, bool] = field(default_factory=dict)
    # What fitting found out, for the report: "c", "folds", "epochs", "out_of_fold_accuracy", ...
    notes: dict[str, float] = field(default_factory=dict)
    # The network itself, uint8 [N, H, W, 3] -> float32 (N, D): what the exported graph is compared with.
    reference: Callable[[np.ndarray], np.ndarray] | None = None
    # Out-of-fold predicted class of the same samples: what consecutive rounds are compared by.
    out_of_fold_classes: dict[str, int] = field(default_factory=dict)
    # To be called once a version of it is published: what was kept for a second attempt can go.
    on_published: Callable[[], None] = field(default=lambda: None)


class Learner(Protocol):
    """One way to turn labelled samples into a model. Same samples and seed, same model."""

    def initial_model(self, class_count: int, watch: Watch) -> FittedModel:
        """The backbone with a zero head: what round 0 publishes."""

    def fit(self, labelled: LabelledSamples, class_count: int, seed: int, watch: Watch) -> FittedModel:
        """Raises BadRequest when the labels cannot be learned from (a single class)."""

    def probabilities(self, model: FittedModel, ids: Sequence[str], watch: Watch) -> np.ndarray:
        """float32 (N, C), aligned with `ids`; for test samples."""


@dataclass(frozen=True)
class VersionFacts:
    """What the exporter must know to write a manifest."""

    campaign: str
    version: int
    round: int
    classes: tuple[str, ...]
    labels_used: int
    metrics: dict[str, dict[str, float]]
    # What the model was fitted on. The randomly drawn rows also judge faster graphs.
    labelled: LabelledSamples = NO_LABELS


class Exporter(Protocol):
    """Turns fitted models into registry versions."""

    def stage(
        self, model: FittedModel, facts: VersionFacts, extra: dict[str, bytes], folder: Path, watch: Watch
    ) -> Manifest:
        """Write model.onnx, head.onnx, variants, the `extra` files and manifest.json into `folder`.

        Raises DamagedArtefact when the exported graph does not agree with the torch module.
        """

    def probabilities(self, version_dir: Path, ids: Sequence[str]) -> np.ndarray:
        """What a published version says about samples: float32 (N, C). For the promotion rule."""

    def head(self, version_dir: Path) -> Callable[[np.ndarray], np.ndarray]:
        """A published version's head: embeddings float32 (N, D) -> its members' probabilities (N, K, C)."""
