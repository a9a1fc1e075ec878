"""A query on a million stored embeddings, as a campaign makes it: an inference process, the trainer's scorer, a pick.

1,280 dimensions in a hundred overlapping groups, float16 in an EmbeddingStore on disk (2.6 GB, deleted afterwards),
1,000 labels, a batch of 1,000; trainer and service share two cores. Wall seconds of the second call: the first one of a
service's life verifies the checksum of every shard. Prints one line of JSON; `make bench-al` makes a table of it.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import track

from services.common.acquisition import member_probabilities
from services.common.embeddings import EmbeddingStore
from services.common.files import sha256_file
from services.common.manifest import HEAD_FILE, MODEL_FILE, Manifest
from services.common.samples import Source
from services.trainer.learning import Head, SilentWatch
from services.trainer.onnx_graph import head_graph, model_graph
from services.trainer.parity import session
from services.trainer.pool_scorer import GrpcPoolScorer, Version
from services.trainer.strategies import STRATEGIES, ScoredPool
from tests.tiny_models import Folders, TinyModel, running_inference, write_manifest

SIZE, CLASSES, GROUPS, LABELLED, BATCH = 1280, 10, 100, 1000, 1000
MODEL = TinyModel(classes=tuple(f"class{c}" for c in range(CLASSES)), embedding_size=SIZE)
SOURCE = "million"
_SHARD = 8192
_STDERR = Console(stderr=True)


def publish(folders: Folders, centers: np.ndarray) -> Manifest:
    """A version whose head knows the groups a little, behind an embedding graph that nobody will run."""
    weights = np.stack([centers[c::CLASSES].mean(axis=0) for c in range(CLASSES)])[None] / 30
    head = head_graph(Head("logistic", np.zeros(SIZE), np.ones(SIZE), weights, np.zeros((1, CLASSES))))
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["colours"], keepdims=0),
        helper.make_node("MatMul", ["colours", "spread"], ["embedding"]),
    ]
    constants = {"axes": np.array([1, 2], np.int64), "spread": np.full((3, SIZE), 1 / 256, np.float32)}
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", MODEL.size, MODEL.size, 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", SIZE])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "embedding", [image], [embedding], initializers)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=head.ir_version)
    folders.registry.create_campaign(MODEL.campaign, MODEL.classes)
    staged = folders.registry.staging_dir()
    onnx.save(model_graph(network, head), staged / MODEL_FILE)
    onnx.save(head, staged / HEAD_FILE)
    manifest = write_manifest(MODEL, staged)
    folders.registry.publish(staged, MODEL.campaign, MODEL.version)
    return manifest


def make_pool(folders: Folders, centers: np.ndarray, count: int) -> tuple[list[str], np.ndarray]:
    """A source of `count` ids with stored embeddings and no images: the ids and their classes (N,)."""
    rng = np.random.default_rng(0)
    ids = np.frombuffer(rng.bytes(16 * count).hex().encode(), "S32").astype(str)
    group = rng.integers(0, GROUPS, count)
    folders.sources_dir.mkdir(parents=True, exist_ok=True)
    index = folders.sources_dir / f"{SOURCE}.index.parquet"
    table = {"id": ids, "split": ["pool"] * count, "file": ["none"] * count, "row": np.arange(count)}
    pq.write_table(pa.table(table), index)
    source = Source(
        source_id=SOURCE,
        kind="parquet",
        location=SOURCE,
        height=MODEL.size,
        width=MODEL.size,
        classes=MODEL.classes,
        splits={"pool": count},
        fingerprint=sha256_file(index),
    )
    (folders.sources_dir / f"{SOURCE}.json").write_text(source.model_dump_json())
    store = EmbeddingStore(folders.embeddings_dir, MODEL.embedding_id, SOURCE)
    for first in track(range(0, count, _SHARD), "writing embeddings", console=_STDERR, transient=True):
        part = slice(first, first + _SHARD)
        rows = rng.standard_normal((len(ids[part]), SIZE), np.float32)
        rows += centers[group[part]]
        store.append(ids[part].tolist(), rows)
    return ids.tolist(), group % CLASSES


def measure(folders: Folders, count: int, names: Sequence[str]) -> dict[str, object]:
    centers = np.random.default_rng(1).standard_normal((GROUPS, SIZE), np.float32)
    manifest = publish(folders, centers)
    ids, classes = make_pool(folders, centers, count)
    head = session(folders.registry.version_dir(MODEL.campaign, MODEL.version) / HEAD_FILE, 2)
    at, watch = Version.of(manifest, SOURCE), SilentWatch()
    found: dict[str, object] = {}
    with running_inference(folders, INFERENCE_THREADS="2") as server:
        scorer = GrpcPoolScorer(server.address, folders.embeddings_dir, 2)
        began = time.perf_counter()
        scorer.score(at, ids, "margin", watch)
        found["first_s"] = time.perf_counter() - began
        scorer.embeddings(at, ids[:BATCH], watch)  # the trainer's own look at the shards
        for name in names:
            strategy, unlabelled = STRATEGIES[name], tuple(ids[LABELLED:])
            held, began = _peak(), time.perf_counter()
            scores = scorer.score(at, unlabelled, strategy.acquisition, watch) if strategy.acquisition else None
            scored = time.perf_counter()
            pool = ScoredPool(
                ids=unlabelled,
                labelled=tuple(ids[:LABELLED]),
                scores=scores,
                embeddings=lambda wanted: scorer.embeddings(at, wanted, watch),
                classify=lambda rows: member_probabilities(head.run(["logits"], {"embedding": rows})[0]),
                labelled_classes=classes[:LABELLED],
                class_count=CLASSES,
                embedding_key=MODEL.embedding_id,
            )
            picked = strategy.pick(pool, BATCH, np.random.default_rng(0))
            assert len(set(picked)) == BATCH
            done = time.perf_counter()
            found[name] = {"scores_s": scored - began, "pick_s": done - scored, "peak_mb": _peak() - held}
        scorer.close()
    return found


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("strategies", nargs="+", help="by name")
    arguments.add_argument("--rows", type=int, default=1_000_000)
    given = arguments.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # the service inherits it
    needed = given.rows * SIZE * 2 * 1.2
    with tempfile.TemporaryDirectory() as folder:
        if shutil.disk_usage(folder).free < needed:
            print(json.dumps({"note": f"needs {needed / 1e9:.1f} GB of disk in {tempfile.gettempdir()}"}))
            return
        print(json.dumps(measure(Folders(Path(folder)), given.rows, given.strategies)))


if __name__ == "__main__":
    main()
