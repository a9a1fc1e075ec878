"""A study: several arms (a backbone with its learner) and a grid search, run together and told in one report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.common.errors import BadConfig
from services.trainer.comparison.config import ComparisonConfig, FolderName, Seeds, check_strategies
from services.trainer.comparison.grid import MAX_TRIALS, GridConfig, SettingConfig
from services.trainer.config import (
    BackboneConfig,
    InitialConfig,
    LearnerConfig,
    SourceConfig,
    parse_section,
    read_yaml,
)

# Part of the names of folders and of comparisons.
ArmName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,19}$")]


class ArmConfig(BaseModel):
    """A backbone and a learner as in a campaign; the rest where it differs from the study's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: BackboneConfig
    learner: LearnerConfig = LearnerConfig()
    strategies: tuple[str, ...] | None = None
    seeds: Seeds | None = None
    initial: InitialConfig | None = None
    batch: int | None = None
    budget: int | None = None


class StudyGrid(BaseModel):
    """A grid search around an arm's setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: ArmName
    labels: int
    seeds: Seeds = (0, 1, 2)
    axes: Mapping[str, tuple[Any, ...]]
    max_trials: int = MAX_TRIALS


class StudyConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FolderName = Field(max_length=40)
    source: SourceConfig
    strategies: tuple[str, ...] = Field(min_length=1)
    seeds: Seeds = Field(min_length=1)
    initial: InitialConfig
    batch: int
    budget: int
    random_share: float = 0.1
    arms: Mapping[ArmName, ArmConfig] = Field(min_length=1)
    grid: StudyGrid | None = None

    @model_validator(mode="after")
    def _parts_can_be_run(self) -> "StudyConfig":
        if self.grid is not None and self.grid.arm not in self.arms:
            raise ValueError(f"grid.arm: there is no arm {self.grid.arm!r}; arms: {', '.join(self.arms)}")
        if "grid" in self.arms:
            raise ValueError("arms: 'grid' is the grid search's name; give the arm another one")
        try:
            for arm in self.arms:
                self.comparison(arm)
            self.grid_search()
        except BadConfig as error:
            raise ValueError(str(error)) from error
        return self

    def comparison(self, arm: str) -> ComparisonConfig:
        """The comparison that an arm stands for. Raises BadConfig."""
        its = self.arms[arm]
        raw = {
            "name": f"{self.name}-{arm}",
            "source": self.source.model_dump(),
            "strategies": its.strategies or self.strategies,
            "backbones": {arm: its.backbone.model_dump()},
            "heads": {head_name(its.learner): its.learner.model_dump()},
            "seeds": its.seeds or self.seeds,
            "initial": (its.initial or self.initial).model_dump(),
            "batch": its.batch or self.batch,
            "budget": its.budget or self.budget,
            "random_share": self.random_share,
        }
        return parse_section(ComparisonConfig, raw, f"arms.{arm}")

    def grid_search(self) -> GridConfig | None:
        """Raises BadConfig."""
        if self.grid is None:
            return None
        its = self.arms[self.grid.arm]
        raw = {
            "name": f"{self.name}-grid",
            "source": self.source.model_dump(),
            "setting": SettingConfig(backbone=its.backbone, learner=its.learner).model_dump(),
            **self.grid.model_dump(exclude={"arm"}),
        }
        return parse_section(GridConfig, raw, "grid")


def head_name(learner: LearnerConfig) -> str:
    """What an arm's learner is called in tables."""
    return learner.head if learner.mode == "head" else "trained"


def load_study(path: Path) -> StudyConfig:
    """Raises BadConfig that lists every mistake, or names a strategy that an arm cannot be asked with."""
    config = parse_section(StudyConfig, read_yaml(path), str(path))
    for arm in config.arms:
        check_strategies(config.comparison(arm))
    return config
