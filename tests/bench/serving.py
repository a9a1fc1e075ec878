"""make bench-serving: the service against onnxruntime in a plain loop, the same models, on one core.

Two models: the one that other servers were measured with, over the Open Inference Protocol, and the demo's network
with our own contract. The bound runs the same graph with one intra-op thread in its best batch size, on tensors that
lie ready. Server and bound have one core, the callers another; they take turns within a round, and the table gives
medians over the rounds.

CPU / raw   CPU seconds an input of the server process over the bound's: hardly moved by what else the machine does
wall / raw  inputs a second over the bound's
floor       CPU / raw of the bound with nothing but an empty method of grpc.aio around it, called with the same message
            at the bound's pace: the least that a server on grpc.aio can have
"""

import argparse
import asyncio
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
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
from services.common.pb import open_inference_pb2, prediction_pb2, prediction_pb2_grpc
from services.common.samples import SampleStore
from services.trainer.config import load_config
from services.trainer.plain_models import import_plain
from services.trainer.settings import Settings
from services.trainer.sources import make_source
from tests.bench.backbone import CAMPAIGN, publish_backbone
from tests.bench.echo import METHOD
from tests.bench.peers_model import NAME, SIZE, export_peers_model
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

    def __init__(self, graph: Path, inputs: np.ndarray) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name
        self._inputs = inputs
        self.batch = min(BATCHES, key=lambda batch: self.measure(1.0, batch)[0])

    def measure(self, seconds: float, batch: int = 0) -> tuple[float, float, float]:
        """CPU seconds an input, inputs a second, median milliseconds of a run."""
        batch = batch or self.batch
        self._session.run(None, {self._name: self._inputs[:batch]})
        done, runs = 0, list[float]()
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < seconds:
            first = done % (len(self._inputs) - batch + 1)
            began = time.perf_counter()
            self._session.run(None, {self._name: self._inputs[first : first + batch]})
            runs.append(time.perf_counter() - began)
            done += batch
        spent, passed = time.process_time() - cpu, time.perf_counter() - wall
        return spent / done, done / passed, 1000 * statistics.median(runs)


@dataclass
class Subject:
    """One kind of call and what bounds it."""

    bound: Bound
    call: Callable[[grpc.aio.Channel], Call]
    # What a call sends.
    message: bytes
    rows: dict[int, Row] = field(default_factory=dict)
    raw: list[tuple[float, float, float]] = field(default_factory=list)
    # CPU seconds of an empty call, by callers.
    floor: dict[int, list[float]] = field(default_factory=dict)

    def floor_over_raw(self, callers: int) -> float:
        return 1 + statistics.median(self.floor[callers]) / statistics.median(cpu for cpu, _, _ in self.raw)


def publish_model(folders: Folders) -> tuple[Path, list[bytes], np.ndarray]:
    """The demo's network as a registry version: its graph, encoded images and their pixels uint8 [N, H, W, 3]."""
    settings = Settings(sources_dir=folders.sources_dir)
    config = load_config(CONFIG)
    source = make_source(config.source, settings.data_dir, settings.sources_dir, lambda *_: None)
    samples = SampleStore.open(settings.sources_dir, settings.data_dir, source.source_id)
    version = publish_backbone(folders.registry, config, source, samples, settings)
    ids = samples.ids("pool")[:IMAGES]
    return version / MODEL_FILE, samples.encoded(ids), samples.images(ids)


def predict_calls(encoded: list[bytes]) -> Callable[[grpc.aio.Channel], Call]:
    def calls(channel: grpc.aio.Channel) -> Call:
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

    return calls


def infer_requests(model: str, name: str, datatype: str, inputs: np.ndarray) -> list[bytes]:
    """ModelInfer with one input a call, raw. Serialised beforehand: the callers' core is not what is measured."""
    pb = open_inference_pb2
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=(1, *inputs.shape[1:]))
    # Version 1, since a backbone with a zero head is never promoted.
    return [
        pb.ModelInferRequest(
            model_name=model, model_version="1", inputs=[tensor], raw_input_contents=[row.tobytes()]
        ).SerializeToString()
        for row in inputs
    ]


def infer_calls(requests: list[bytes]) -> Callable[[grpc.aio.Channel], Call]:
    def calls(channel: grpc.aio.Channel) -> Call:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        return lambda number: infer(requests[number % len(requests)], timeout=30)

    return calls


async def load(call: Call, callers: int, seconds: float, pause: float = 0.0) -> tuple[int, float, list[float]]:
    """Answers, seconds and the latency of each, with `callers` that each wait for their answer before the next.

    `pause`: seconds between an answer and the next call.
    """
    latencies: list[float] = []
    began = time.perf_counter()

    async def caller(number: int) -> None:
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            await call(number)
            latencies.append(time.perf_counter() - sent)
            number += callers
            if pause:
                await asyncio.sleep(pause)

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return len(latencies), time.perf_counter() - began, latencies


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of the process and what it started."""
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


@contextmanager
def echo_server() -> Iterator[tuple[str, psutil.Process]]:
    """Its address and process, on the core that this one is bound to."""
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.echo"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}", psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


async def measure_floor(address: str, server: psutil.Process, subject: "Subject", seconds: float) -> None:
    """CPU seconds of an empty call, for each number of callers, at the pace of the bound."""
    _, speed, _ = subject.raw[-1]
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        empty = channel.unary_unary(METHOD)
        for callers in CALLERS:
            before = cpu_seconds(server)
            answers, _, _ = await load(lambda _: empty(subject.message), callers, seconds, pause=callers / speed)
            subject.floor.setdefault(callers, []).append((cpu_seconds(server) - before) / answers)


async def measure(
    address: str,
    pid: int,
    echo: tuple[str, psutil.Process],
    subjects: dict[str, "Subject"],
    cores: tuple[int, int],
    rounds: int,
    seconds: float,
) -> None:
    """Fill the subjects' rows."""
    server = psutil.Process(pid)
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        calls = {kind: subject.call(channel) for kind, subject in subjects.items()}
        for call in calls.values():
            await load(call, 8, 1.0)
        with Progress(transient=True) as bars:
            bar = bars.add_task("measuring", total=rounds * len(subjects) * (1 + len(CALLERS)))
            for _ in range(rounds):
                for kind, subject in subjects.items():
                    os.sched_setaffinity(0, {cores[0]})
                    cpu, speed, _ = subject.bound.measure(seconds)
                    subject.raw.append((cpu, speed, subject.bound.measure(1.0, 1)[2]))
                    os.sched_setaffinity(0, {cores[1]})
                    bars.advance(bar)
                    for callers in CALLERS:
                        before = cpu_seconds(server)
                        answers, passed, latencies = await load(calls[kind], callers, seconds)
                        row = subject.rows.setdefault(callers, Row())
                        row.cpu.append((cpu_seconds(server) - before) / answers / cpu)
                        row.wall.append(answers / passed / speed)
                        row.p50_ms.append(1000 * float(np.percentile(latencies, 50)))
                        row.p99_ms.append(1000 * float(np.percentile(latencies, 99)))
                        bars.advance(bar)
                    await measure_floor(*echo, subject, seconds / 2)


def show(subjects: dict[str, Subject], rounds: int) -> list[list[str]]:
    """Print the table; its rows as text."""
    rows = [
        [
            kind,
            str(callers),
            f"{statistics.median(row.cpu):.2f}",
            f"{subject.floor_over_raw(callers):.2f}",
            _goal(GOALS_CPU, kind, callers),
            f"{statistics.median(row.wall):.2f}",
            _goal(GOALS_WALL, kind, callers),
            f"{statistics.median(row.p50_ms):.1f}",
            f"{statistics.median(row.p99_ms):.1f}",
        ]
        for kind, subject in subjects.items()
        for callers, row in subject.rows.items()
    ]
    shown = Table(*_COLUMNS, title=f"serving against onnxruntime on one core, medians of {rounds} rounds")
    for cells in rows:
        shown.add_row(*cells)
    console = Console()
    console.print(shown)
    for kind, subject in subjects.items():
        cpu, speed, alone = (statistics.median(values) for values in zip(*subject.raw, strict=True))
        console.print(
            f"{kind}: the bound does {speed:.0f} a second, {1000 * cpu:.2f} ms of CPU each in batches of "
            f"{subject.bound.batch}; a run of one takes {alone:.2f} ms"
        )
    console.print(f"{_processor()}, onnxruntime {ort.__version__}, grpcio {grpc.__version__}, Python {_python()}")
    return rows


PEERS, OWN, JPEG = "ModelInfer, peers' model", "ModelInfer, our contract, pixels", "Predict, JPEG bytes"
GOALS_CPU = {(PEERS, 1): 1.4, (PEERS, 8): 1.15, (PEERS, 32): 1.15, (JPEG, 8): 1.25, (JPEG, 32): 1.25}
GOALS_WALL = {(PEERS, 8): 0.92, (PEERS, 32): 0.92}
_COLUMNS = ("call", "callers", "CPU / raw", "floor", "goal", "wall / raw", "goal", "p50 ms", "p99 ms")


def _goal(goals: dict[tuple[str, int], float], kind: str, callers: int) -> str:
    return str(goals.get((kind, callers), ""))


def _python() -> str:
    return platform.python_version()


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
        peers = export_peers_model(Settings().weights_dir, Path(folder) / "peers.onnx")
        folders.registry.promote(NAME, import_plain(folders.registry, NAME, peers))
        rows = np.random.default_rng(0).normal(size=(64, 3, SIZE, SIZE)).astype(np.float32)
        os.sched_setaffinity(0, {cores[0]})  # what is started now inherits it
        own = Bound(graph, pixels)
        floats = infer_requests(NAME, "input", "FP32", rows)
        images = infer_requests(CAMPAIGN, "image", "UINT8", pixels)
        subjects = {
            PEERS: Subject(Bound(peers, rows), infer_calls(floats), floats[0]),
            OWN: Subject(own, infer_calls(images), images[0]),
            JPEG: Subject(own, predict_calls(encoded), encoded[0]),
        }
        with (
            echo_server() as echo,
            running_inference(folders, INFERENCE_THREADS="1", INFERENCE_POLL_SECONDS="1") as server,
        ):
            both = cores[0], cores[1]
            asyncio.run(measure(server.address, server.process.pid, echo, subjects, both, given.rounds, given.seconds))
    table = show(subjects, given.rounds)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *table])


if __name__ == "__main__":
    main()
