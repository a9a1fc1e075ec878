"""make bench-train: what training costs and what it gives.

    python -m tests.bench.train                              every row that can be measured here
    python -m tests.bench.train --row refit --row data-wait  some of them
    python -m tests.bench.train --row finetuned --seed 3     another draw of the 1,500 labels

Accuracy is of CIFAR-10 test images that no label or choice has seen. A fine-tuning that is cut short goes on where it
was when it is asked for again. Rows for a GPU stay "not measured" where there is none, with the command that measures
them; rows of earlier runs stay in the file until they are measured again.
"""

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.common.observability import configure_logging
from services.common.samples import SampleStore
from services.trainer.config import DEFAULT_TAPS, BackboneConfig, CampaignConfig, load_config
from services.trainer.finetune_config import FinetuneConfig
from services.trainer.learners import HeadLearner
from services.trainer.learning import LabelledSamples, SilentWatch
from services.trainer.oracle import read_truth
from services.trainer.settings import Settings
from services.trainer.sources import make_source

VGG16 = Path("examples/vgg16-finetune.yaml")
CSV = Path("docs/benchmarks/train.csv")
LABELS = 1500
FROZEN_SEEDS, FROZEN_TAPS = 5, (1, 2, 3)
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Figure:
    row: str
    figure: str
    goal: str
    measured: str = NOT_MEASURED
    device: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Options:
    seed: int
    epochs: int | None
    tests: int
    labels: int
    # Other work on this machine: only CPU seconds mean anything.
    busy: bool = False
    settings: Settings = field(default_factory=Settings)


class Cifar:
    """Pool and test images of a configuration's source."""

    def __init__(self, config: CampaignConfig, settings: Settings) -> None:
        source = make_source(config.source, settings.data_dir, settings.sources_dir, lambda *_: None)
        self.samples = SampleStore.open(settings.sources_dir, settings.data_dir, source.source_id)
        truth = read_truth(settings.sources_dir, source)
        self.pool, self.tests = list(self.samples.ids("pool")), list(self.samples.ids("test"))
        self.truth = lambda ids: np.array([truth[i] for i in ids], np.int64)

    def drawn(self, labels: int, seed: int) -> list[str]:
        return [self.pool[i] for i in np.random.default_rng(seed).permutation(len(self.pool))[:labels]]


# ---- accuracy -----------------------------------------------------------------------------------------


def frozen(options: Options) -> Figure:
    """A logistic head on the frozen network, five seeds: with the default taps, and in the detail with others."""
    config = load_config(VGG16)
    config = config.model_copy(update={"source": _whole(config)})
    # A stage's columns do not depend on how many are read, and the last stages are the last columns.
    backbones = {taps: _backbone(_with_taps(config, taps), options.settings) for taps in FROZEN_TAPS}
    cifar, stored = Cifar(config, options.settings), dict[str, np.ndarray]()
    tests = cifar.tests[: options.tests]
    draws = [cifar.drawn(options.labels, seed) for seed in range(FROZEN_SEEDS)]
    _embed(backbones[max(FROZEN_TAPS)], cifar, sorted({*tests, *(i for draw in draws for i in draw)}), stored)
    told = {}
    for taps, backbone in backbones.items():
        rows = {i: row[-backbone.embedding_size :] for i, row in stored.items()}
        found = []
        for seed, ids in enumerate(draws):
            head = _fitted(rows, ids, cifar.truth(ids), seed)
            right = head.probabilities(np.stack([rows[i] for i in tests])).argmax(axis=1) == cifar.truth(tests)
            found.append(100 * float(right.mean()))
        told[taps] = f"{statistics.mean(found):.1f}% ± {statistics.stdev(found):.1f}"
    every = ", ".join(f"last {taps} {figure}" for taps, figure in told.items())
    default = DEFAULT_TAPS["vgg16"]
    detail = f"{options.labels} random labels of all 50,000, {len(tests)} test images; default taps {default}; {every}"
    return Figure(**FROZEN, measured=told[default], detail=detail)


def _with_taps(config: CampaignConfig, taps: int) -> CampaignConfig:
    backbone = BackboneConfig.model_validate({**config.backbone.model_dump(), "taps": taps})
    return config.model_copy(update={"backbone": backbone})


def finetuned(options: Options) -> Figure:
    config = load_config(VGG16)
    how = config.learner.finetune
    how = how.model_copy(update={"epochs": options.epochs or how.epochs})
    accuracy, detail = _trained_accuracy(config, how, options.labels, options)
    return Figure(**FINETUNED, measured=f"{100 * accuracy:.1f}%", detail=detail)


def full_pool(options: Options) -> Figure:
    config = load_config(VGG16)
    how = config.learner.finetune.model_copy(
        update={"stages": "all", "epochs": options.epochs or 30, "batch_size": 128, "ema": 0.999, "device": "cuda"}
    )
    accuracy, detail = _trained_accuracy(config, how, None, options)
    return Figure(**FULL_POOL, measured=f"{100 * accuracy:.1f}%", detail=detail)


def _trained_accuracy(
    config: CampaignConfig, how: FinetuneConfig, labels: int | None, options: Options
) -> tuple[float, str]:
    """One training, as the learner's last one; accuracy on test images, and how it was reached."""
    from services.common.files import digest
    from services.trainer.pretrained import embed
    from services.trainer.training.checkpoint import Checkpoints
    from services.trainer.training.loop import Labelled, train_network
    from services.trainer.training.pixels import decoded
    from tests.bench.training_rate import show_progress

    cifar = Cifar(config.model_copy(update={"source": _whole(config)}), options.settings)
    ids = cifar.drawn(labels or len(cifar.pool), options.seed)
    state = options.settings.cache_dir / "bench-train"
    key = digest([ids, how.model_dump(mode="json"), options.seed, config.backbone.model_dump(mode="json")])
    images = decoded(cifar.samples.images, ids, state, 2**31, SilentWatch())
    labelled = Labelled(images, cifar.truth(ids), 10, np.arange(len(ids)))
    cpu = time.process_time()
    with show_progress() as tell:
        trained = train_network(
            _backbone(config, options.settings),
            labelled,
            how,
            (options.seed, 0),
            tell,
            Checkpoints(state, key).training(0),
        )
    cpu = time.process_time() - cpu
    tests = cifar.tests[: options.tests]
    right = 0
    for first in range(0, len(tests), 256):
        some = tests[first : first + 256]
        logits = embed(trained.net, cifar.samples.images(some)) @ trained.weights.T + trained.biases
        right += int((logits.argmax(axis=1) == cifar.truth(some)).sum())
    detail = (
        f"{len(ids)} labels, seed {options.seed}, {len(tests)} test images; stages {how.stages}, {how.epochs} epochs, "
        f"{how.precision}; {cpu:.0f} CPU s in the last session, {trained.notes['images_per_second']:g} images/s"
    )
    return right / len(tests), detail


# ---- time ---------------------------------------------------------------------------------------------


def refit(options: Options) -> Figure:
    """A round's new head: the labelled rows from 50,000 stored embeddings, cross-validation, the fit itself."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 50_000)
    centres = rng.normal(size=(10, 1280))
    # As far apart as CIFAR-10's classes in a frozen network: about two of three are told right.
    stored = (0.11 * centres[truth] + rng.normal(size=(50_000, 1280))).astype(np.float16)
    ids = tuple(map(str, range(len(truth))))
    rows = {i: place for place, i in enumerate(ids)}
    drawn = rng.permutation(len(ids))[:LABELS]
    labelled = LabelledSamples(tuple(ids[i] for i in drawn), truth[drawn], np.arange(LABELS) % 10 == 0)
    learner = HeadLearner(
        _NoBackbone(),  # type: ignore[arg-type]
        load_config(Path("examples/cifar10-demo.yaml")).learner,
        lambda some: stored[[rows[i] for i in some]].astype(np.float32),
        threads=2,
    )
    seconds = []
    for seed in range(5):
        started, cpu = time.perf_counter(), time.process_time()
        model = learner.fit(labelled, 10, seed, SilentWatch())
        seconds.append((time.perf_counter() - started, time.process_time() - cpu))
    wall, spent = (statistics.median(times) for times in zip(*seconds, strict=True))
    told = f"{spent:.1f} CPU s" if options.busy else f"{wall:.2f} s"
    detail = (
        f"1,280 dimensions, C chosen from 4 by 5 folds; medians of five fits: {wall:.2f} s, {spent:.2f} CPU s; "
        f"out-of-fold accuracy {100 * model.notes['out_of_fold_accuracy']:.0f}%"
    )
    return Figure(**REFIT, measured=told, device="2 threads", detail=detail)


def data_wait(options: Options) -> Figure:
    """Share of a fine-tuning's time in which the network waits for images."""
    from tests.bench.training_rate import short_training

    config = load_config(VGG16)
    cifar = Cifar(config, options.settings)
    ids = cifar.drawn(128, options.seed)
    how = config.learner.finetune.model_copy(update={"epochs": 1})
    trained = short_training(
        _backbone(config, options.settings), cifar.samples.images(ids), cifar.truth(ids), how, options.seed
    )
    share = trained.notes["data_wait_share"]
    return Figure(**DATA_WAIT, measured=f"{100 * share:.2f}%", detail=f"VGG16 at 64 px, {how.precision}, 128 images")


def gpu_rate(options: Options) -> Figure:
    from tests.bench.training_rate import compared_with_bare_loop

    config = load_config(VGG16)
    how = config.learner.finetune.model_copy(
        update={"stages": "all", "batch_size": 128, "epochs": 1, "device": "cuda", "precision": "bf16"}
    )
    cifar = Cifar(config.model_copy(update={"source": _whole(config)}), options.settings)
    ids = cifar.drawn(25_600, options.seed)
    backbone = _backbone(config, options.settings)
    ours, bare = compared_with_bare_loop(backbone, cifar.samples.images(ids), cifar.truth(ids), how)
    detail = f"VGG16 at 64 px, bf16, batches of 128: {ours:,.0f} images/s, bare loop {bare:,.0f}"
    return Figure(**GPU_RATE, measured=f"{ours / bare:.2f}", detail=detail)


def gpu_campaign(options: Options) -> Figure:
    from tests.bench.training_campaign import ten_rounds

    seconds, accuracy = ten_rounds(load_config(VGG16), options.settings)
    total = sum(seconds.values())
    detail = ", ".join(f"{phase} {s:.1f} s" for phase, s in sorted(seconds.items(), key=lambda it: -it[1]))
    return Figure(**GPU_CAMPAIGN, measured=f"{total:.0f} s", detail=f"{detail}; {100 * accuracy:.1f}% at the end")


# ---- parts --------------------------------------------------------------------------------------------


def _backbone(config: CampaignConfig, settings: Settings):
    from services.trainer.backbones import build
    from services.trainer.pretrained import use_threads

    use_threads(settings.thread_count)
    size = config.source.size
    return build(config.backbone, size, size, settings.weights_dir, config.seed, SilentWatch())


def _whole(config: CampaignConfig):
    """All 50,000 pool and 10,000 test images."""
    whole = {split: getattr(config.source, split).model_copy(update={"limit": None}) for split in ("pool", "test")}
    return config.source.model_copy(update=whole)


def _embed(backbone, cifar: Cifar, ids: Sequence[str], stored: dict[str, np.ndarray]) -> None:
    from services.trainer.pretrained import embed

    for first in range(0, len(ids), 256):
        some = ids[first : first + 256]
        stored |= dict(zip(some, embed(backbone.net, cifar.samples.images(some)), strict=True))


def _fitted(stored: dict[str, np.ndarray], ids: Sequence[str], truth: np.ndarray, seed: int):
    from services.trainer.heads import HEADS, HeadTask

    labelled = LabelledSamples(tuple(ids), truth, np.ones(len(ids), bool))
    rows = np.stack([stored[i] for i in ids])
    return HEADS["logistic"].fit(HeadTask(rows, labelled, 10, seed, SilentWatch())).head


class _NoBackbone:
    """For a fit whose model nobody exports."""

    def card(self, watch):
        from services.trainer.graph_cache import GraphCard
        from tests.fakes import BACKBONE

        return GraphCard(embedding_id="bench", embedding_size=1280, backbone=BACKBONE, height=32, width=32, sha256="")

    def model(self, head, out_of_fold, notes, watch):
        from services.trainer.learning import FittedModel
        from tests.fakes import BACKBONE

        size = len(head.mean)
        return FittedModel(head, BACKBONE, "bench", size, True, Path("none"), out_of_fold, notes)


FROZEN = {"row": "frozen", "figure": "VGG16 at 64 px, frozen, 1,500 random labels, 5 seeds", "goal": ">= 72.5%"}
FINETUNED = {"row": "finetuned", "figure": "VGG16 at 64 px, fine-tuned on 1,500 random labels", "goal": ">= 77%"}
REFIT = {"row": "refit", "figure": "new head on 50,000 x 1,280 at 1,500 labels", "goal": "<= 1 s on 2 cores"}
DATA_WAIT = {"row": "data-wait", "figure": "share of step time spent waiting for data", "goal": "about 0"}
FULL_POOL = {"row": "full-pool", "figure": "VGG16 at 64 px, fine-tuned on all 50,000 labels", "goal": ">= 92%"}
GPU_RATE = {"row": "gpu-rate", "figure": "GPU: images/s over a bare torch loop", "goal": ">= 0.9"}
GPU_CAMPAIGN = {
    "row": "gpu-campaign",
    "figure": "GPU: a 10-round fine-tuning campaign, VGG16 at 64 px",
    "goal": "measured",
}

ROWS: dict[str, tuple[dict[str, str], Callable[[Options], Figure]]] = {
    "frozen": (FROZEN, frozen),
    "finetuned": (FINETUNED, finetuned),
    "refit": (REFIT, refit),
    "data-wait": (DATA_WAIT, data_wait),
    "full-pool": (FULL_POOL, full_pool),
    "gpu-rate": (GPU_RATE, gpu_rate),
    "gpu-campaign": (GPU_CAMPAIGN, gpu_campaign),
}
NEED_A_GPU = {"full-pool", "gpu-rate", "gpu-campaign"}


def device_name() -> str:
    """ "" without a GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def measured(name: str, options: Options, gpu: str) -> Figure:
    measure = ROWS[name][1]
    if name in NEED_A_GPU and not gpu:
        return not_measured()[name]
    figure = measure(options)
    return figure if figure.device else Figure(**{**asdict(figure), "device": gpu or _cpu()})


def not_measured() -> dict[str, Figure]:
    """Every row with the command that measures it."""
    return {
        name: Figure(
            **about,
            detail=f"{'needs a GPU: ' if name in NEED_A_GPU else ''}python -m tests.bench.train --row {name}",
        )
        for name, (about, _) in ROWS.items()
    }


def _cpu() -> str:
    return f"{Settings().thread_count} threads of a {platform.machine()} CPU"


def read(path: Path) -> dict[str, Figure]:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["row"]: Figure(**row) for row in csv.DictReader(file)}


def write(path: Path, figures: dict[str, Figure]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, list(asdict(next(iter(figures.values())))))
        rows.writeheader()
        rows.writerows(asdict(figures[name]) for name in ROWS if name in figures)


def show(figures: dict[str, Figure]) -> None:
    table = Table("figure", "goal", "measured", "device", "how", title="make bench-train")
    for name in ROWS:
        if name in figures:
            it = figures[name]
            table.add_row(*(escape(part) for part in (it.figure, it.goal, it.measured, it.device, it.detail)))
    Console().print(table)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--row", action="append", choices=list(ROWS), help="measure this one; may be repeated")
    arguments.add_argument("--seed", type=int, default=0, help="of the draw of labels and the training")
    arguments.add_argument("--epochs", type=int, help="of fine-tuning, instead of the example's")
    arguments.add_argument("--labels", type=int, default=LABELS, help="how many are drawn")
    arguments.add_argument("--tests", type=int, default=10_000, help="test images, those with the smallest ids")
    arguments.add_argument("--busy", action="store_true", help="other work is going on: tell CPU seconds, not time")
    arguments.add_argument("--csv", type=Path, default=CSV, help=f"where rows are kept; default {CSV}")
    given = arguments.parse_args()
    configure_logging("WARNING", "console")
    options = Options(given.seed, given.epochs, given.tests, given.labels, given.busy)
    gpu, figures = device_name(), not_measured() | read(given.csv)
    for name in given.row or ROWS:
        found = measured(name, options, gpu)
        # What a GPU measured elsewhere is not forgotten because there is none here.
        if found.measured != NOT_MEASURED:
            figures[name] = found
        write(given.csv, figures)
    show(figures)


if __name__ == "__main__":
    main()
