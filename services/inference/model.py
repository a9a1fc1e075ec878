"""One model version in memory: onnxruntime sessions made from verified bytes. onnxruntime stays in here."""

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from services.common.datatypes import DATATYPES, NUMPY_TYPES
from services.common.errors import BadRequest, DamagedArtefact
from services.common.manifest import HEAD_FILE, MODEL_FILE, Manifest
from services.inference.statistics import Statistics
from services.inference.widening import widen

Device = Literal["auto", "cpu", "cuda"]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS = {
    # The default tries every algorithm anew for each batch size: seconds at the first request of a size.
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
    # On by default, and off by some 1e-3: replicas on CPU and GPU fill one store of fp32 embeddings.
    "use_tf32": "0",
}
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


class Runtime:
    """Which device runs the networks, and how many runs go on side by side."""

    def __init__(self, device: Device, threads: int) -> None:
        self.device = device
        self.threads = threads
        wanted = device != "cpu" and CUDA in ort.get_available_providers()
        if wanted:
            # Finds the CUDA libraries that came as wheels; without it the provider silently fails to load.
            ort.preload_dlls()
        self.providers: list[Any] = [(CUDA, _CUDA_OPTIONS), CPU] if wanted else [CPU]
        # onnxruntime falls back to the CPU with no more than a log line, so that we look for ourselves.
        self.fell_back = device == "cuda" and not wanted

    @property
    def parallel_runs(self) -> int:
        """On a CPU, single-thread runs side by side beat one run on all cores (200 against 147 images/s)."""
        return self.threads if self.providers == [CPU] else 2

    def session(self, graph: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads hold cores that gRPC and decoding need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(graph, options, providers=self.providers)
        if self.providers != [CPU] and session.get_providers()[0] != CUDA:
            self.fell_back = True
            # Those that follow do not try again: versions of one replica must not run on different devices.
            self.providers = [CPU]
        return session


class Model:
    """A loaded version. Safe to use from several threads."""

    def __init__(
        self, manifest: Manifest, network: ort.InferenceSession, head: ort.InferenceSession | None, parallel_runs: int
    ) -> None:
        """`head` is None for a plain model: nobody asks it to classify embeddings."""
        self.manifest = manifest
        self.signature = manifest.signature
        # Of the outputs, by name.
        self.datatypes = {output.name: output.datatype for output in self.signature.outputs}
        self._outputs = list(self.datatypes)
        self.provider: str = network.get_providers()[0]
        self.parallel_runs = parallel_runs
        self.statistics = Statistics()
        self._network = network
        self._head = head
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
        outputs = self._network.run(self._outputs, {self.signature.input.name: images})
        return Outputs(dict(zip(self._outputs, outputs, strict=True)))

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 (N, D)"""
        with self._embedding_runs:
            return np.asarray(self._network.run(["embedding"], {"image": images})[0])

    def classify(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 or float16 (N, D) -> probabilities (N, C), logits (N, K, C)"""
        if self._head is None:
            raise TypeError(f"{self.name!r} is a plain model: it has no head")
        if embeddings.dtype == np.float16:
            embeddings = widen(embeddings)
        probabilities, logits = self._head.run(["probabilities", "logits"], {"embedding": embeddings})
        return probabilities, logits


def refuse_plain(model: Model) -> None:
    """Raises BadRequest for a model that knows nothing of images."""
    if model.manifest.plain:
        raise BadRequest(f"{model.name!r} is a plain model: it answers ModelInfer of the Open Inference Protocol only")


def load(folder: Path, manifest: Manifest, runtime: Runtime, batch_sizes: Sequence[int]) -> Model:
    """A version that was verified, checked against the model contract and run once in each batch size.

    Raises Refused; OSError when a file cannot be read.
    """
    plain = manifest.plain is not None
    if not plain and not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", manifest.embedding_id):
        raise Refused("manifest", f"{folder}: embedding_id {manifest.embedding_id!r} cannot name a folder")
    try:
        network = runtime.session(_verified(folder / MODEL_FILE, manifest))
        head = None if plain else runtime.session(_verified(folder / HEAD_FILE, manifest))
    except (Refused, OSError):
        raise
    # onnxruntime raises a dozen unrelated types for a graph that it cannot run.
    except Exception as error:
        raise Refused("graph", f"{folder}: onnxruntime refuses the graph: {error}") from error
    model = Model(manifest, network, head, runtime.parallel_runs)
    _check_input(folder, manifest, network)
    warm_up = _warm_up_plain if plain else _warm_up
    for size in sorted(set(batch_sizes), reverse=True):  # the largest first: the arena then never grows again
        warm_up(folder, model, size)
    return model


def _verified(path: Path, manifest: Manifest) -> bytes:
    """The file's bytes, read once: what was compared with the checksum is what will run."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Refused("checksum", f"{path} is missing") from None
    if hashlib.sha256(content).hexdigest() != manifest.files[path.name]:
        raise Refused("checksum", f"{path} does not match its checksum")
    return content


def _check_input(folder: Path, manifest: Manifest, network: ort.InferenceSession) -> None:
    inputs = [(i.name, DATATYPES.get(i.type, i.type), list(i.shape[1:])) for i in network.get_inputs()]
    wanted = manifest.signature.input
    expected = [(wanted.name, wanted.datatype, list(wanted.shape))]
    if inputs != expected:
        raise Refused("contract", f"{folder / MODEL_FILE}: inputs are {inputs}, the contract says {expected}")


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
        raise Refused("contract", f"{folder / MODEL_FILE} gives values that are not finite")
    if np.abs(probabilities - outputs.probabilities).max() > _HEAD_TOLERANCE:
        raise Refused("contract", f"{folder}: {HEAD_FILE} and {MODEL_FILE} disagree; they are not of one version")
