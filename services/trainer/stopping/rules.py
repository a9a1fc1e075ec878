"""The stopping rules by name. Each looks at the random slice and at nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from services.trainer.config import StoppingConfig
from services.trainer.stopping.curve import FEWEST_ROUNDS, LearningCurve, fit_curve
from services.trainer.stopping.slices import Slice, kappa, lower_bound, paired_gain


@dataclass(frozen=True)
class Evidence:
    """What there is to decide on."""

    # Rounds with randomly drawn rows, oldest first.
    slices: Sequence[Slice]
    # Labels that the next round would buy.
    batch: int

    @cached_property
    def curve(self) -> LearningCurve | None:
        return fit_curve(self.slices)


@dataclass(frozen=True)
class Standing:
    """Where a campaign stands with one rule."""

    rule: str
    enough: bool
    # The figure, what it was taken from, and what is asked for.
    told: str


Rule = Callable[[StoppingConfig, Evidence], Standing | None]


def target_accuracy(config: StoppingConfig, evidence: Evidence) -> Standing | None:
    """Enough when the one-sided lower bound of the accuracy reaches the target: the estimate alone would stop early in
    half of all cases.
    """
    if config.target_accuracy is None:
        return None
    newest = evidence.slices[-1]
    bound = lower_bound(newest.right_rows, newest.rows, config.confidence)
    told = (
        f"{newest.accuracy:.1%} on {newest.rows:,} randomly drawn rows, at least {bound:.1%} with "
        f"{config.confidence:.0%} confidence; {config.target_accuracy:.1%} is asked for"
    )
    return Standing("target_accuracy", bound >= config.target_accuracy, told)


def plateau(config: StoppingConfig, evidence: Evidence) -> Standing | None:
    """Enough when the paired gain over some rounds is below `gain`, as its one-sided upper bound."""
    asked = config.plateau
    if asked is None:
        return None
    if len(evidence.slices) <= asked.rounds:
        return _too_early("plateau", evidence, asked.rounds + 1)
    gain = paired_gain(evidence.slices[-1 - asked.rounds], evidence.slices[-1])
    bound = gain.upper(config.confidence)
    told = (
        f"{100 * gain.mean:+.1f} points over {_rounds(asked.rounds)} on {gain.rows:,} randomly drawn rows, at most "
        f"{100 * bound:+.1f} with {config.confidence:.0%} confidence; below {100 * asked.gain:.1f} is asked for"
    )
    return Standing("plateau", bound < asked.gain, told)


def stable_predictions(config: StoppingConfig, evidence: Evidence) -> Standing | None:
    """Enough when consecutive rounds agree, on average over some rounds  (Bloodgood & Vijay-Shanker 2009).

    Where we differ: the paper compares models on a large unlabelled set; here it is each row's out-of-fold prediction,
    since the models themselves have been fitted on most of these rows and would agree on them whatever they learn.
    """
    asked = config.kappa
    if asked is None:
        return None
    if len(evidence.slices) <= asked.rounds:
        return _too_early("kappa", evidence, asked.rounds + 1)
    found = [kappa(one, two) for one, two in pairwise(evidence.slices[-1 - asked.rounds :])]
    agreements = [it for it in found if it is not None]
    if len(agreements) < asked.rounds:
        return Standing("kappa", False, "the rounds did not keep the classes that they predicted")
    mean = sum(value for value, _ in agreements) / len(agreements)
    told = (
        f"{mean:.3f} over {_rounds(asked.rounds)} on {min(rows for _, rows in agreements):,} randomly drawn rows; "
        f"above {asked.above:g} is asked for"
    )
    return Standing("kappa", mean > asked.above, told)


def expected_gain(config: StoppingConfig, evidence: Evidence) -> Standing | None:
    """Enough when the next batch is expected to bring less than `below`, as its one-sided upper bound."""
    asked = config.expected_gain
    if asked is None:
        return None
    curve = evidence.curve
    if curve is None:
        return _too_early("expected_gain", evidence, FEWEST_ROUNDS)
    bound = curve.gain_below(evidence.batch, config.confidence)
    told = (
        f"{100 * curve.gain(evidence.batch):+.2f} points by the next {evidence.batch:,} labels, at most "
        f"{100 * bound:+.2f} with {config.confidence:.0%} confidence; below {100 * asked.below:.2f} is asked for"
    )
    return Standing("expected_gain", bound < asked.below, told)


# In the order in which they are asked: the first that says enough is the reason.
RULES: dict[str, Rule] = {
    "target_accuracy": target_accuracy,
    "plateau": plateau,
    "kappa": stable_predictions,
    "expected_gain": expected_gain,
}


def judge(config: StoppingConfig, evidence: Evidence) -> list[Standing]:
    """Of every rule that the campaign has; none while no rows were drawn at random."""
    if not evidence.slices:
        return []
    standings = [rule(config, evidence) for rule in RULES.values()]
    return [it for it in standings if it is not None]


def record(config: StoppingConfig, slices: Sequence[Slice], batch: int) -> dict[str, Any]:
    """What a round's report keeps: the first reason to stop (empty: go on), where each rule stands, what comes next."""
    evidence = Evidence([it for it in slices if it.rows], batch)
    standings = judge(config, evidence)
    reasons = [f"enough by {it.rule}: {it.told}" for it in standings if it.enough]
    return {
        "enough": reasons[0] if reasons else "",
        "standings": {it.rule: it.told for it in standings},
        "expected_gain": None if evidence.curve is None else evidence.curve.gain(batch),
    }


def _too_early(rule: str, evidence: Evidence, needed: int) -> Standing:
    measured = len(evidence.slices)
    return Standing(rule, False, f"needs {_rounds(needed)} with randomly drawn labels, there are {measured}")


def _rounds(count: int) -> str:
    return f"{count} round{'' if count == 1 else 's'}"
