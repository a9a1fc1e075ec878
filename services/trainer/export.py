"""Fitted models to registry versions, each checked against the network before a file is written."""

import hashlib
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from services.common.manifest import (
    HEAD_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    VARIANT_FILES,
    Manifest,
    Parity,
    VariantCheck,
    VariantKind,
)
from services.trainer.calibration import softmax
from services.trainer.learning import FittedModel, VersionFacts, Watch
from services.trainer.onnx_graph import head_graph, model_graph
from services.trainer.parity import check_parity, session
from services.trainer.variants import Variants

_BATCH = 32
_SOFTWARE = ("querent", "torch", "torchvision", "timm", "onnx", "onnxscript", "numpy")


class OnnxExporter:
    """Implements learning.Exporter.

    `parity_images`: at least 256 real images (all, where a source has fewer), uint8 [N, H, W, 3], the same at each
    call. `images`: sample ids -> uint8 [N, H, W, 3]. `threads`: onnxruntime's; 0: it decides. `variants`: None to
    publish no faster graphs.
    """

    def __init__(
        self,
        parity_images: Callable[[], np.ndarray],
        images: Callable[[Sequence[str]], np.ndarray],
        threads: int = 0,
        variants: Variants | None = None,
    ) -> None:
        self._variants = variants
        self._parity_images = parity_images
        self._images = images
        self._threads = threads

    def stage(
        self, model: FittedModel, facts: VersionFacts, extra: dict[str, bytes], folder: Path, watch: Watch
    ) -> Manifest:
        images = self._parity_images()
        embedding = onnx.load_model_from_string(model.embedding_graph.read_bytes())
        head = head_graph(model.head, embedding.ir_version)
        files = {
            MODEL_FILE: model_graph(embedding, head).SerializeToString(),
            HEAD_FILE: head.SerializeToString(),
            **extra,
        }
        network = session(files[MODEL_FILE], self._threads)
        parity = check_parity(network, model, images, model.embedding_graph.parent, watch)
        variants = self._variants.of(model, facts.labelled, watch) if self._variants else {}
        for kind, variant in variants.items():
            if variant.embedding is not None:
                faster = onnx.load_model_from_string(variant.embedding)
                whole = model_graph(faster, head_graph(model.head, faster.ir_version))
                files[VARIANT_FILES[kind]] = whole.SerializeToString()
        checks = {kind: variant.check for kind, variant in variants.items()}
        manifest = _manifest(model, facts, files, parity, checks, images)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2))
        return manifest

    def probabilities(self, version_dir: Path, ids: Sequence[str]) -> np.ndarray:
        network = session(version_dir / MODEL_FILE, self._threads)
        parts = [
            network.run(["probabilities"], {"image": self._images(ids[first : first + _BATCH])})[0]
            for first in range(0, len(ids), _BATCH)
        ]
        classes = network.get_outputs()[0].shape[1]
        return np.concatenate(parts) if parts else np.empty((0, classes), np.float32)

    def head(self, version_dir: Path) -> Callable[[np.ndarray], np.ndarray]:
        network = session(version_dir / HEAD_FILE, self._threads)
        return lambda embeddings: softmax(network.run(["logits"], {"embedding": embeddings})[0])


def providers() -> list[str]:
    """The execution providers of the installed onnxruntime, for `al-trainer doctor`."""
    return list(ort.get_available_providers())


def _manifest(
    model: FittedModel,
    facts: VersionFacts,
    files: dict[str, bytes],
    parity: Parity,
    variants: dict[VariantKind, VariantCheck],
    images: np.ndarray,
) -> Manifest:
    return Manifest(
        campaign=facts.campaign,
        version=facts.version,
        round=facts.round,
        classes=facts.classes,
        input_height=images.shape[1],
        input_width=images.shape[2],
        embedding_id=model.embedding_id,
        embedding_size=model.embedding_size,
        embedding_shared=model.embedding_shared,
        backbone=model.backbone,
        head=model.head.kind,
        members=model.head.weights.shape[0],
        temperature=model.head.temperature,
        labels_used=facts.labels_used,
        metrics=facts.metrics,
        parity=parity,
        variants=variants,
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        created_at=datetime.now(UTC),
        software={"python": platform.python_version(), "onnxruntime": ort.__version__, **_versions()},
    )


def _versions() -> dict[str, str]:
    """Of what is installed; nothing is imported for it."""
    found = {}
    for package in _SOFTWARE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
