"""A campaign and its rounds as plain values: what the store gives and the story of a round works with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.trainer.config import CampaignConfig

CampaignState = Literal["running", "paused", "finished", "cancelled", "failed"]
RoundState = Literal["selecting", "labelling", "training", "done"]

# States in which a campaign will do nothing more unless somebody asks for it.
AT_REST: frozenset[str] = frozenset({"paused", "finished", "cancelled", "failed"})


@dataclass(frozen=True)
class Campaign:
    name: str
    config: CampaignConfig
    source_id: str
    classes: tuple[str, ...]
    state: CampaignState
    # Why it ended, in a sentence; for a running campaign: what it waits for.
    reason: str
    created_at: float


@dataclass(frozen=True)
class Pick:
    sample_id: str
    # Higher: more worth labelling; None when the strategy gives no score.
    score: float | None
    drawn_at_random: bool
    # What the newest model said of it when it was asked for, and how sure it was; None before there was one.
    predicted: int | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Round:
    campaign: str
    round_no: int
    state: RoundState
    strategy: str
    version: int | None = None
    promoted: bool | None = None
    promotion_reason: str = ""
    query_score: float | None = None
    images_per_second: float | None = None
    # phase -> seconds
    seconds: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    sample_id: str
    class_index: int
    annotator: str
    origin: str
    round_no: int
    drawn_at_random: bool


@dataclass(frozen=True)
class Standing:
    """What an import of labels must know of a campaign, as one transaction sees it."""

    # The round that will train on what is imported now.
    round_no: int
    # Labels that the budget has left.
    room: int
    # Sample id -> class index.
    labelled: Mapping[str, int]
    # Samples that a round has asked for and that have no label yet.
    asked: frozenset[str]


@dataclass(frozen=True)
class Progress:
    campaign: str
    round_no: int
    phase: str
    done: int
    total: int
    # Unix times of the phase's start and of the last change.
    started_at: float
    updated_at: float
    # How it goes, in a few words; empty for phases that have nothing to say.
    detail: str = ""


@dataclass(frozen=True)
class Lease:
    """Proof that a worker owns a campaign. Every commit checks that the token is still the newest."""

    campaign: str
    owner: str
    token: int
