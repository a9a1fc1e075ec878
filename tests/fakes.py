"""Fakes at our own ports: small, honest stand-ins that need no framework and no other process."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from services.common.files import sha256_file
from services.common.manifest import BackboneInfo, Manifest, Parity
from services.trainer.calibration import softmax
from services.trainer.learning import FittedModel, Head, LabelledSamples, SilentWatch, VersionFacts, Watch
from services.trainer.pool_scorer import Version

BACKBONE = BackboneInfo(
    name="fake",
    weights="none",
    weights_sha256="0" * 64,
    network_size=8,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    taps="last",
    pooling="average",
    flip=False,
    precision="fp32",
)


class FakePool:
    """Samples in two clusters, one a class: ids, embeddings and truth."""

    def __init__(self, size: int = 40, test_size: int = 20, classes: int = 2, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.pool_ids = tuple(f"pool-{i:04d}" for i in range(size))
        self.test_ids = tuple(f"test-{i:04d}" for i in range(test_size))
        ids = [*self.pool_ids, *self.test_ids]
        self.truth = {sample: int(rng.integers(classes)) for sample in ids}
        self._embedding = {i: rng.normal(size=4) + 3 * np.eye(4)[self.truth[i]] for i in ids}

    def embeddings(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self._embedding[i] for i in ids], np.float32).reshape(len(ids), 4)


class FakeScorer:
    """Scores by the sample's number, so that the right pick is visible by eye; remembers what it was asked."""

    def __init__(self, pool: FakePool) -> None:
        self._pool = pool
        self.asked: list[tuple[int, str, int]] = []

    def score(self, at: Version, ids: Sequence[str], acquisition: str, watch: Watch) -> np.ndarray:
        self.asked.append((at.version, acquisition, len(ids)))
        watch.progress("score", len(ids), len(ids))
        return np.array([float(i.rsplit("-", 1)[1]) for i in ids], np.float32)

    def embeddings(self, at: Version, ids: Sequence[str], watch: Watch) -> np.ndarray:
        return self._pool.embeddings(ids)


class FakeLearner:
    """A head of class means: deterministic, instant, better with more labels."""

    def __init__(self, pool: FakePool) -> None:
        self._pool = pool
        self.fits = 0

    def initial_model(self, class_count: int, watch: Watch) -> FittedModel:
        return self._model(
            Head("zero", np.zeros(4), np.ones(4), np.zeros((1, class_count, 4)), np.zeros((1, class_count)))
        )

    def fit(self, labelled: LabelledSamples, class_count: int, seed: int, watch: Watch) -> FittedModel:
        self.fits += 1
        watch.progress("fit", 1, 1)
        embeddings = self._pool.embeddings(labelled.ids)
        means = np.stack([embeddings[labelled.classes == c].mean(axis=0) for c in range(class_count)])
        biases = -0.5 * (means**2).sum(axis=1)
        head = Head("linear", np.zeros(4), np.ones(4), means[None], biases[None])
        predicted = head.probabilities(embeddings).argmax(axis=1)
        right = predicted == labelled.classes
        random_rows = [i for i, drawn in enumerate(labelled.drawn_at_random) if drawn]
        model = self._model(head, {labelled.ids[i]: bool(right[i]) for i in random_rows})
        return replace(model, out_of_fold_classes={labelled.ids[i]: int(predicted[i]) for i in random_rows})

    def probabilities(self, model: FittedModel, ids: Sequence[str], watch: Watch) -> np.ndarray:
        return model.head.probabilities(self._pool.embeddings(ids))

    def _model(self, head: Head, out_of_fold: dict[str, bool] | None = None) -> FittedModel:
        return FittedModel(head, BACKBONE, "fake", 4, True, Path("none"), out_of_fold or {})


class FakeExporter:
    """Writes the head as text in the place of a graph."""

    def __init__(self, pool: FakePool) -> None:
        self._pool = pool

    def stage(
        self, model: FittedModel, facts: VersionFacts, extra: dict[str, bytes], folder: Path, watch: Watch
    ) -> Manifest:
        head = json.dumps([model.head.weights.tolist(), model.head.biases.tolist()])
        files = {"model.onnx": repr(model.head.weights.tolist()).encode(), "head.onnx": head.encode(), **extra}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        manifest = Manifest(
            campaign=facts.campaign,
            version=facts.version,
            round=facts.round,
            classes=facts.classes,
            input_height=8,
            input_width=8,
            embedding_id=model.embedding_id,
            embedding_size=4,
            embedding_shared=True,
            backbone=BACKBONE,
            head=model.head.kind,
            members=1,
            temperature=1.0,
            labels_used=facts.labels_used,
            metrics=facts.metrics,
            parity=Parity(images=256, top1_disagreements=0, max_probability_error=0.0, max_logit_error=0.0),
            files={name: sha256_file(folder / name) for name in files},
            created_at=datetime.now(UTC),
            software={},
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        return manifest

    def probabilities(self, version_dir: Path, ids: Sequence[str]) -> np.ndarray:
        return np.eye(2, dtype=np.float32)[[0] * len(ids)]

    def head(self, version_dir: Path) -> Callable[[np.ndarray], np.ndarray]:
        weights, biases = (np.array(part, np.float32) for part in json.loads((version_dir / "head.onnx").read_bytes()))
        return lambda embeddings: softmax(np.einsum("nd,kcd->nkc", embeddings, weights) + biases)


class RecordingWatch(SilentWatch):
    """Remembers the phases; raises `error` when a phase begins that it was told to end in."""

    def __init__(self, end_in: str | None = None, error: Exception | None = None) -> None:
        self.phases: list[str] = []
        self._end_in, self._error = end_in, error

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        self.phases.append(phase)
        if phase == self._end_in and self._error is not None:
            raise self._error
