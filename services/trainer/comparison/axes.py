"""What a grid search may vary: the axes, where each of them applies, and the settings that their values make."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from services.common.errors import BadConfig, did_you_mean
from services.trainer.config import COMMITTEES, BackboneConfig, LearnerConfig, parse_section

# In the place of one C: cross-validation inside the labelled samples chooses, as in a campaign.
SEARCHED = "search"
_WITH_C = ("logistic", "bootstrap", "label_propagation", "self_training")
# Combinations that are looked at before those that mean the same are joined.
_MOST_COMBINATIONS = 100_000

Raw = dict[str, Any]


def _always(_learner: Raw) -> bool:
    return True


def _head(learner: Raw) -> bool:
    return bool(learner["mode"] == "head")


def _trained(learner: Raw) -> bool:
    return bool(learner["mode"] == "finetune")


def _committee(learner: Raw) -> bool:
    return _head(learner) and learner["head"] in COMMITTEES


def _regularised(learner: Raw) -> bool:
    return _head(learner) and learner["head"] in _WITH_C


@dataclass(frozen=True)
class Axis:
    # The key of the section that it sets.
    key: str
    in_backbone: bool
    # Does the learner look at it?
    applies: Callable[[Raw], bool] = _always
    # Of the learner's section of that name.
    in_finetune: bool = False


# In this order: mode and head decide which of the others apply.
AXES: dict[str, Axis] = {
    "backbone": Axis("name", True),
    "weights": Axis("weights", True),
    "input_size": Axis("input_size", True),
    "taps": Axis("taps", True),
    "flip": Axis("flip", True),
    "mode": Axis("mode", False),
    "head": Axis("head", False, _head),
    "c": Axis("c_grid", False, _regularised),
    "members": Axis("members", False, _committee),
    **{
        key: Axis(key, False, _trained, in_finetune=True)
        for key in (
            "stages",
            "head_epochs",
            "epochs",
            "batch_size",
            "optimizer",
            "learning_rate",
            "backbone_lr_share",
            "layer_decay",
            "weight_decay",
            "ema",
            "label_smoothing",
            "class_weights",
            "mirror",
            "shift",
            "colour_jitter",
            "rand_augment",
            "erase",
            "mixup",
            "cutmix",
        )
    },
}


@dataclass(frozen=True)
class Setting:
    """One combination: a backbone and a learner, and the values of the axes that apply to them."""

    backbone: BackboneConfig
    learner: LearnerConfig
    values: Mapping[str, Any]

    @property
    def backbone_name(self) -> str:
        """Unique among the backbones of a grid."""
        return _named(self.backbone.name, self.values, in_backbone=True, left_out="backbone")

    @property
    def learner_name(self) -> str:
        """Unique among the learners of a grid."""
        kind = self.learner.head if self.learner.mode == "head" else "trained"
        return _named(kind, self.values, in_backbone=False, left_out="head")


def _named(kind: str, values: Mapping[str, Any], in_backbone: bool, left_out: str) -> str:
    shown = [
        f"{axis}={_spoken(value)}"
        for axis, value in values.items()
        if AXES[axis].in_backbone is in_backbone and axis not in (left_out, "mode")
    ]
    return " ".join([kind, *shown])


def _spoken(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(
    backbone: BackboneConfig, learner: LearnerConfig, axes: Mapping[str, Sequence[Any]], most: int
) -> list[Setting]:
    """The default setting, then every combination of the axes' values; those that mean the same once.

    Raises BadConfig for an unknown axis, a value that its section refuses, or more than `most` settings.
    """
    for name in axes:
        if name not in AXES:
            raise BadConfig(f"axes: unknown axis {name!r}; {did_you_mean(name, AXES)}")
    combinations = math.prod(len(values) for values in axes.values())
    if combinations > _MOST_COMBINATIONS:
        raise BadConfig(_too_many(combinations, axes, most))
    ordered = [name for name in AXES if name in axes]
    found: dict[tuple[str, str], Setting] = {}
    for chosen in ({}, *(dict(zip(ordered, values, strict=True)) for values in product(*(axes[n] for n in ordered)))):
        one = _setting(backbone, learner, chosen, ordered)
        found.setdefault((one.backbone.model_dump_json(), one.learner.model_dump_json()), one)
    if len(found) > most:
        raise BadConfig(_too_many(len(found), axes, most))
    return list(found.values())


def _setting(backbone: BackboneConfig, learner: LearnerConfig, chosen: Raw, ordered: Sequence[str]) -> Setting:
    raw_backbone, raw_learner = backbone.model_dump(), learner.model_dump()
    if chosen.get("mode") == "finetune":
        raw_learner["head"] = "logistic"  # a network that is trained ends in a linear one
    for name, value in chosen.items():
        axis = AXES[name]
        if axis.in_backbone:
            raw_backbone[axis.key] = value
        elif axis.applies(raw_learner):
            section = raw_learner["finetune"] if axis.in_finetune else raw_learner
            section[axis.key] = _c_grid(value, learner) if name == "c" else value
    of_backbone = parse_section(BackboneConfig, raw_backbone, f"axes, at {chosen}")
    of_learner = parse_section(LearnerConfig, raw_learner, f"axes, at {chosen}")
    values = {name: _value(name, of_backbone, of_learner) for name in ordered if AXES[name].applies(raw_learner)}
    return Setting(of_backbone, of_learner, values)


def _c_grid(value: Any, default: LearnerConfig) -> Any:
    return default.c_grid if value == SEARCHED else value if isinstance(value, list | tuple) else (value,)


def _value(name: str, backbone: BackboneConfig, learner: LearnerConfig) -> Any:
    axis = AXES[name]
    section = backbone if axis.in_backbone else learner.finetune if axis.in_finetune else learner
    value = getattr(section, axis.key)
    if name == "c":
        return value[0] if len(value) == 1 else SEARCHED
    return "native" if value is None else value


def _too_many(count: int, axes: Mapping[str, Sequence[Any]], most: int) -> str:
    sizes = " x ".join(f"{name} {len(values)}" for name, values in axes.items())
    return (
        f"axes: {count:,} trials for each seed ({sizes}), and max_trials is {most}; leave values out of the longest "
        "axis, or raise max_trials"
    )
