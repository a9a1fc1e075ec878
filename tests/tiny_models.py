"""Tiny registry versions and sources that keep every contract, made without torch in milliseconds.

    model = TinyModel(campaign="tiny", version=2)      # what varies, with defaults
    publish(registry, model)                           # model.onnx, head.onnx, manifest.json, via common.registry
    publish(registry, model, promote=True)
    embeddings(model, images); probabilities(model, images)      # what the graphs compute, in numpy
    source = make_source(sources_dir, data_dir)        # PNG files or one parquet, index and description
    source.ids["pool"]; source.source_id; source.images(ids)
    with running_inference(Folders(tmp_path)) as server:         # a real `al-inference serve` on free ports
        server.address, server.metrics_url, server.process

The embedding is the mean of each of the three colours over the image, divided by 255, plus `embedding_shift`;
it is repeated up to `embedding_size`. The head is a linear map drawn from `seed`. So colour is all that these
models see: `png(colour)` makes an image of one colour.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from services.common import images as codec
from services.common.files import sha256_file
from services.common.manifest import (
    HEAD_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    VARIANT_FILES,
    BackboneInfo,
    Manifest,
    Parity,
    VariantCheck,
    VariantKind,
)
from services.common.registry import Registry
from services.common.samples import Source, sample_id

CLASSES = ("red", "green", "blue")
# What a tiny variant adds to the embedding: its answers can be told from fp32's.
VARIANT_SHIFT = 0.125


@dataclass(frozen=True)
class TinyModel:
    """One version. `members` > 1 makes a committee; `work` adds matrix products that take time."""

    campaign: str = "tiny"
    version: int = 1
    classes: tuple[str, ...] = CLASSES
    size: int = 8
    embedding_size: int = 6
    members: int = 1
    seed: int = 0
    embedding_id: str = "tiny-embedding"
    embedding_shared: bool = True
    embedding_shift: float = 0.0
    accuracy: float = 0.5
    # Multiplications of a 256 x 256 matrix with itself for each image: about 1 ms each.
    work: int = 0
    # Megabytes of weights that the image goes through.
    ballast: int = 0
    # Published beside model.onnx: plain graphs that answer as `as_variant` does.
    variants: tuple[VariantKind, ...] = ()

    @property
    def as_variant(self) -> "TinyModel":
        return replace(self, embedding_shift=self.embedding_shift + VARIANT_SHIFT)

    @property
    def weights(self) -> np.ndarray:
        """(K, C, D)"""
        rng = np.random.default_rng(self.seed)
        return rng.normal(0, 3, (self.members, len(self.classes), self.embedding_size)).astype(np.float32)


# ---- what the graphs compute --------------------------------------------------------------------------


def embeddings(model: TinyModel, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32 (N, D)"""
    colours = images.astype(np.float32).mean(axis=(1, 2)) / 255 + model.embedding_shift
    return np.tile(colours, (1, model.embedding_size // 3))


def probabilities(model: TinyModel, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32 (N, C)"""
    logits = np.einsum("nd,kcd->nkc", embeddings(model, images), model.weights)
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray((exp / exp.sum(axis=-1, keepdims=True)).mean(axis=1), dtype=np.float32)


# ---- versions -----------------------------------------------------------------------------------------


def stage(model: TinyModel, folder: Path, manifest_changes: dict[str, object] | None = None) -> Manifest:
    """Write model.onnx, head.onnx and manifest.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(network_graph(model), folder / MODEL_FILE)
    onnx.save(head_graph(model), folder / HEAD_FILE)
    for kind in model.variants:
        onnx.save(network_graph(model.as_variant), folder / VARIANT_FILES[kind])
    return write_manifest(model, folder, manifest_changes)


def write_manifest(model: TinyModel, folder: Path, changes: dict[str, object] | None = None) -> Manifest:
    """A manifest with true checksums of the files that lie in `folder`."""
    files = (MODEL_FILE, HEAD_FILE, *(VARIANT_FILES[kind] for kind in model.variants))
    manifest = Manifest(
        campaign=model.campaign,
        version=model.version,
        round=model.version - 1,
        classes=model.classes,
        input_height=model.size,
        input_width=model.size,
        embedding_id=model.embedding_id,
        embedding_size=model.embedding_size,
        embedding_shared=model.embedding_shared,
        backbone=BackboneInfo(
            name="tiny",
            weights="none",
            weights_sha256="0" * 64,
            network_size=model.size,
            interpolation="bicubic",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            taps="last",
            pooling="avg",
            flip=False,
            precision="fp32",
        ),
        head="logistic",
        members=model.members,
        temperature=1.0,
        labels_used=10 * model.version,
        metrics={"test": {"accuracy": model.accuracy}},
        parity=Parity(images=256, top1_disagreements=0, max_probability_error=0.0, max_logit_error=0.0),
        variants={kind: VariantCheck(images=2000, agreement=1.0) for kind in model.variants},
        files={name: sha256_file(folder / name) for name in files},
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        software={"onnx": onnx.__version__},
    ).model_copy(update=changes or {})
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return manifest


def publish(registry: Registry, model: TinyModel, promote: bool = False) -> Path:
    """Publish a version, and promote it when asked. Gives its folder."""
    registry.create_campaign(model.campaign, model.classes)
    staged = registry.staging_dir()
    stage(model, staged)
    registry.publish(staged, model.campaign, model.version)
    if promote:
        registry.promote(model.campaign, model.version)
    return registry.version_dir(model.campaign, model.version)


def head_graph(model: TinyModel) -> onnx.ModelProto:
    """`embedding` (N, D) -> `probabilities` (N, C), `logits` (N, K, C)"""
    inputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", model.embedding_size])]
    return _model_proto("head", _head_nodes(), inputs, _head_outputs(model), _head_weights(model))


def network_graph(model: TinyModel) -> onnx.ModelProto:
    """`image` uint8 [N, H, W, 3] -> `probabilities`, `logits`, `embedding`"""
    images = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", model.size, model.size, 3])]
    outputs = [
        *_head_outputs(model),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", model.embedding_size]),
    ]
    constants = {
        "spatial": np.array([1, 2], np.int64),
        "scale": np.array(1 / 255, np.float32),
        "shift": np.array(model.embedding_shift, np.float32),
        "repeats": np.array([1, model.embedding_size // 3], np.int64),
    }
    work, work_constants, worked = _work(model)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "spatial"], ["colour"], keepdims=0),
        helper.make_node("Mul", ["colour", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"]),
        *work,
        helper.make_node("Tile", [worked, "repeats"], ["embedding"]),
        *_head_nodes(),
    ]
    weights = [numpy_helper.from_array(v, n) for n, v in {**constants, **work_constants}.items()]
    return _model_proto("network", nodes, images, outputs, [*weights, *_head_weights(model)])


def _work(model: TinyModel) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]:
    """Products that depend on the image, so that they cannot be folded away, and that change nothing."""
    nodes, constants, worked = _ballast(model)
    if not model.work:
        return nodes, constants, worked
    constants |= {
        "spread": np.zeros((3, 256 * 256), np.float32),
        "square": np.array([-1, 256, 256], np.int64),
        "axes": np.array([1, 2], np.int64),
        "column": np.array([-1, 1], np.int64),
    }
    nodes += [
        helper.make_node("MatMul", [worked, "spread"], ["zeros"]),
        helper.make_node("Reshape", ["zeros", "square"], ["work0"]),
        *(helper.make_node("MatMul", [f"work{i}", f"work{i}"], [f"work{i + 1}"]) for i in range(model.work)),
        helper.make_node("ReduceSum", [f"work{model.work}", "axes"], ["sum"], keepdims=0),
        helper.make_node("Reshape", ["sum", "column"], ["nothing"]),
        helper.make_node("Add", [worked, "nothing"], ["worked"]),
    ]
    return nodes, constants, "worked"


def _ballast(model: TinyModel) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]:
    """A square matrix of so many megabytes, which zeros are multiplied with."""
    if not model.ballast:
        return [], {}, "shifted"
    side = int((model.ballast * 1e6 / 4) ** 0.5)
    constants = {
        "nowhere": np.zeros((3, side), np.float32),
        "ballast": np.random.default_rng(model.seed).normal(size=(side, side)).astype(np.float32),
        "last": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["shifted", "nowhere"], ["afloat"]),
        helper.make_node("MatMul", ["afloat", "ballast"], ["carried"]),
        helper.make_node("ReduceSum", ["carried", "last"], ["weightless"], keepdims=1),
        helper.make_node("Add", ["shifted", "weightless"], ["laden"]),
    ]
    return nodes, constants, "laden"


def _head_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", ["embedding", "weights"], ["flat"]),
        helper.make_node("Reshape", ["flat", "members"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["each"], axis=-1),
        helper.make_node("ReduceMean", ["each", "committee"], ["probabilities"], keepdims=0),
    ]


def _head_outputs(model: TinyModel) -> list[onnx.ValueInfoProto]:
    classes = len(model.classes)
    return [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", model.members, classes]),
    ]


def _head_weights(model: TinyModel) -> list[onnx.TensorProto]:
    constants = {
        "weights": model.weights.reshape(-1, model.embedding_size).T.copy(),
        "members": np.array([-1, model.members, len(model.classes)], np.int64),
        "committee": np.array([1], np.int64),
    }
    return [numpy_helper.from_array(value, name) for name, value in constants.items()]


def _model_proto(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    proto.ir_version = 10
    return proto


# ---- images and sources -------------------------------------------------------------------------------


def png(colour: tuple[int, int, int] = (200, 30, 30), size: int = 8) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def colours(count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Different colours."""
    drawn = np.random.default_rng(seed).choice(256**3, count, replace=False)
    return [(int(c) >> 16, (int(c) >> 8) & 255, int(c) & 255) for c in drawn]


@dataclass(frozen=True)
class TinySource:
    source_id: str
    size: int
    # split -> sample ids in storage order
    ids: dict[str, list[str]]
    encoded: dict[str, bytes]

    def images(self, ids: Sequence[str]) -> np.ndarray:
        """uint8 [N, H, W, 3]"""
        return np.stack([codec.decode(self.encoded[i], self.size, self.size) for i in ids])


def make_source(
    sources_dir: Path,
    data_dir: Path,
    source_id: str = "tiny-source",
    splits: dict[str, int] | None = None,
    size: int = 8,
    kind: Literal["parquet", "folder"] = "parquet",
    replaced: dict[int, bytes] | None = None,
    classes: tuple[str, ...] = CLASSES,
) -> TinySource:
    """One-colour images with the index and description that `common.samples` reads.

    The label is the colour's strongest channel. `replaced` puts other bytes at some places (a broken file).
    """
    splits = splits or {"pool": 100, "test": 20}
    drawn = colours(sum(splits.values()))
    contents = [png(c, size) for c in drawn]
    for place, content in (replaced or {}).items():
        contents[place] = content
    ids = [sample_id(content) for content in contents]
    names = [name for name, count in splits.items() for _ in range(count)]
    files, rows = _write_images(data_dir / source_id, contents, ids, kind)
    labels = [int(np.argmax(c)) for c in drawn]
    index = pa.table({"id": ids, "split": names, "file": files, "row": pa.array(rows, pa.int64()), "label": labels})
    sources_dir.mkdir(parents=True, exist_ok=True)
    index_path = sources_dir / f"{source_id}.index.parquet"
    pq.write_table(index, index_path)
    description = Source(
        source_id=source_id,
        kind=kind,
        location=source_id,
        height=size,
        width=size,
        classes=classes,
        splits=splits,
        fingerprint=sha256_file(index_path),
    )
    (sources_dir / f"{source_id}.json").write_text(description.model_dump_json())
    by_split = {name: [i for i, n in zip(ids, names, strict=True) if n == name] for name in splits}
    return TinySource(source_id, size, by_split, dict(zip(ids, contents, strict=True)))


def _write_images(
    folder: Path, contents: Sequence[bytes], ids: Sequence[str], kind: str
) -> tuple[list[str], list[int]]:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        for name, content in zip(ids, contents, strict=True):
            (folder / f"{name}.png").write_bytes(content)
        return [f"{name}.png" for name in ids], [-1] * len(ids)
    column = pa.array(
        [{"bytes": c, "path": None} for c in contents], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    pq.write_table(pa.table({"img": column}), folder / "images.parquet", row_group_size=64)
    return ["images.parquet"] * len(ids), list(range(len(ids)))


# ---- a real server ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folders:
    """The folders that the services share, under one root."""

    root: Path
    registry: Registry = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "registry", Registry(self.root / "registry"))

    @property
    def sources_dir(self) -> Path:
        return self.root / "sources"

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def embeddings_dir(self) -> Path:
        return self.root / "embeddings"

    @property
    def feedback_dir(self) -> Path:
        return self.root / "feedback"

    def environment(self) -> dict[str, str]:
        """INFERENCE_* for these folders, with free ports and no waiting at the end."""
        return {
            "INFERENCE_REGISTRY_DIR": str(self.registry.root),
            "INFERENCE_SOURCES_DIR": str(self.sources_dir),
            "INFERENCE_EMBEDDINGS_DIR": str(self.embeddings_dir),
            "INFERENCE_FEEDBACK_DIR": str(self.feedback_dir),
            "QUERENT_DATA_DIR": str(self.data_dir),
            "INFERENCE_GRPC_PORT": "0",
            "INFERENCE_METRICS_PORT": "0",
            "INFERENCE_POLL_SECONDS": "0.05",
            "INFERENCE_LAME_DUCK_SECONDS": "0",
            "INFERENCE_LOG_STYLE": "json",
        }

    def source(self, **arguments: object) -> TinySource:
        return make_source(self.sources_dir, self.data_dir, **arguments)  # type: ignore[arg-type]


@dataclass(frozen=True)
class RunningInference:
    process: "subprocess.Popen[str]"
    address: str
    metrics_url: str
    # Everything that the process has logged so far.
    logged: list[str]

    def wait_for_log(self, event: str, timeout_s: float = 20.0) -> dict[str, object]:
        """The first log record of that name."""
        return _wait_for_log(self.process, self.logged, event, timeout_s)


@contextlib.contextmanager
def running_inference(folders: Folders, **environment: str) -> Iterator[RunningInference]:
    """`al-inference serve` as a process; killed at the end when it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services.inference.server", "serve"],
        env={**os.environ, **folders.environment(), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    logged: list[str] = []
    reader = threading.Thread(target=lambda: logged.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        serving = _wait_for_log(process, logged, "serving", 30.0)
        yield RunningInference(process, str(serving["grpc"]), f"http://{serving['metrics']}/metrics", logged)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(timeout=5)


def _wait_for_log(
    process: "subprocess.Popen[str]", logged: list[str], event: str, timeout_s: float
) -> dict[str, object]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for line in list(logged):
            if line.startswith("{") and json.loads(line).get("event") == event:
                return dict(json.loads(line))
        if process.poll() is not None and event not in "".join(logged):
            raise RuntimeError(f"the server ended with {process.returncode}:\n{''.join(logged)}")
        time.sleep(0.02)
    raise TimeoutError(f"no log record {event!r} within {timeout_s} s:\n{''.join(logged)}")


def next_version(model: TinyModel, **changes: object) -> TinyModel:
    """The version after `model`, with another head."""
    return replace(model, version=model.version + 1, seed=model.seed + 1, **changes)  # type: ignore[arg-type]
