"""Who answers: an oracle takes requests for labels and has answers, at once or later."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq

from services.common.errors import BadConfig, did_you_mean
from services.common.samples import Source
from services.trainer.config import OracleConfig

SIMULATED = "simulated"
NOISE = "simulated-noise"


@dataclass(frozen=True)
class Answer:
    sample_id: str
    class_index: int
    annotator: str
    # How the label came to be: "simulated" or "simulated-noise" here, "feedback" for what was told about a prediction.
    origin: str


class Oracle(Protocol):
    def request(self, ids: Sequence[str]) -> None:
        """Ask for labels. Asking twice for the same sample asks once."""

    def answers(self, ids: Sequence[str]) -> list[Answer] | None:
        """Labels of all of `ids`, or None while some are still being worked on."""


class SimulatedOracle:
    """Answers from the classes that the source holds: for studies and demonstrations.

    `mistakes`: what it says instead of the truth; the label's origin then tells so.
    """

    def __init__(self, truth: Mapping[str, int], mistakes: "Mistakes | None" = None) -> None:
        self._truth = truth
        self._mistakes = mistakes

    def request(self, ids: Sequence[str]) -> None:
        """Nothing to send anywhere: the answers are here."""

    def answers(self, ids: Sequence[str]) -> list[Answer] | None:
        return [self._answer(i) for i in ids]

    def _answer(self, sample_id: str) -> Answer:
        truth = self._truth[sample_id]
        told = truth if self._mistakes is None else self._mistakes.told(sample_id, truth)
        return Answer(sample_id, told, annotator="simulated", origin=SIMULATED if told == truth else NOISE)


@dataclass(frozen=True)
class Mistakes:
    """Which answers are wrong, and how: decided by the seed and the sample alone, so that asking again changes
    nothing.
    """

    noise: float
    seed: int
    # For each class those that it is taken for, all alike; none: it is never mistaken.
    instead: tuple[tuple[int, ...], ...]

    def told(self, sample_id: str, truth: int) -> int:
        digest = hashlib.sha256(f"oracle:{self.seed}:{sample_id}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") / 2**64
        others = self.instead[truth]
        if drawn >= self.noise or not others:
            return truth
        return others[int.from_bytes(digest[8:16], "big") % len(others)]


def mistakes(config: OracleConfig, seed: int, classes: Sequence[str]) -> Mistakes | None:
    """None for an oracle that makes none. Raises BadConfig for a pair that names no class."""
    unknown = [name for pair in config.pairs.items() for name in pair if name not in classes]
    if unknown:
        raise BadConfig(f"oracle.pairs: no class {unknown[0]!r}; {did_you_mean(unknown[0], classes)}")
    if not config.noise:
        return None
    numbers = range(len(classes))
    if config.kind == "symmetric":
        return Mistakes(config.noise, seed, tuple(tuple(o for o in numbers if o != c) for c in numbers))
    pairs = {classes.index(name): classes.index(other) for name, other in config.pairs.items()}
    return Mistakes(config.noise, seed, tuple((pairs[c],) if c in pairs else () for c in numbers))


def read_truth(sources_dir: Path, source: Source) -> dict[str, int]:
    """Class index of every sample. Raises BadConfig when the source holds no classes to simulate with."""
    table = pq.read_table(sources_dir / f"{source.source_id}.index.parquet", columns=["id", "label"])
    labels = table["label"].to_pylist()
    unlabelled = sum(label < 0 for label in labels)
    if unlabelled:
        raise BadConfig(
            f"{unlabelled} of {len(labels)} samples have no class, so a simulated oracle cannot answer for them; "
            "put the images into one subfolder for each class, or name the classes in a manifest"
        )
    return dict(zip(table["id"].to_pylist(), labels, strict=True))
