"""A campaign's configuration: one YAML file, checked whole before anything starts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from services.common.errors import BadConfig, did_you_mean
from services.common.manifest import VariantKind
from services.common.registry import is_campaign_name
from services.trainer.finetune_config import MOVED, FinetuneConfig

Document = TypeVar("Document", bound=BaseModel)

_MAX_BASE_NAME = 56  # leaves room for "-" and a six-digit number within the registry's 63


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitConfig(_Section):
    # A split of the source ("train", "test") or, for image folders, a subfolder of that name.
    split: str
    # The samples with the smallest ids: ids are content hashes, so this is a random draw that repeats anywhere.
    limit: int | None = Field(default=None, ge=1)


class SourceConfig(_Section):
    kind: Literal["parquet", "folder", "manifest", "cifar10", "digits"]
    # Relative to QUERENT_DATA_DIR. "cifar10" and "digits" know theirs.
    location: str | None = None
    # Canonical side in pixels: every image is resized to size x size once, before anything else.
    size: int = Field(ge=8, le=1024)
    pool: SplitConfig = SplitConfig(split="train")
    test: SplitConfig = SplitConfig(split="test")
    # For sources without a test split: this share of the pool, drawn by id, is set aside as test samples.
    test_share: float = Field(default=0.2, gt=0, lt=1)
    # When given, a sample of any other class is refused.
    classes: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _location_where_needed(self) -> "SourceConfig":
        if self.kind in ("parquet", "folder", "manifest") and not self.location:
            raise ValueError(f"kind {self.kind!r} needs a location (a path relative to QUERENT_DATA_DIR)")
        return self


class UrlWeights(_Section):
    """Weights that are downloaded once and verified each time."""

    url: str = Field(pattern=r"^https?://\S+\.(safetensors|pth|pt)$")
    # Of the whole file, in hex.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def _joined(names: Iterable[str]) -> str:
    return "+".join(names)


def _default(key: str) -> Any:
    return BackboneConfig.model_fields[key].default


# What `taps: default` means: the best of those measured in docs/backbones.md; "last" for every other backbone.
DEFAULT_TAPS: dict[str, int] = {"vgg16": 3, "torchvision/vgg16": 3}


class BackboneConfig(_Section):
    # "vgg16", "resnet50", "base_cnn", any timm model name or torchvision classifier; torchvision/NAME and timm/NAME
    # say whose it shall be. Of a committee: its members' names, joined; it may be left out.
    name: str
    # Several backbones instead of one: each sees every image, their embeddings stand side by side, and each carries one
    # member of a committee. The other keys are then the members' own.
    members: tuple["BackboneConfig", ...] = ()
    # "default" (QUERENT_WEIGHTS_DIR, then a verified download, then an installed package), "none" (random
    # initialisation, by name only), the path of a .safetensors, .pth or .pt file, or {url: ..., sha256: ...} of one.
    weights: Annotated[
        Annotated[str, Tag("text")] | Annotated[UrlWeights, Tag("download")],
        Discriminator(lambda given: "text" if isinstance(given, str) else "download"),
    ] = "default"
    # Side of the network's square input in pixels; None: what the weights were trained for (base_cnn: the source's
    # own size).
    input_size: int | None = Field(default=None, ge=8, le=1024)
    # Which stages give the embedding: "last", so many last ones, or stage numbers from 1 on.
    taps: Literal["default", "last"] | PositiveInt | tuple[PositiveInt, ...] = "default"
    # Average the embedding of the image and of its mirror image: twice the compute.
    flip: bool = False

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_members(cls, given: Any) -> Any:
        members = given.get("members") if isinstance(given, dict) else None
        if members and "name" not in given and isinstance(members, list | tuple):
            return {**given, "name": _joined(it.get("name", "") for it in members if isinstance(it, dict))}
        return given

    @model_validator(mode="after")
    def _one_or_several(self) -> "BackboneConfig":
        if not self.members:
            return self
        if len(self.members) < 2 or any(it.members for it in self.members):
            raise ValueError("members: at least two single backbones")
        if len({it.model_dump_json() for it in self.members}) < len(self.members):
            raise ValueError("members: each once; twins would never disagree")
        own = [key for key in ("weights", "input_size", "taps", "flip") if getattr(self, key) != _default(key)]
        if own or self.name != _joined(it.name for it in self.members):
            raise ValueError(f"{own[0] if own else 'name'} belongs to each of the members, not beside them")
        return self

    @field_validator("taps", mode="before")
    @classmethod
    def _said_in_one_line(cls, given: Any) -> Any:
        numbers = given if isinstance(given, list | tuple) and given else [given]
        right = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers)
        if given not in ("default", "last") and not right:
            raise ValueError("use default, last, a number of last stages such as 2, or stage numbers such as [3, 5]")
        return given

    @property
    def resolved_taps(self) -> Literal["last"] | int | tuple[int, ...]:
        """What `default` stands for."""
        if self.taps != "default":
            return self.taps
        return DEFAULT_TAPS.get(self.name.split(".")[0], "last")


# One of services.trainer.heads.HEADS.
HeadName = Literal["logistic", "cosine", "mlp", "bootstrap", "dropout", "rounds", "label_propagation", "self_training"]
COMMITTEES: tuple[HeadName, ...] = ("bootstrap", "dropout", "rounds")
# A single linear map, which can be confined to one backbone's part of the embedding.
LINEAR: tuple[HeadName, ...] = ("logistic", "label_propagation", "self_training")


class LearnerConfig(_Section):
    # "head": frozen backbone, head fitted on stored embeddings. "finetune": the network itself is trained.
    mode: Literal["head", "finetune"] = "head"
    # What is fitted on the embeddings (head mode).
    head: HeadName = "logistic"
    # Of a committee: bootstrap, dropout and rounds (which has as many as there were rounds, until then).
    members: int = Field(default=5, ge=2, le=50)
    # Inverse regularisation strengths that cross-validation inside the labelled set chooses from (head mode).
    c_grid: tuple[PositiveFloat, ...] = Field(default=(0.001, 0.01, 0.1, 1.0), min_length=1)
    # Folds of the cross-validation: chooses C, gives out-of-fold predictions for temperature and promotion.
    folds: int = Field(default=5, ge=2, le=20)
    # How the network is trained (finetune mode).
    finetune: FinetuneConfig = FinetuneConfig()

    @property
    def committee_size(self) -> int:
        """Members of the models that this learner fits."""
        if self.mode == "finetune":
            return self.finetune.members
        return self.members if self.head in COMMITTEES else 1

    @model_validator(mode="before")
    @classmethod
    def _moved_keys(cls, given: Any) -> Any:
        moved = [key for key in MOVED if isinstance(given, dict) and key in given]
        if moved:
            raise ValueError(f"{', '.join(moved)}: moved; write learner.finetune.{moved[0]}, and so on")
        return given

    @model_validator(mode="after")
    def _head_where_it_is_fitted(self) -> "LearnerConfig":
        if self.mode == "finetune" and self.head != "logistic":
            raise ValueError(f"head {self.head!r} needs mode head: a network that is trained ends in a linear one")
        return self


def check_members(backbone: BackboneConfig, learner: LearnerConfig) -> None:
    """Raises ValueError for a learner that cannot be fitted on each of several backbones."""
    if backbone.members and (learner.mode != "head" or learner.head not in LINEAR):
        what = "mode finetune" if learner.mode != "head" else f"head {learner.head!r}"
        raise ValueError(f"backbone.members: each carries one linear head ({', '.join(LINEAR)}); not {what}")


class InitialConfig(_Section):
    strategy: str = "random"
    labels: int = Field(ge=2)


class RoundsConfig(_Section):
    # Rounds after the initial one, each with this many labels.
    count: int = Field(ge=0)
    batch: int = Field(ge=1)


class ExportConfig(_Section):
    # Faster graphs to publish beside model.onnx, each only when it agrees with it: fp16 for GPUs, int8 for CPUs.
    variants: tuple[VariantKind, ...] = ()


class PlateauConfig(_Section):
    # Enough when accuracy rises by less than this over that many rounds; 0.01 is one point.
    gain: float = Field(gt=0, lt=1)
    rounds: int = Field(default=3, ge=1)


class KappaConfig(_Section):
    # Enough when the mean agreement (Cohen's kappa) of each round with the one before is above this.
    above: float = Field(gt=0, lt=1)
    rounds: int = Field(default=3, ge=1)


class ExpectedGainConfig(_Section):
    # Enough when the next batch is expected to raise accuracy by less than this.
    below: float = Field(gt=0, lt=1)


class StoppingConfig(_Section):
    """Reasons to stop before the budget is spent, all decided on randomly drawn labelled rows; none by default."""

    target_accuracy: float | None = Field(default=None, gt=0, lt=1)
    plateau: PlateauConfig | None = None
    kappa: KappaConfig | None = None
    expected_gain: ExpectedGainConfig | None = None
    # Of the one-sided bounds that must pass; 0.5 takes the estimates as they are. Kappa has no bound.
    confidence: float = Field(default=0.95, ge=0.5, lt=1)

    @property
    def asked(self) -> bool:
        return any(it is not None for it in (self.target_accuracy, self.plateau, self.kappa, self.expected_gain))


class OracleConfig(_Section):
    """The simulated oracle's mistakes."""

    # Share of the answers that are wrong (kind "pairs": of those about a class that has a pair).
    noise: float = Field(default=0.0, ge=0, lt=1)
    # "symmetric": any other class, all alike. "pairs": a class is taken for one other, as in {cat: dog}.
    kind: Literal["symmetric", "pairs"] = "symmetric"
    pairs: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _pairs_where_used(self) -> "OracleConfig":
        if (self.kind == "pairs") != bool(self.pairs):
            raise ValueError("kind 'pairs' and the pairs themselves, such as {cat: dog}, go together")
        same = [name for name, other in self.pairs.items() if name == other]
        if same:
            raise ValueError(f"class {same[0]!r} is paired with itself, which is no mistake")
        return self


class CampaignConfig(_Section):
    name: str
    seed: int = Field(default=0, ge=0)
    source: SourceConfig
    backbone: BackboneConfig
    learner: LearnerConfig = LearnerConfig()
    strategy: str = "margin"
    initial: InitialConfig
    rounds: RoundsConfig
    # Share of every batch drawn at random: the only rows that promotion, calibration and stopping look at.
    random_share: float = Field(default=0.1, ge=0, le=1)
    promotion: Literal["not_worse", "always", "manual"] = "not_worse"
    stopping: StoppingConfig = StoppingConfig()
    oracle: OracleConfig = OracleConfig()
    export: ExportConfig = ExportConfig()

    @field_validator("name")
    @classmethod
    def _registry_name(cls, name: str) -> str:
        if not is_campaign_name(name) or len(name) > _MAX_BASE_NAME:
            raise ValueError(
                f"use a-z, 0-9 and -, at most {_MAX_BASE_NAME} characters, starting with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _heads_of_several_backbones(self) -> "CampaignConfig":
        check_members(self.backbone, self.learner)
        return self

    @model_validator(mode="after")
    def _something_to_decide_on(self) -> "CampaignConfig":
        drawn = self.random_share > 0 or "random" in (self.initial.strategy, self.strategy)
        if self.stopping.asked and not drawn:
            raise ValueError("stopping decides on randomly drawn labels and there are none; set random_share above 0")
        return self

    @property
    def committee_size(self) -> int:
        """Members of the models that the campaign fits."""
        return len(self.backbone.members) or self.learner.committee_size

    @property
    def budget(self) -> int:
        """Labels the whole campaign may buy."""
        return self.initial.labels + self.rounds.count * self.rounds.batch

    @property
    def last_round(self) -> int:
        """Round 0 publishes the backbone, round 1 buys the initial labels, the others follow."""
        return 1 + self.rounds.count

    def batch_of(self, round_no: int) -> int:
        """Labels that `round_no` buys."""
        if round_no == 0:
            return 0
        return self.initial.labels if round_no == 1 else self.rounds.batch

    def strategy_of(self, round_no: int) -> str:
        return self.initial.strategy if round_no <= 1 else self.strategy


def load_config(path: Path) -> CampaignConfig:
    """Raises BadConfig that lists every mistake, with the nearest right key for a misspelt one."""
    return parse_config(read_yaml(path), str(path))


def read_yaml(path: Path) -> Any:
    """Raises BadConfig."""
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not valid YAML: {error}") from error


def parse_config(raw: Any, origin: str) -> CampaignConfig:
    """The configuration in a plain value. Raises BadConfig; `origin` begins its message."""
    return parse_section(CampaignConfig, raw, origin)


def parse_section(section: type[Document], raw: Any, origin: str) -> Document:
    """As `parse_config`, for any document made of sections."""
    if not isinstance(raw, dict):
        raise BadConfig(f"{origin}: expected keys and values such as 'name: my-campaign'")
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(section, problem) for problem in error.errors()]
        raise BadConfig(f"{origin}:\n" + "\n".join(f"  {line}" for line in lines)) from error


def _explain(document: type[BaseModel], problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return (
            f"unknown key {where!r}; {did_you_mean(str(problem['loc'][-1]), _keys_at(document, problem['loc'][:-1]))}"
        )
    if problem["type"] == "missing":
        return f"missing key {where!r}"
    given = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
    return f"{where}: {problem['msg']}{given}" if where else f"{problem['msg']}{given}"


def _keys_at(document: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that the section at `location` knows."""
    section = document
    for part in location:
        field = section.model_fields.get(str(part))
        # A section may be left out: `PlateauConfig | None`.
        options = () if field is None else (field.annotation, *get_args(field.annotation))
        sections = [it for it in options if isinstance(it, type) and issubclass(it, BaseModel)]
        if not sections:
            return []
        section = sections[0]
    return list(section.model_fields)
