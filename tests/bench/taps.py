"""make bench-taps: which stages of a frozen backbone are worth it, with and without the mirrored image, on CIFAR-10.

The logistic head on labels drawn at random from the campaign's pool. Only drawn and test images are embedded, by torch
rather than by inference: the exporter's parity check holds both to the same numbers. All stages are read in one pass.
"""

import argparse
import csv
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from threadpoolctl import threadpool_limits

from services.common.errors import BadConfig
from services.common.observability import configure_logging
from services.common.samples import SampleStore
from services.trainer.backbones import Backbone, build
from services.trainer.config import CampaignConfig, load_config
from services.trainer.evaluation import evaluate
from services.trainer.heads import HEADS, HeadTask
from services.trainer.learning import LabelledSamples, SilentWatch
from services.trainer.oracle import read_truth
from services.trainer.pretrained import embed, use_threads
from services.trainer.settings import Settings
from services.trainer.sources import make_source

CONFIGS = (Path("examples/cifar10-vgg16.yaml"), Path("examples/cifar10-demo.yaml"))
LABELS = (500, 1000, 1500)
SEEDS = 3
TESTS = 2000
_BATCH = 128


@dataclass(frozen=True)
class Result:
    backbone: str
    # How many last stages.
    taps: int
    flip: bool
    dimensions: int
    labels: int
    seed: int
    accuracy: float
    nll: float


@dataclass(frozen=True)
class Stages:
    """Embeddings of all stages side by side, as they are and averaged with the mirrored image's."""

    backbone: str
    # Where each stage begins, and the end of the last one.
    edges: tuple[int, ...]
    rows: Mapping[bool, Mapping[str, np.ndarray]]  # flip -> sample id -> (D,)
    truth: Mapping[str, int]

    def of(self, ids: Sequence[str], taps: int, flip: bool) -> np.ndarray:
        """The last `taps` stages: (n, d)"""
        return np.stack([self.rows[flip][i] for i in ids])[:, self.edges[-1 - taps] :]


def drawn(pool: Sequence[str], seed: int) -> list[str]:
    """The labels of a seed, in the order of buying: fewer labels are the first of them."""
    order = np.random.default_rng(seed).permutation(len(pool))[: max(LABELS)]
    return [pool[i] for i in order]


def read(config: CampaignConfig, settings: Settings, seeds: int, flips: bool) -> tuple[Stages, list[str], list[str]]:
    """Every stage of the samples that are needed; the pool's ids, and those of the test samples."""
    source = make_source(config.source, settings.data_dir, settings.sources_dir, lambda *_: None)
    samples = SampleStore.open(settings.sources_dir, settings.data_dir, source.source_id)
    pool, tests = list(samples.ids("pool")), list(samples.ids("test"))[:TESTS]
    wanted = sorted({i for seed in range(seeds) for i in drawn(pool, seed)} | set(tests))

    def made(taps: int) -> Backbone:
        chosen = config.backbone.model_copy(update={"taps": taps, "flip": False})
        return build(chosen, source.height, source.width, settings.weights_dir, config.seed, SilentWatch())

    widths = _widths(made)
    net = made(len(widths)).net
    plain, mirrored = {}, {}
    for first in track(range(0, len(wanted), _BATCH), config.backbone.name, console=Console(stderr=True)):
        ids = wanted[first : first + _BATCH]
        images = samples.images(ids)
        rows = embed(net, images)
        plain |= zip(ids, rows, strict=True)
        if flips:
            mirrored |= zip(ids, (rows + embed(net, images[:, :, ::-1])) / 2, strict=True)
    edges = (0, *(widths[-1] - width for width in reversed(widths[:-1])), widths[-1])
    truth = read_truth(settings.sources_dir, source)
    rows = {False: plain, **({True: mirrored} if flips else {})}
    return Stages(config.backbone.name, edges, rows, truth), pool, tests


def _widths(made: Callable[[int], Backbone]) -> list[int]:
    """D of the last stage, of the last two, and so on to all."""
    widths = []
    while True:
        try:
            widths.append(made(len(widths) + 1).embedding_size)
        except BadConfig:  # there is no stage before those
            return widths


def measure(at: Stages, pool: Sequence[str], tests: Sequence[str], seeds: int) -> Iterator[Result]:
    of_tests = np.array([at.truth[i] for i in tests])
    for taps in range(1, len(at.edges)):
        for flip in at.rows:
            test_rows = at.of(tests, taps, flip)
            for seed in range(seeds):
                for count in LABELS:
                    ids = drawn(pool, seed)[:count]
                    classes = np.array([at.truth[i] for i in ids])
                    labelled = LabelledSamples(tuple(ids), classes, np.ones(count, bool))
                    task = HeadTask(at.of(ids, taps, flip), labelled, 10, seed, SilentWatch())
                    with threadpool_limits(limits=1):
                        head = HEADS["logistic"].fit(task).head
                    found = evaluate(head.probabilities(test_rows), of_tests).metrics
                    size = test_rows.shape[1]
                    yield Result(at.backbone, taps, flip, size, count, seed, found["accuracy"], found["nll"])


def show(results: Sequence[Result]) -> None:
    for backbone in dict.fromkeys(r.backbone for r in results):
        of = [r for r in results if r.backbone == backbone]
        table = Table("last stages", "D", *(f"{n} labels" for n in LABELS), title=f"{backbone}: test accuracy, %")
        for taps, flip, size in dict.fromkeys((r.taps, r.flip, r.dimensions) for r in of):
            means = [
                100 * statistics.mean(r.accuracy for r in of if (r.taps, r.flip, r.labels) == (taps, flip, count))
                for count in LABELS
            ]
            table.add_row(f"{taps}{', flip' if flip else ''}", str(size), *(f"{mean:.1f}" for mean in means))
        Console().print(table)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", type=Path, action="append", help="campaigns whose backbones are measured")
    arguments.add_argument("--csv", type=Path, help="write every result to this file")
    arguments.add_argument("--seeds", type=int, default=SEEDS, help="draws of the labels, from 0 on")
    arguments.add_argument("--no-flip", action="store_true", help="half the time: without the mirrored images")
    given = arguments.parse_args()
    configure_logging("WARNING", "console")
    settings = Settings()
    use_threads(settings.thread_count)
    results = []
    for path in given.config or CONFIGS:
        read_in = read(load_config(path), settings, given.seeds, not given.no_flip)
        results += measure(*read_in, given.seeds)
    show(results)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            rows = csv.DictWriter(file, list(asdict(results[0])))
            rows.writeheader()
            rows.writerows(asdict(r) for r in results)


if __name__ == "__main__":
    main()
