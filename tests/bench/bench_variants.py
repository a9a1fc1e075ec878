"""Faster variants of a campaign's backbone: do they pass the trainer's gate, and what do they cost an image?

    python -m tests.bench.bench_variants [CONFIG] [--labels 1000] [--device cpu|cuda]

A head is fitted on randomly drawn labels, the exporter's own gate compares the variants, and each graph is then run in
one thread, in turns with the others, in batches of 32 and of 1. With --device cuda the table gives wall time and has
a row for each setting of the CUDA provider too.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from services.common.samples import SampleStore
from services.inference.cuda_runs import CudaOptions, Runs, buckets
from services.inference.runtime import Device, Runtime
from services.trainer.config import load_config
from services.trainer.export import OnnxExporter
from services.trainer.learning import FittedModel, LabelledSamples, SilentWatch, VersionFacts
from services.trainer.oracle import read_truth
from services.trainer.settings import Settings
from services.trainer.sources import make_source
from services.trainer.variants import Variants
from tests.bench.backbone import learner

CONFIG = Path("examples/cifar10-demo.yaml")
KINDS = ("fp16", "int8")
SIZES = buckets([32])
IMAGES = 128
CUDA_SETTINGS = {
    "as configured by default": CudaOptions(),
    "no CUDA graphs": CudaOptions(graphs=False),
    "no IOBinding": CudaOptions(io_binding=False),
    "EXHAUSTIVE search": CudaOptions(conv_algo_search="EXHAUSTIVE"),
    "NHWC": CudaOptions(prefer_nhwc=True),
    "TF32": CudaOptions(tf32=True),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("config", type=Path, nargs="?", default=CONFIG)
    arguments.add_argument("--labels", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--csv", type=Path)
    given = arguments.parse_args()
    config, settings, console = load_config(given.config), Settings(), Console()
    source = make_source(config.source, settings.data_dir, settings.sources_dir, lambda *_: None)
    samples = SampleStore.open(settings.sources_dir, settings.data_dir, source.source_id)
    truth = read_truth(settings.sources_dir, source)
    embeddings: dict[str, np.ndarray] = {}
    learns = learner(config, source, samples, settings, embeddings)
    graph = learns.initial_model(len(source.classes), SilentWatch()).embedding_graph

    pool, test = samples.ids("pool"), samples.ids("test")
    drawn = np.random.default_rng(0).choice(len(pool), given.labels, replace=False)
    ids = tuple(pool[i] for i in drawn)
    network = Runtime("cpu", 1).network(graph.read_bytes(), SIZES)
    embeddings.update(zip(ids, embedded(network, samples.images(ids)), strict=True))
    # As in a campaign, a tenth of the labels is the random slice.
    labelled = LabelledSamples(ids, np.array([truth[i] for i in ids]), np.arange(len(ids)) % 10 == 0)
    model = learns.fit(labelled, len(source.classes), 0, SilentWatch())

    pictures, answers = samples.images(test), np.array([truth[i] for i in test])
    rows = [{"graph": "fp32", "accuracy": accuracy(model, network, pictures, answers)}]
    graphs = {"fp32": graph}
    for kind, check in gate(model, labelled, source.classes, samples, pool, settings).items():
        found = sorted(graph.parent.glob(f"{model.embedding_id}.{kind}-*.onnx"), key=lambda path: path.stat().st_mtime)
        graphs[kind] = found[-1]
        variant = Runtime("cpu", 1).network(found[-1].read_bytes(), SIZES)
        rows.append({"graph": kind, "accuracy": accuracy(model, variant, pictures, answers), **check})
    timed = timings(graphs, given.device, samples.images(pool[:IMAGES]), given.rounds)
    show(console, f"{config.backbone.name}, {given.labels} labels, {given.device}", rows, timed)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([["graph", "setting", "batch", "ms an image"], *timed])


def gate(model: FittedModel, labelled: LabelledSamples, classes: tuple[str, ...], samples, pool, settings) -> dict:
    """What the exporter says of each variant."""
    shown = sorted([*pool, *samples.ids("test")])[:256]
    variants = Variants(KINDS, pool, samples.images, settings.thread_count)
    exporter = OnnxExporter(lambda: samples.images(shown), samples.images, settings.thread_count, variants)
    with tempfile.TemporaryDirectory() as folder:
        facts = VersionFacts("bench-1", 1, 1, classes, len(labelled), {}, labelled)
        manifest = exporter.stage(model, facts, {}, Path(folder) / "1", SilentWatch())
    return {kind: check.model_dump() for kind, check in manifest.variants.items()}


def embedded(network: Runs, images: np.ndarray) -> np.ndarray:
    return np.concatenate([network.run(("embedding",), images[i : i + 32])[0] for i in range(0, len(images), 32)])


def accuracy(model: FittedModel, network: Runs, images: np.ndarray, classes: np.ndarray) -> float:
    return float((model.head.probabilities(embedded(network, images)).argmax(axis=1) == classes).mean())


def timings(graphs: dict[str, Path], device: Device, images: np.ndarray, rounds: int) -> list[tuple]:
    """(graph, setting, batch, median ms an image): CPU time on a CPU, wall time on a GPU."""
    clock: Callable[[], float] = time.process_time if device == "cpu" else time.perf_counter
    settings = {"": CudaOptions()} if device == "cpu" else CUDA_SETTINGS
    networks = {}
    for setting, options in settings.items():
        runtime = Runtime(device, 1, cuda=options)
        if device == "cuda" and not runtime.on_cuda:
            raise SystemExit(f"no CUDA: {runtime.why}")
        for name, path in graphs.items():
            networks[name, setting] = runtime.network(path.read_bytes(), SIZES)
    spent: dict[tuple[str, str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for (name, setting), network in networks.items():
            for batch in (32, 1):
                started = clock()
                for first in range(0, len(images), batch):
                    network.run(("embedding",), images[first : first + batch])
                if turn:  # the first is the warm-up
                    spent.setdefault((name, setting, batch), []).append((clock() - started) / len(images) * 1000)
    return [(*key, round(statistics.median(values), 3)) for key, values in spent.items()]


def show(console: Console, title: str, rows: list[dict], timed: list[tuple]) -> None:
    checks = Table("graph", "agreement", "random slice", "test accuracy", "largest", "refused", title=title)
    for row in rows:
        agreed, largest = row.get("agreement"), row.get("largest_activation")
        checks.add_row(
            row["graph"],
            "" if agreed is None else f"{agreed:.2%} of {row['images']}",
            f"{row['random_slice_correct']} / {row['random_slice_correct_fp32']}" if "random_slice" in row else "",
            f"{row['accuracy']:.2%}",
            f"{largest:,.0f}" if largest else "",
            row.get("refused", ""),
        )
    times = Table("graph", "setting", "batch", "ms an image")
    for name, setting, batch, value in timed:
        times.add_row(name, setting, str(batch), f"{value:.3f}")
    console.print(checks, times)


if __name__ == "__main__":
    main()
