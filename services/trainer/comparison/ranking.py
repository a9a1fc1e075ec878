"""What a grid search found: every setting with its interval and its paired difference to the default, best first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.trainer.comparison.axes import Setting
from services.trainer.comparison.cells import CellResult
from services.trainer.comparison.grid import GridConfig
from services.trainer.comparison.statistics import Paired, interval_of_mean, paired_difference


@dataclass(frozen=True)
class Trial:
    """One setting over its seeds."""

    setting: Setting
    is_default: bool
    seeds: tuple[int, ...]
    # (n,) by seed: accuracy on the validation parts, which ranks; log-loss there, which breaks ties.
    validation: np.ndarray
    log_loss: np.ndarray
    # (n,) accuracy on the test samples: reported, and looked at by nobody who chooses.
    test: np.ndarray
    # Validation accuracy less the default's, over the seeds that both have; None when there are none.
    gain: Paired | None
    # Mean CPU seconds of all fits of one seed, those of the validation included.
    cpu_seconds: float

    @property
    def name(self) -> str:
        return f"{self.setting.backbone_name}, {self.setting.learner_name}"

    def interval(self) -> tuple[float, float]:
        """95% t interval of the mean validation accuracy; the mean itself for one seed."""
        low, high = interval_of_mean(self.validation[:, None])
        return float(low[0]), float(high[0])


@dataclass(frozen=True)
class Ranking:
    # Best first; those that miss a seed after all others.
    trials: tuple[Trial, ...]
    # Trials of which the best one's paired interval does not show that it is better, itself not counted.
    level_with_best: int

    @property
    def best(self) -> Trial:
        return self.trials[0]

    @property
    def default(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.is_default), None)


def rank(config: GridConfig, results: Sequence[CellResult]) -> Ranking | None:
    """By mean validation accuracy, then log-loss, then the order of the grid. None without a result."""
    by_setting: dict[tuple[str, str], dict[int, CellResult]] = {}
    for result in results:
        by_setting.setdefault((result.cell.backbone, result.cell.head), {})[result.cell.seed] = result
    settings = [it for it in config.settings if (it.backbone_name, it.learner_name) in by_setting]
    if not settings:
        return None
    default = by_setting.get((config.settings[0].backbone_name, config.settings[0].learner_name), {})
    trials = [
        _trial(it, it is config.settings[0], by_setting[it.backbone_name, it.learner_name], default) for it in settings
    ]
    most = max(len(trial.seeds) for trial in trials)
    trials.sort(key=lambda t: (len(t.seeds) < most, -round(t.validation.mean(), 9), t.log_loss.mean()))
    return Ranking(tuple(trials), sum(_level(trials[0], other) for other in trials[1:]))


def _trial(setting: Setting, is_default: bool, runs: dict[int, CellResult], default: dict[int, CellResult]) -> Trial:
    seeds = tuple(sorted(runs))
    both = [seed for seed in seeds if seed in default]
    return Trial(
        setting=setting,
        is_default=is_default,
        seeds=seeds,
        validation=_validation([runs[s] for s in seeds]),
        log_loss=np.array([v.log_loss for s in seeds if (v := runs[s].validation) is not None]),
        test=np.array([runs[s].points[-1].accuracy for s in seeds]),
        gain=paired_difference(_validation([runs[s] for s in both]), _validation([default[s] for s in both]))
        if both
        else None,
        cpu_seconds=float(np.mean([_cpu_seconds(runs[s]) for s in seeds])),
    )


def _validation(runs: Sequence[CellResult]) -> np.ndarray:
    return np.array([run.validation.accuracy for run in runs if run.validation is not None])


def _cpu_seconds(run: CellResult) -> float:
    return run.points[-1].fit_cpu_seconds + (0.0 if run.validation is None else run.validation.cpu_seconds)


def _level(best: Trial, other: Trial) -> bool:
    both = sorted(set(best.seeds) & set(other.seeds))
    if len(both) < 2:
        return True
    ours = best.validation[[best.seeds.index(s) for s in both]]
    theirs = other.validation[[other.seeds.index(s) for s in both]]
    return not paired_difference(ours, theirs).low > 0
