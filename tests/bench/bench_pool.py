"""make bench-pool: ScorePool over a large pool, warm and cold, by a real server process.

warm   stored embeddings of a made-up source against numpy's product of head and the same memory map, converted to
       float32 chunk by chunk; both may use every core, they take turns, medians over the rounds
cold   encoded images in, embeddings on disk, against onnxruntime in a plain loop on the same graph; both have one core
"""

import argparse
import csv
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import helper, numpy_helper
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.client.client import QuerentClient
from services.common.embeddings import EmbeddingStore
from services.common.files import sha256_file
from services.common.manifest import HEAD_FILE, MODEL_FILE
from services.common.samples import Source
from services.trainer.settings import Settings
from tests.bench.serving import CAMPAIGN, Bound, cpu_seconds, publish_model
from tests.tiny_models import Folders, TinyModel, head_graph, network_graph, running_inference, write_manifest

MODEL = TinyModel(classes=tuple(f"class{i}" for i in range(10)), embedding_size=1280)
SHARD = 1024
TOP = 1000
COLD_IMAGES = 4096
GOALS = {
    "warm / numpy": 1.25,
    "warm, 1,000,000, s": 3.0,
    "RssAnon at 1,000,000, GB": 1.5,
    "cold CPU / raw": 1.08,
    "cold wall / raw": 0.95,
}


@dataclass
class Warm:
    count: int
    numpy_s: list[float] = field(default_factory=list)
    service_s: list[float] = field(default_factory=list)
    rss_anon_gb: list[float] = field(default_factory=list)
    # The first call of a fresh process: verifies every shard and reads the index.
    first_s: float = 0.0

    @property
    def ratio(self) -> float:
        return statistics.median(self.service_s) / statistics.median(self.numpy_s)


# ---- a made-up pool -----------------------------------------------------------------------------------


def publish_wide_model(folders: Folders) -> None:
    """TinyModel repeats three colours, and 1,280 is no multiple of three: repeat once more and cut."""
    graph = network_graph(MODEL)
    (repeats,) = (i for i in graph.graph.initializer if i.name == "repeats")
    repeats.CopyFrom(numpy_helper.from_array(np.array([1, MODEL.embedding_size // 3 + 1], np.int64), "repeats"))
    place, tile = next((i, n) for i, n in enumerate(graph.graph.node) if n.op_type == "Tile")
    tile.output[0] = "tiled"
    cuts = {"from": 0, "to": MODEL.embedding_size, "axis": 1}
    graph.graph.initializer.extend(numpy_helper.from_array(np.array([v], np.int64), k) for k, v in cuts.items())
    graph.graph.node.insert(place + 1, helper.make_node("Slice", ["tiled", *cuts], ["embedding"]))
    folders.registry.create_campaign(MODEL.campaign, MODEL.classes)
    staged = folders.registry.staging_dir()
    onnx.save(graph, staged / MODEL_FILE)
    onnx.save(head_graph(MODEL), staged / HEAD_FILE)
    write_manifest(MODEL, staged)
    folders.registry.publish(staged, MODEL.campaign, MODEL.version)


def make_pool(folders: Folders, count: int) -> str:
    """A source of `count` ids with stored embeddings and no images: its id."""
    source_id = f"pool-{count}"
    rng = np.random.default_rng(count)
    ids = np.frombuffer(rng.bytes(16 * count).hex().encode(), "S32")
    table = {"id": ids.astype(str), "split": ["pool"] * count, "file": ["none"] * count, "row": np.arange(count)}
    folders.sources_dir.mkdir(parents=True, exist_ok=True)
    index = folders.sources_dir / f"{source_id}.index.parquet"
    pq.write_table(pa.table(table), index)
    source = Source(
        source_id=source_id,
        kind="parquet",
        location=source_id,
        height=MODEL.size,
        width=MODEL.size,
        classes=MODEL.classes,
        splits={"pool": count},
        fingerprint=sha256_file(index),
    )
    (folders.sources_dir / f"{source_id}.json").write_text(source.model_dump_json())
    store = EmbeddingStore(folders.embeddings_dir, MODEL.embedding_id, source_id)
    rows = rng.normal(0, 0.1, (SHARD, MODEL.embedding_size)).astype(np.float32)
    for first in track(range(0, count, SHARD), f"writing {count:,} embeddings", transient=True):
        part = ids[first : first + SHARD]
        # A scale of its own for each shard, since drawing every number anew takes minutes.
        store.append(part, rows[: len(part)] * np.float32(0.5 + first / count))
    return source_id


def numpy_product(shards: list[np.ndarray]) -> float:
    """Seconds for head x memory map, float32 chunk by chunk, every core."""
    weights = MODEL.weights[0].T.copy()
    began = time.perf_counter()
    for shard in shards:
        np.asarray(shard, np.float32) @ weights
    return time.perf_counter() - began


@contextmanager
def peak_rss_anon(pid: int) -> Iterator[list[float]]:
    """Fills the list with one number: the most GB that the process had meanwhile."""
    peak: list[float] = []
    done = threading.Event()

    def look() -> None:
        most = 0.0
        while not done.wait(0.01):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            most = max(most, *(int(line.split()[1]) / 1e6 for line in lines if line.startswith("RssAnon")))
        peak.append(most)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def measure_warm(folders: Folders, count: int, rounds: int) -> Warm:
    source_id = make_pool(folders, count)
    folder = folders.embeddings_dir / MODEL.embedding_id / source_id
    row = Warm(count)
    with running_inference(folders) as server, QuerentClient(server.address, timeout_s=120) as client:

        def call() -> float:
            began = time.perf_counter()
            scored = client.score_pool(source_id, "entropy", model=MODEL.campaign, version=1, top=TOP)
            passed = time.perf_counter() - began
            assert len(scored.sample_ids) == TOP
            return passed

        row.first_s = call()
        shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.f16.npy"))]
        numpy_product(shards)  # maps the pages, as the service's first call did
        for _ in range(rounds):
            row.numpy_s.append(numpy_product(shards))
            with peak_rss_anon(server.process.pid) as peak:
                row.service_s.append(call())
            row.rss_anon_gb.extend(peak)
    shutil.rmtree(folder)
    return row


# ---- real images --------------------------------------------------------------------------------------


def measure_cold(folders: Folders, rounds: int) -> tuple[float, float, float]:
    """CPU / raw, wall / raw (medians) and the bound's images a second."""
    core, caller = sorted(os.sched_getaffinity(0))[:2]
    graph, _, pixels = publish_model(folders)
    source_id = next(folders.sources_dir.glob("*.json")).stem
    os.sched_setaffinity(0, {core})  # what is started now inherits it
    bound = Bound(graph, pixels)
    cpu: list[float] = []
    wall: list[float] = []
    raw: list[float] = []
    index = pq.read_table(folders.sources_dir / f"{source_id}.index.parquet", columns=["id", "split"])
    ids = index.filter(pa.compute.equal(index["split"], "pool"))["id"].to_pylist()[:COLD_IMAGES]
    environment = {"INFERENCE_THREADS": "1", "INFERENCE_POLL_SECONDS": "1"}
    with running_inference(folders, QUERENT_DATA_DIR=str(Settings().data_dir), **environment) as server:
        process = psutil.Process(server.process.pid)
        with QuerentClient(server.address, timeout_s=600) as client:
            client.embed(source_id, ids[:32], model=CAMPAIGN, version=1)  # loads the version
            for _ in track(range(rounds), "cold", transient=True):
                shutil.rmtree(folders.embeddings_dir)
                os.sched_setaffinity(0, {core})
                raw_cpu, raw_speed, _ = bound.measure(4.0)
                os.sched_setaffinity(0, {caller})
                before, began = cpu_seconds(process), time.perf_counter()
                client.score_pool(source_id, "entropy", model=CAMPAIGN, version=1, sample_ids=ids, top=10)
                passed = time.perf_counter() - began
                cpu.append((cpu_seconds(process) - before) / len(ids) / raw_cpu)
                wall.append(len(ids) / passed / raw_speed)
                raw.append(raw_speed)
    os.sched_setaffinity(0, {core, caller})
    return statistics.median(cpu), statistics.median(wall), statistics.median(raw)


# ---- the table ----------------------------------------------------------------------------------------


def warm_rows(row: Warm) -> list[tuple[str, str, str]]:
    name = f"warm, {row.count:,} x {MODEL.embedding_size:,} float16, entropy, top {TOP:,}"
    million = row.count == 1_000_000
    seconds, rss = statistics.median(row.service_s), max(row.rss_anon_gb)
    return [
        (f"{name}: s", f"{seconds:.2f}", f"<= {GOALS['warm, 1,000,000, s']}" if million else ""),
        ("    numpy, chunk by chunk: s", f"{statistics.median(row.numpy_s):.2f}", ""),
        ("    time / numpy", f"{row.ratio:.2f}", f"<= {GOALS['warm / numpy']}"),
        ("    RssAnon, peak: GB", f"{rss:.2f}", f"<= {GOALS['RssAnon at 1,000,000, GB']}" if million else ""),
        ("    first call of a process (verifies every shard): s", f"{row.first_s:.2f}", ""),
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3, help="turns of bound and service (3)")
    arguments.add_argument("--sizes", type=int, nargs="*", default=[100_000, 1_000_000], help="warm pools")
    arguments.add_argument("--csv", type=Path, help="write the table there as well")
    given = arguments.parse_args()
    console = Console()
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders(Path(folder))
        publish_wide_model(folders)
        for count in given.sizes:
            rows += warm_rows(measure_warm(folders, count, given.rounds))
    if len(os.sched_getaffinity(0)) < 2:
        console.print("cold: not measured; it needs two cores, one for the server and one for its caller")
    elif not (data := Settings().data_dir / "cifar10").is_dir():
        console.print(f"cold: not measured; there is no {data} (set QUERENT_DATA_DIR)")
    else:
        with tempfile.TemporaryDirectory() as folder:
            cpu, wall, raw = measure_cold(Folders(Path(folder)), given.rounds)
        rows.append(
            (f"cold, {COLD_IMAGES:,} CIFAR-10 images: CPU / raw", f"{cpu:.2f}", f"<= {GOALS['cold CPU / raw']}")
        )
        rows.append((f"    wall / raw ({raw:.0f} images/s)", f"{wall:.2f}", f">= {GOALS['cold wall / raw']}"))
    columns = ("ScorePool", "measured", "goal")
    table = Table(*columns, title=f"large pools, medians of {given.rounds} rounds")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(
        f"{os.cpu_count()} cores, onnxruntime {ort.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}"
    )
    if given.csv:
        with given.csv.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])


if __name__ == "__main__":
    main()
