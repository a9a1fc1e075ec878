"""make bench-heads: accuracy, calibration and CPU seconds of every head on CIFAR-10, the same random labels for each.

Seeds 2, 3 and 4: the heads' constants were chosen while looking at 0 and 1. Labels are drawn at random, so all of them
fit the temperature. CPU seconds are one fit with its cross-validation, on one thread.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from services.common.observability import configure_logging
from services.common.samples import SampleStore
from services.trainer.config import load_config
from services.trainer.evaluation import evaluate
from services.trainer.heads import HEADS, HeadTask, UnlabelledPool
from services.trainer.learning import LabelledSamples, SilentWatch
from services.trainer.oracle import read_truth
from services.trainer.settings import Settings
from services.trainer.sources import make_source
from tests.bench.accuracy import embed

CONFIGS = (Path("examples/cifar10-demo.yaml"), Path("examples/cifar10-vgg16.yaml"))
POOL = 10_000
LABELS = (100, 500, 1500)
SEEDS = (2, 3, 4)


@dataclass(frozen=True)
class Embedded:
    """Rows of the pool and of the test samples: (N, D) and (N,) each."""

    pool_ids: list[str]
    pool: np.ndarray
    truth: np.ndarray
    tests: np.ndarray
    tests_truth: np.ndarray


@dataclass(frozen=True)
class Result:
    backbone: str
    head: str
    labels: int
    seed: int
    accuracy: float
    ece: float
    nll: float
    out_of_fold_accuracy: float
    temperature: float
    cpu_seconds: float


def read(path: Path) -> tuple[str, Embedded]:
    """The backbone's name, and everything through a real inference process."""
    settings, config = Settings(), load_config(path)
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    source = make_source(config.source, settings.data_dir, settings.sources_dir, lambda *_: None)
    samples = SampleStore.open(settings.sources_dir, settings.data_dir, source.source_id)
    rows, truth = embed(config, source, samples, settings), read_truth(settings.sources_dir, source)
    pool, tests = list(samples.ids("pool"))[:POOL], list(samples.ids("test"))

    def of(ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([rows[i] for i in ids]), np.array([truth[i] for i in ids])

    return config.backbone.name, Embedded(pool, *of(pool), *of(tests))


def measure(backbone: str, at: Embedded, labels: Sequence[int], seeds: Sequence[int]) -> Iterator[Result]:
    row = {sample: number for number, sample in enumerate(at.pool_ids)}
    for name, method in HEADS.items():
        for count in labels:
            for seed in seeds:
                drawn = np.random.default_rng(seed).permutation(len(row))[:count]
                samples = LabelledSamples(tuple(at.pool_ids[i] for i in drawn), at.truth[drawn], np.ones(count, bool))
                rest = tuple(i for i in at.pool_ids if i not in set(samples.ids))
                pool = UnlabelledPool(rest, lambda ids: at.pool[[row[i] for i in ids]])
                started = time.process_time()
                with threadpool_limits(limits=1):
                    fit = method.fit(HeadTask(at.pool[drawn], samples, 10, seed, SilentWatch(), pool=pool))
                seconds = time.process_time() - started
                found = evaluate(fit.head.probabilities(at.tests), at.tests_truth).metrics
                judged = fit.notes["out_of_fold_accuracy"]
                yield Result(
                    backbone,
                    name,
                    count,
                    seed,
                    found["accuracy"],
                    found["ece"],
                    found["nll"],
                    judged,
                    fit.head.temperature,
                    seconds,
                )


def show(results: Sequence[Result], labels: Sequence[int]) -> None:
    for backbone in dict.fromkeys(r.backbone for r in results):
        table = Table("head", *(f"{n} labels" for n in labels), title=f"{backbone}: test accuracy / ECE, %; CPU s")
        for head in HEADS:
            cells = []
            for count in labels:
                of = [r for r in results if (r.backbone, r.head, r.labels) == (backbone, head, count)]
                accuracy, ece, cpu = (
                    statistics.mean(getattr(r, key) for r in of) for key in ("accuracy", "ece", "cpu_seconds")
                )
                cells.append(f"{100 * accuracy:.1f} / {100 * ece:.1f}; {cpu:.1f}")
            table.add_row(head, *cells)
        Console().print(table)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", type=Path, action="append", help="campaigns whose backbones are measured")
    arguments.add_argument("--labels", type=int, action="append")
    arguments.add_argument("--csv", type=Path, help="write every result to this file")
    given = arguments.parse_args()
    configure_logging("WARNING", "console")
    labels = given.labels or LABELS
    results = [r for path in given.config or CONFIGS for r in measure(*read(path), labels, SEEDS)]
    show(results, labels)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            rows = csv.DictWriter(file, list(asdict(results[0])))
            rows.writeheader()
            rows.writerows(asdict(r) for r in results)


if __name__ == "__main__":
    main()
