"""A comparison's configuration: one YAML file, checked whole before anything starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from services.common.errors import BadConfig
from services.common.registry import is_campaign_name
from services.trainer.comparison.cells import BASELINE, Cell, grid
from services.trainer.config import (
    BackboneConfig,
    CampaignConfig,
    InitialConfig,
    LearnerConfig,
    RoundsConfig,
    SourceConfig,
    check_members,
    parse_section,
    read_yaml,
)
from services.trainer.strategies import strategies, strategy

# How a cell is called in files, tables and pictures.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$")]


def _counted(given: Any) -> Any:
    return tuple(range(given)) if isinstance(given, int) and not isinstance(given, bool) else given


def _folder(name: str) -> str:
    if not is_campaign_name(name):
        raise ValueError("use a-z, 0-9 and -, at most 63 characters, starting with a letter or digit")
    return name


# A list, or a number: so many from 0 on.
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_counted)]
# Names a folder of reports.
FolderName = Annotated[str, AfterValidator(_folder)]


class ComparisonConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str] = "compare"

    name: FolderName
    source: SourceConfig
    # "random" is always compared, whether it is listed or not.
    strategies: tuple[str, ...] = Field(min_length=1)
    # Name -> backbone, and name -> learner section of a campaign (any mode).
    backbones: Mapping[Name, BackboneConfig] = Field(min_length=1)
    heads: Mapping[Name, LearnerConfig] = Field(default={"logistic": LearnerConfig()}, min_length=1)
    seeds: Seeds = Field(min_length=1)
    # Drawn once for each seed: every strategy begins with the same labels.
    initial: InitialConfig
    # Labels of each further round, and of the whole run, the initial ones included.
    batch: int = Field(ge=1)
    budget: int = Field(ge=2)
    # Share of every batch drawn at random, as in a campaign: calibration looks at those rows alone.
    random_share: float = Field(default=0.1, ge=0, le=1)

    @field_validator("strategies")
    @classmethod
    def _with_the_baseline(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((BASELINE, *given)))

    @model_validator(mode="after")
    def _fits_together(self) -> "ComparisonConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each once")
        more = self.budget - self.initial.labels
        if more < self.batch or more % self.batch:
            raise ValueError(
                f"budget {self.budget} is not initial.labels {self.initial.labels} and whole batches of {self.batch}: "
                f"{self.initial.labels + max(1, more // self.batch) * self.batch} would do"
            )
        for backbone in self.backbones.values():
            for head in self.heads.values():
                check_members(backbone, head)
        return self

    @property
    def labels_needed(self) -> int:
        return self.budget

    def cells(self) -> list[Cell]:
        return grid(self.strategies, tuple(self.backbones), tuple(self.heads), self.seeds)

    def campaign(self, cell: Cell) -> CampaignConfig:
        """The campaign that a cell stands for; a ceiling's never asks a strategy."""
        return CampaignConfig(
            name=self.name[:56].rstrip("-"),
            seed=cell.seed,
            source=self.source,
            backbone=self.backbones[cell.backbone],
            learner=self.heads[cell.head],
            strategy=BASELINE if cell.is_ceiling else cell.strategy,
            initial=self.initial,
            rounds=RoundsConfig(count=(self.budget - self.initial.labels) // self.batch, batch=self.batch),
            random_share=self.random_share,
        )

    def pool_rows(self, pool_ids: Sequence[str]) -> tuple[str, ...]:
        """The pool samples whose embeddings the cells read."""
        return tuple(pool_ids)


def load_comparison(path: Path) -> ComparisonConfig:
    """Raises BadConfig that lists every mistake, or names a strategy that cannot be compared like this."""
    config = parse_section(ComparisonConfig, read_yaml(path), str(path))
    check_strategies(config)
    return config


def check_strategies(config: ComparisonConfig) -> None:
    """Raises BadConfig."""
    if strategy(config.initial.strategy).needs_model:
        usable = ", ".join(name for name, it in strategies().items() if not it.needs_model)
        raise BadConfig(f"initial.strategy {config.initial.strategy!r} needs a trained model; use one of: {usable}")
    several = all(backbone.members for backbone in config.backbones.values())
    single = [name for name, head in config.heads.items() if head.committee_size < 2 and not several]
    asking = [name for name in config.strategies if strategy(name).needs_committee]
    if single and asking:
        raise BadConfig(
            f"strategy {asking[0]!r} compares the members of a committee, and head {single[0]!r} fits a single model; "
            "take one of them out of this comparison"
        )
