"""A grid search's configuration: a setting, the axes along which it is varied, and what the trials are judged by."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.common.errors import BadConfig
from services.trainer.comparison.axes import Setting, settings
from services.trainer.comparison.cells import BASELINE, TRIAL, Cell
from services.trainer.comparison.config import FolderName, Seeds
from services.trainer.config import (
    BackboneConfig,
    CampaignConfig,
    InitialConfig,
    LearnerConfig,
    RoundsConfig,
    SourceConfig,
    parse_section,
    read_yaml,
)
from services.trainer.heads import HEADS

MAX_TRIALS = 200


class SettingConfig(BaseModel):
    """As in a campaign."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: BackboneConfig
    learner: LearnerConfig = LearnerConfig()


class GridConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str] = "grid"

    name: FolderName
    source: SourceConfig
    # Drawn at random from the pool, anew for each seed and the same for every trial: all that a trial may look at.
    labels: int = Field(ge=4)
    seeds: Seeds = Field(min_length=1)
    # What every trial is compared with; it is a trial of its own.
    setting: SettingConfig
    # Name of an axis -> values to try; every combination is a trial.
    axes: Mapping[str, tuple[Any, ...]] = Field(min_length=1)
    max_trials: int = Field(default=MAX_TRIALS, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> "GridConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each once")
        empty = [name for name, values in self.axes.items() if not values]
        if empty:
            raise ValueError(f"axes.{empty[0]}: name a value at least, or leave the axis out")
        try:
            _ = self.settings
        except BadConfig as error:
            raise ValueError(str(error)) from error
        return self

    @cached_property
    def settings(self) -> list[Setting]:
        """The default first."""
        return settings(self.setting.backbone, self.setting.learner, self.axes, self.max_trials)

    @property
    def backbones(self) -> Mapping[str, BackboneConfig]:
        return {it.backbone_name: it.backbone for it in self.settings}

    @property
    def heads(self) -> Mapping[str, LearnerConfig]:
        return {it.learner_name: it.learner for it in self.settings}

    @property
    def labels_needed(self) -> int:
        return self.labels

    def cells(self) -> list[Cell]:
        """Seed by seed, the default first: what is there early is paired already."""
        return [Cell(seed, it.backbone_name, it.learner_name, TRIAL) for seed in self.seeds for it in self.settings]

    def campaign(self, cell: Cell) -> CampaignConfig:
        """The setting of a trial; nothing is bought after the labelled set."""
        return CampaignConfig(
            name=self.name[:56].rstrip("-"),
            seed=cell.seed,
            source=self.source,
            backbone=self.backbones[cell.backbone],
            learner=self.heads[cell.head],
            strategy=BASELINE,
            initial=InitialConfig(strategy=BASELINE, labels=self.labels),
            rounds=RoundsConfig(count=0, batch=1),
        )

    def pool_rows(self, pool_ids: Sequence[str]) -> tuple[str, ...]:
        """The samples whose embeddings the trials read: the labelled sets, or all for heads that learn from all."""
        if any(it.mode == "head" and HEADS[it.head].uses_pool for it in self.heads.values()):
            return tuple(pool_ids)
        return tuple(dict.fromkeys(i for seed in self.seeds for i in labelled_set(pool_ids, self.labels, seed)))

    def without(self, backbones: Sequence[str]) -> "GridConfig":
        """The same grid with these names left out of the axis `backbone`. Raises BadConfig when none is left."""
        axes = {**self.axes, "backbone": tuple(b for b in self.axes.get("backbone", ()) if b not in backbones)}
        left = {name: values for name, values in axes.items() if values}
        if self.setting.backbone.name in backbones or not left:
            raise BadConfig("the grid's default setting has no backbone whose weights are there")
        return GridConfig.model_validate({**self.model_dump(), "axes": left})


def labelled_set(pool_ids: Sequence[str], labels: int, seed: int) -> tuple[str, ...]:
    """Drawn at random by the seed alone: larger sets contain smaller ones."""
    order = np.random.default_rng([seed]).permutation(len(pool_ids))
    return tuple(pool_ids[place] for place in order[:labels])


def load_grid(path: Path) -> GridConfig:
    """Raises BadConfig that lists every mistake."""
    return parse_section(GridConfig, read_yaml(path), str(path))
