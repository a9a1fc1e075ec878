"""Who answers: an oracle takes requests for labels and has answers, at once or later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq

from services.common.errors import BadConfig
from services.common.samples import Source


@dataclass(frozen=True)
class Answer:
    sample_id: str
    class_index: int
    annotator: str
    # How the label came to be: "simulated" here, "feedback" for what was told about a prediction.
    origin: str


class Oracle(Protocol):
    def request(self, ids: Sequence[str]) -> None:
        """Ask for labels. Asking twice for the same sample asks once."""

    def answers(self, ids: Sequence[str]) -> list[Answer] | None:
        """Labels of all of `ids`, or None while some are still being worked on."""


class SimulatedOracle:
    """Answers from the classes that the source holds: for studies and demonstrations."""

    def __init__(self, truth: Mapping[str, int]) -> None:
        self._truth = truth

    def request(self, ids: Sequence[str]) -> None:
        """Nothing to send anywhere: the answers are here."""

    def answers(self, ids: Sequence[str]) -> list[Answer] | None:
        return [Answer(i, self._truth[i], annotator="simulated", origin="simulated") for i in ids]


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
