"""Does the exported graph say what the network says? Asked before anything is published."""

import io
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnxruntime as ort

from services.common.errors import DamagedArtefact
from services.common.files import write_atomically
from services.common.manifest import Parity
from services.trainer.learning import FittedModel, Watch

MAX_PROBABILITY_ERROR = 1e-3
MAX_EMBEDDING_ERROR = 1e-3
# Classes whose probabilities are this close may come in either order.
TIE = 1e-4
_REFERENCE_ROWS = 32


def session(graph: bytes | Path, threads: int = 0) -> ort.InferenceSession:
    """On the CPU. 0 threads: onnxruntime decides."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
    )


def check_parity(
    network: ort.InferenceSession, model: FittedModel, images: np.ndarray, cache_dir: Path, watch: Watch
) -> Parity:
    """Compare on uint8 [N, H, W, 3]. Raises DamagedArtefact when the graph is not the network."""
    if not len(images):
        raise DamagedArtefact("there are no images to compare the exported graph with the network on")
    embeddings = reference_embeddings(model, images, cache_dir, watch)
    expected, expected_logits = model.head.probabilities(embeddings), model.head.logits(embeddings)
    found, found_logits, found_embeddings = run_in_batches(network, images, watch)
    parity = Parity(
        images=len(images),
        top1_disagreements=top1_disagreements(expected, found),
        max_probability_error=float(np.abs(expected - found).max()),
        max_logit_error=float(np.abs(expected_logits - found_logits).max()),
        max_embedding_error=float(np.abs(embeddings - found_embeddings).max() / max(np.abs(embeddings).max(), 1e-12)),
    )
    # Written so that a nan fails too. A zero head hides every fault of the backbone: the embeddings show it.
    sound = parity.max_probability_error <= MAX_PROBABILITY_ERROR and parity.max_embedding_error <= MAX_EMBEDDING_ERROR
    if parity.top1_disagreements or not sound:
        raise DamagedArtefact(
            f"the exported graph does not agree with the network on {parity.images} images: "
            f"{parity.top1_disagreements} predictions differ, probabilities by up to "
            f"{parity.max_probability_error:.2g} (limit {MAX_PROBABILITY_ERROR:g}), embeddings by up to "
            f"{parity.max_embedding_error:.2g} of their largest value (limit {MAX_EMBEDDING_ERROR:g})"
        )
    return parity


def top1_disagreements(expected: np.ndarray, found: np.ndarray) -> int:
    """Rows whose predicted class differs by more than a tie.  (N, C), (N, C)"""
    rows = np.arange(len(expected))
    gap = expected.max(axis=1) - expected[rows, found.argmax(axis=1)]
    return int((~(gap <= TIE)).sum())


def run_in_batches(
    network: ort.InferenceSession, images: np.ndarray, watch: Watch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (N, C), logits (N, K, C) and embeddings (N, D), each image once, in batches of 1, 5 and 32."""
    parts = []
    for part in batches(len(images)):
        watch.progress("parity", part.start, len(images))
        parts.append(network.run(["probabilities", "logits", "embedding"], {"image": images[part]}))
    probabilities, logits, embeddings = (np.concatenate(outputs) for outputs in zip(*parts, strict=True))
    return probabilities, logits, embeddings


def batches(count: int) -> Iterator[slice]:
    """A sixteenth of the images one by one, a quarter in fives, the rest in batches of 32."""
    first = 0
    for size, end in ((1, count // 16), (5, count // 16 + count // 4), (32, count)):
        while first < end:
            last = min(first + size, count)
            yield slice(first, last)
            first = last


def reference_embeddings(model: FittedModel, images: np.ndarray, cache_dir: Path, watch: Watch) -> np.ndarray:
    """What the network itself gives, float32 (N, D). Kept on disk for backbones that many versions share."""
    path = cache_dir / f"{model.embedding_id}.{sha256(images.tobytes()).hexdigest()[:16]}.parity.npy"
    if model.embedding_shared and (kept := _read(path, len(images))) is not None:
        return kept
    reference: Callable[[np.ndarray], np.ndarray] | None = model.reference
    if reference is None:
        raise DamagedArtefact("the model comes without the network that its graph must be compared with")
    parts = []
    for first in range(0, len(images), _REFERENCE_ROWS):
        watch.progress("parity", first, len(images))
        parts.append(reference(images[first : first + _REFERENCE_ROWS]))
    embeddings = np.concatenate(parts)
    if model.embedding_shared:
        buffer = io.BytesIO()
        np.save(buffer, embeddings)
        write_atomically(path, buffer.getvalue())
    return embeddings


def _read(path: Path, rows: int) -> np.ndarray | None:
    try:
        kept: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return kept if len(kept) == rows else None
