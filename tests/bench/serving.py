"""make bench-serving: the service against onnxruntime in a plain loop, the same model, on one core.

The bound runs the same graph with one intra-op thread in its best batch size, on the same pixels, already decoded.
Server and bound have one core, the callers another; they take turns within a round, and the table gives medians over
the rounds.

CPU / raw   CPU seconds an image of the server process over the bound's: hardly moved by what else the machine does
wall / raw  images a second over the bound's
"""

import argparse
import asyncio
import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import onnxruntime as ort
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.common.manifest import MODEL_FILE
from services.common.pb import prediction_pb2, prediction_pb2_grpc
from services.common.samples import SampleStore
from services.trainer.config import load_config
from services.trainer.settings import Settings
from services.trainer.sources import make_source
from tests.bench.backbone import CAMPAIGN, publish_backbone
from tests.tiny_models import Folders, running_inference

CONFIG = Path("examples/cifar10-demo.yaml")
CALLERS = (1, 8, 32)
BATCHES = (1, 2, 4, 8, 16, 32)
IMAGES = 512

Call = Callable[[int], Awaitable[object]]


@dataclass
class Row:
    """Measurements of one kind of call, one value a round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)


class Bound:
    """onnxruntime in a plain loop, one thread."""

    def __init__(self, graph: Path, pixels: np.ndarray) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._pixels = pixels
        self.batch = min(BATCHES, key=lambda batch: self.measure(1.0, batch)[0])

    def measure(self, seconds: float, batch: int = 0) -> tuple[float, float, float]:
        """CPU seconds an image, images a second, median milliseconds of a run."""
        batch = batch or self.batch
        self._session.run(None, {"image": self._pixels[:batch]})
        images, runs = 0, list[float]()
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < seconds:
            first = images % (len(self._pixels) - batch + 1)
            began = time.perf_counter()
            self._session.run(None, {"image": self._pixels[first : first + batch]})
            runs.append(time.perf_counter() - began)
            images += batch
        spent, passed = time.process_time() - cpu, time.perf_counter() - wall
        return spent / images, images / passed, 1000 * statistics.median(runs)


def publish_model(folders: Folders) -> tuple[Path, list[bytes], np.ndarray]:
    """The demo's network as a registry version: its graph, encoded images and their pixels uint8 [N, H, W, 3]."""
    settings = Settings(sources_dir=folders.sources_dir)
    config = load_config(CONFIG)
    source = make_source(config.source, settings.data_dir, settings.sources_dir, lambda *_: None)
    samples = SampleStore.open(settings.sources_dir, settings.data_dir, source.source_id)
    version = publish_backbone(folders.registry, config, source, samples, settings)
    ids = samples.ids("pool")[:IMAGES]
    return version / MODEL_FILE, samples.encoded(ids), samples.images(ids)


def predict_calls(channel: grpc.aio.Channel, encoded: Sequence[bytes]) -> Call:
    stub = prediction_pb2_grpc.PredictionServiceStub(channel)  # type: ignore[no-untyped-call]

    def call(number: int) -> Awaitable[object]:
        image = encoded[number % len(encoded)]
        return stub.Predict(
            prediction_pb2.PredictRequest(
                model=CAMPAIGN, version=1, encoded=prediction_pb2.EncodedImages(images=[image]), top_k=1
            ),
            timeout=30,
        )

    return call


async def load(call: Call, callers: int, seconds: float) -> tuple[int, float, list[float]]:
    """Answers, seconds and the latency of each, with `callers` that each wait for their answer before the next."""
    latencies: list[float] = []
    began = time.perf_counter()

    async def caller(number: int) -> None:
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            await call(number)
            latencies.append(time.perf_counter() - sent)
            number += callers

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return len(latencies), time.perf_counter() - began, latencies


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of the process and what it started."""
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


async def measure(
    address: str, pid: int, bound: Bound, encoded: Sequence[bytes], cores: tuple[int, int], rounds: int, seconds: float
) -> tuple[dict[tuple[str, int], Row], list[tuple[float, float, float]]]:
    server = psutil.Process(pid)
    table: dict[tuple[str, int], Row] = {}
    raw: list[tuple[float, float, float]] = []
    async with grpc.aio.insecure_channel(address) as channel:
        kinds = {"Predict, JPEG bytes": predict_calls(channel, encoded)}
        for call in kinds.values():
            await load(call, 8, 1.0)
        with Progress(transient=True) as bars:
            bar = bars.add_task("measuring", total=rounds * (1 + len(kinds) * len(CALLERS)))
            for _ in range(rounds):
                os.sched_setaffinity(0, {cores[0]})
                cpu, speed, _ = bound.measure(seconds)
                raw.append((cpu, speed, bound.measure(1.0, 1)[2]))
                os.sched_setaffinity(0, {cores[1]})
                bars.advance(bar)
                for (kind, call), callers in ((k, c) for k in kinds.items() for c in CALLERS):
                    before = cpu_seconds(server)
                    answers, passed, latencies = await load(call, callers, seconds)
                    row = table.setdefault((kind, callers), Row())
                    row.cpu.append((cpu_seconds(server) - before) / answers / cpu)
                    row.wall.append(answers / passed / speed)
                    row.p50_ms.append(1000 * float(np.percentile(latencies, 50)))
                    row.p99_ms.append(1000 * float(np.percentile(latencies, 99)))
                    bars.advance(bar)
    return table, raw


def show(table: dict[tuple[str, int], Row], raw: list[tuple[float, float, float]], batch: int) -> list[list[str]]:
    """Print the table; its rows as text."""
    rows = [
        [
            kind,
            str(callers),
            f"{statistics.median(row.cpu):.2f}",
            f"{statistics.median(row.wall):.2f}",
            f"{statistics.median(row.p50_ms):.1f}",
            f"{statistics.median(row.p99_ms):.1f}",
        ]
        for (kind, callers), row in table.items()
    ]
    shown = Table(*_COLUMNS, title=f"serving against onnxruntime on one core, medians of {len(raw)} rounds")
    for cells in rows:
        shown.add_row(*cells)
    console = Console()
    console.print(shown)
    cpu, speed, alone = (statistics.median(values) for values in zip(*raw, strict=True))
    console.print(
        f"the bound: {speed:.0f} images/s, {1000 * cpu:.2f} ms of CPU an image in batches of {batch}; "
        f"a run of one image takes {alone:.2f} ms"
    )
    console.print(f"{_processor()}, onnxruntime {ort.__version__}, Python {platform.python_version()}")
    return rows


_COLUMNS = ("call", "callers", "CPU / raw", "wall / raw", "p50 ms", "p99 ms")


def _processor() -> str:
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return f"{len(models)} cores of {models[0].split(':')[1].strip()}" if models else platform.processor()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5, help="turns of bound and service (5)")
    arguments.add_argument("--seconds", type=float, default=4.0, help="of each measurement (4)")
    arguments.add_argument("--csv", type=Path, help="write the table there as well")
    given = arguments.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("bench-serving needs two cores: one for the server, one for its callers")
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders(Path(folder))
        graph, encoded, pixels = publish_model(folders)
        os.sched_setaffinity(0, {cores[0]})  # what is started now inherits it
        bound = Bound(graph, pixels)
        with running_inference(folders, INFERENCE_THREADS="1", INFERENCE_POLL_SECONDS="1") as server:
            table, raw = asyncio.run(
                measure(
                    server.address,
                    server.process.pid,
                    bound,
                    encoded,
                    (cores[0], cores[1]),
                    given.rounds,
                    given.seconds,
                )
            )
    rows = show(table, raw, bound.batch)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])


if __name__ == "__main__":
    main()
