"""One model version in memory: onnxruntime sessions made from verified bytes. onnxruntime stays in here."""

import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from services.common.errors import DamagedArtefact
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
_OUTPUTS = ("probabilities", "logits", "embedding")
# Two graphs of one version computed in different batch shapes; anything above is another model's head.
_HEAD_TOLERANCE = 1e-3


class Refused(DamagedArtefact):
    """A version that must not be served. `reason` is one of a few words, for the metric."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Outputs:
    """What a network says about N images."""

    probabilities: np.ndarray  # (N, C)
    logits: np.ndarray  # (N, K, C)
    embedding: np.ndarray  # (N, D)

    def __getitem__(self, part: slice) -> "Outputs":
        return Outputs(self.probabilities[part], self.logits[part], self.embedding[part])

    @staticmethod
    def concatenate(parts: Sequence["Outputs"]) -> "Outputs":
        if len(parts) == 1:
            return parts[0]
        return Outputs(
            np.concatenate([p.probabilities for p in parts]),
            np.concatenate([p.logits for p in parts]),
            np.concatenate([p.embedding for p in parts]),
        )


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
        self, manifest: Manifest, network: ort.InferenceSession, head: ort.InferenceSession, parallel_runs: int
    ) -> None:
        self.manifest = manifest
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
        """uint8 [N, H, W, 3] -> Outputs"""
        return Outputs(*self._network.run(list(_OUTPUTS), {"image": images}))

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 (N, D)"""
        with self._embedding_runs:
            return np.asarray(self._network.run(["embedding"], {"image": images})[0])

    def classify(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 or float16 (N, D) -> probabilities (N, C), logits (N, K, C)"""
        if embeddings.dtype == np.float16:
            embeddings = widen(embeddings)
        probabilities, logits = self._head.run(["probabilities", "logits"], {"embedding": embeddings})
        return probabilities, logits


def load(folder: Path, manifest: Manifest, runtime: Runtime, batch_sizes: Sequence[int]) -> Model:
    """A version that was verified, checked against the model contract and run once in each batch size.

    Raises Refused; OSError when a file cannot be read.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", manifest.embedding_id):
        raise Refused("manifest", f"{folder}: embedding_id {manifest.embedding_id!r} cannot name a folder")
    try:
        network = runtime.session(_verified(folder / MODEL_FILE, manifest))
        head = runtime.session(_verified(folder / HEAD_FILE, manifest))
    except (Refused, OSError):
        raise
    # onnxruntime raises a dozen unrelated types for a graph that it cannot run.
    except Exception as error:
        raise Refused("graph", f"{folder}: onnxruntime refuses the graph: {error}") from error
    model = Model(manifest, network, head, runtime.parallel_runs)
    _check_input(folder, manifest, network)
    for size in sorted(set(batch_sizes), reverse=True):  # the largest first: the arena then never grows again
        _warm_up(folder, model, size)
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
    inputs = [(i.name, i.type, list(i.shape[1:])) for i in network.get_inputs()]
    expected = [("image", "tensor(uint8)", [manifest.input_height, manifest.input_width, 3])]
    if inputs != expected:
        raise Refused("contract", f"{folder / MODEL_FILE}: inputs are {inputs}, the contract says {expected}")


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
    if not all(np.isfinite(getattr(outputs, name)).all() for name in _OUTPUTS):
        raise Refused("contract", f"{folder / MODEL_FILE} gives values that are not finite")
    if np.abs(probabilities - outputs.probabilities).max() > _HEAD_TOLERANCE:
        raise Refused("contract", f"{folder}: {HEAD_FILE} and {MODEL_FILE} disagree; they are not of one version")
