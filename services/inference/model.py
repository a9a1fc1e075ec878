"""One model version in memory: networks made from verified bytes, checked against the model contract."""

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime as ort

from services.common.datatypes import DATATYPES, NUMPY_TYPES
from services.common.errors import BadRequest, DamagedArtefact
from services.common.manifest import HEAD_FILE, MODEL_FILE, VARIANT_FILES, Manifest
from services.inference.cuda_runs import Runs
from services.inference.precision import Precision
from services.inference.runtime import Runtime
from services.inference.statistics import Statistics
from services.inference.widening import widen

T = TypeVar("T")
# Two graphs of one version computed in different batch shapes; anything above is another model's head.
_HEAD_TOLERANCE = 1e-3


class Refused(DamagedArtefact):
    """A version that must not be served. `reason` is one of a few words, for the metric."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Outputs:
    """What a network says about N inputs, by the outputs' names; N comes first in every shape."""

    tensors: Mapping[str, np.ndarray]

    @property
    def probabilities(self) -> np.ndarray:  # (N, C)
        return self.tensors["probabilities"]

    @property
    def logits(self) -> np.ndarray:  # (N, K, C)
        return self.tensors["logits"]

    @property
    def embedding(self) -> np.ndarray:  # (N, D)
        return self.tensors["embedding"]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, part: slice) -> "Outputs":
        return Outputs({name: values[part] for name, values in self.tensors.items()})

    @staticmethod
    def concatenate(parts: Sequence["Outputs"]) -> "Outputs":
        if len(parts) == 1:
            return parts[0]
        return Outputs({name: np.concatenate([p.tensors[name] for p in parts]) for name in parts[0].tensors})


class Model:
    """A loaded version. Safe to use from several threads.

    `predict` runs `network`, in whatever precision. Stored embeddings are always fp32's: where `network` is a variant,
    `fp32` makes that graph's network when `embed` is called for the first time, so that a replica that only predicts
    never holds both.
    """

    def __init__(
        self,
        manifest: Manifest,
        network: Runs,
        head: ort.InferenceSession | None,
        parallel_runs: int,
        precision: Precision = "fp32",
        fp32: Callable[[], Runs] | None = None,
    ) -> None:
        """`head` is None for a plain model: nobody asks it to classify embeddings."""
        self.manifest = manifest
        self.signature = manifest.signature
        # Of the outputs, by name.
        self.datatypes = {output.name: output.datatype for output in self.signature.outputs}
        self._outputs = list(self.datatypes)
        self.provider: str = network.session.get_providers()[0]
        self.precision = precision
        # Why a variant that was published does not serve.
        self.variant_refused = ""
        self.parallel_runs = parallel_runs
        self.statistics = Statistics()
        self._network = network
        self._head = head
        self._make_fp32 = fp32
        self._fp32 = None if fp32 else network
        self._making = threading.Lock()
        # Embedding workers decode as well as run; only this many may be inside the device at once.
        self._embedding_runs = threading.BoundedSemaphore(parallel_runs)

    @property
    def name(self) -> str:
        return self.manifest.campaign

    @property
    def version(self) -> int:
        return self.manifest.version

    def predict(self, images: np.ndarray) -> Outputs:
        """uint8 [N, H, W, 3], or what the signature says -> Outputs"""
        return Outputs(dict(zip(self._outputs, self._network.run(self._outputs, images), strict=True)))

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 (N, D)"""
        with self._embedding_runs:
            return np.asarray(self._embedder().run(("embedding",), images)[0])

    def classify(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 or float16 (N, D) -> probabilities (N, C), logits (N, K, C)"""
        if self._head is None:
            raise TypeError(f"{self.name!r} is a plain model: it has no head")
        if embeddings.dtype == np.float16:
            embeddings = widen(embeddings)
        probabilities, logits = self._head.run(["probabilities", "logits"], {"embedding": embeddings})
        return probabilities, logits

    def _embedder(self) -> Runs:
        with self._making:
            if self._fp32 is None and self._make_fp32:
                self._fp32 = self._make_fp32()
            assert self._fp32 is not None  # one of the two was given
            return self._fp32


def refuse_plain(model: Model) -> None:
    """Raises BadRequest for a model that knows nothing of images."""
    if model.manifest.plain:
        raise BadRequest(f"{model.name!r} is a plain model: it answers ModelInfer of the Open Inference Protocol only")


def load(folder: Path, manifest: Manifest, runtime: Runtime, batch_sizes: Sequence[int]) -> Model:
    """A version that was verified, checked against the model contract and run once in each batch size.

    In the variant that the runtime prefers, if one was published; in fp32 when that one is damaged. Raises Refused;
    OSError when a file cannot be read.
    """
    plain = manifest.plain is not None
    if not plain and not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", manifest.embedding_id):
        raise Refused("manifest", f"{folder}: embedding_id {manifest.embedding_id!r} cannot name a folder")
    loading = _Loading(folder, manifest, runtime, batch_sizes)
    precision = runtime.precision(manifest.published_variants)
    if precision == "fp32":
        return loading.model(precision)
    try:
        return loading.model(precision)
    except Refused as error:
        model = loading.model("fp32")
        model.variant_refused = str(error)
        return model


class _Loading:
    """The parts of one version, made once."""

    def __init__(self, folder: Path, manifest: Manifest, runtime: Runtime, batch_sizes: Sequence[int]) -> None:
        self._folder = folder
        self._manifest = manifest
        self._runtime = runtime
        self._batch_sizes = batch_sizes
        # Before anything else: where the device turns out to be unusable, it does so here.
        self._head = None if manifest.plain else self._made(HEAD_FILE, runtime.session)

    def model(self, precision: Precision) -> Model:
        if precision == "fp32":
            network, fp32 = self._network(MODEL_FILE), None
        else:
            # Looked at now, so that a damaged version is refused now and not by the first call that embeds.
            _verified(self._folder / MODEL_FILE, self._manifest)
            network, fp32 = self._network(VARIANT_FILES[precision]), lambda: self._network(MODEL_FILE)
        model = Model(self._manifest, network, self._head, self._runtime.parallel_runs, precision, fp32)
        warm_up = _warm_up_plain if self._manifest.plain else _warm_up
        for size in sorted(set(self._batch_sizes), reverse=True):  # the largest first: the arena then never grows again
            warm_up(self._folder, model, size)
        return model

    def _network(self, name: str) -> Runs:
        network = self._made(name, lambda graph: self._runtime.network(graph, self._batch_sizes))
        _check_input(self._folder / name, self._manifest, network.session)
        return network

    def _made(self, name: str, make: Callable[[bytes], T]) -> T:
        content = _verified(self._folder / name, self._manifest)
        try:
            return make(content)
        # onnxruntime raises a dozen unrelated types for a graph that it cannot run.
        except Exception as error:
            raise Refused("graph", f"{self._folder / name}: onnxruntime refuses the graph: {error}") from error


def _verified(path: Path, manifest: Manifest) -> bytes:
    """The file's bytes, read once: what was compared with the checksum is what will run."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Refused("checksum", f"{path} is missing") from None
    if hashlib.sha256(content).hexdigest() != manifest.files[path.name]:
        raise Refused("checksum", f"{path} does not match its checksum")
    return content


def _check_input(path: Path, manifest: Manifest, network: ort.InferenceSession) -> None:
    inputs = [(i.name, DATATYPES.get(i.type, i.type), list(i.shape[1:])) for i in network.get_inputs()]
    wanted = manifest.signature.input
    expected = [(wanted.name, wanted.datatype, list(wanted.shape))]
    if inputs != expected:
        raise Refused("contract", f"{path}: inputs are {inputs}, the contract says {expected}")


def _warm_up_plain(folder: Path, model: Model, size: int) -> None:
    """Zeros: what a plain model makes of them is its own business, as long as it has the promised shapes."""
    wanted = model.signature.input
    try:
        outputs = model.predict(np.zeros((size, *wanted.shape), NUMPY_TYPES[wanted.datatype]))
    except Exception as error:
        raise Refused("contract", f"{folder}: a run on {size} zeros failed: {error}") from error
    expected = {o.name: ((size, *o.shape), NUMPY_TYPES[o.datatype]) for o in model.signature.outputs}
    given = {name: (values.shape, values.dtype) for name, values in outputs.tensors.items()}
    if given != expected:
        raise Refused("contract", f"{folder}: outputs are {given}, the manifest says {expected}")


def _warm_up(folder: Path, model: Model, size: int) -> None:
    facts = model.manifest
    shape = (size, facts.input_height, facts.input_width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    try:
        outputs = model.predict(images)
        probabilities, _ = model.classify(outputs.embedding)
    except Exception as error:
        raise Refused("contract", f"{folder}: a run on {size} images failed: {error}") from error
    classes = len(facts.classes)
    expected = ((size, classes), (size, facts.members, classes), (size, facts.embedding_size))
    given = (outputs.probabilities.shape, outputs.logits.shape, outputs.embedding.shape)
    if classes < 2 or given != expected:
        raise Refused("contract", f"{folder}: output shapes are {given}, the manifest says {expected}")
    if not all(np.isfinite(values).all() for values in outputs.tensors.values()):
        raise Refused("contract", f"{folder}: the {model.precision} network gives values that are not finite")
    if np.abs(probabilities - outputs.probabilities).max() > _HEAD_TOLERANCE:
        raise Refused("contract", f"{folder}: {HEAD_FILE} and the network disagree; they are not of one version")
