"""Whether a published version becomes the one that answers: decided on randomly drawn labelled rows only."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Rule = Literal["not_worse", "always", "manual"]


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str


def decide(rule: Rule, new: Mapping[str, bool], current: Mapping[str, bool] | None) -> Decision:
    """`new` and `current`: was the model right about each randomly drawn sample, out of fold?

    not_worse refuses when the mean paired difference is below minus one standard error of that mean.
    `current` is None while nothing is promoted.
    """
    if rule == "manual":
        return Decision(False, "the campaign promotes by hand")
    if rule == "always":
        return Decision(True, "the campaign promotes every version")
    if current is None:
        return Decision(True, "the first trained version")
    rows = sorted(set(new) & set(current))
    if not rows:
        return Decision(True, "no randomly drawn rows to compare on")
    difference = np.array([float(new[i]) - float(current[i]) for i in rows])
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(len(rows)) if len(rows) > 1 else 0.0
    told = f"{100 * mean:+.1f} points on {len(rows)} randomly drawn rows (standard error {100 * error:.1f})"
    # Equal counts as not worse, whatever the last bit of the rounding says.
    if mean < -error - 1e-9:
        return Decision(False, f"worse than the current version: {told}")
    return Decision(True, f"not worse than the current version: {told}")
