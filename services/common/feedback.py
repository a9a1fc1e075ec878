"""Feedback journals: JSON lines, each with its own checksum; inference appends, the trainer imports.

A line is one answer to one prediction. A line that is not whole is what a crash leaves at a file's end: readers
step over it and say so.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from services.common.errors import NotFound
from services.common.files import canonical_json

log = structlog.get_logger()

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Feedback:
    """The true class of an earlier prediction, as somebody told it."""

    prediction_id: str
    campaign: str
    version: int
    round: int
    # Empty when the image came as raw pixels: those have no id.
    sample_id: str
    # Class names: what the model said and what is true.
    predicted: str
    label: str
    # Empty when nobody gave a name.
    annotator: str
    # Unix times.
    predicted_at: float
    received_at: float

    @property
    def correct(self) -> bool:
        return self.predicted == self.label


def to_line(feedback: Feedback) -> bytes:
    """One line, its end included."""
    fields = asdict(feedback)
    return canonical_json(fields | {"crc": _crc(fields)}) + b"\n"


OnSkipped = Callable[[Path, int, str], None]


def warn_skipped(journal: Path, line: int, why: str) -> None:
    log.warning("feedback_line_skipped", journal=str(journal), line=line, why=why)


def read_journal(path: Path, on_skipped: OnSkipped = warn_skipped) -> Iterator[Feedback]:
    """Every whole line in order; `on_skipped` is told of the others. Raises NotFound."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                feedback = _from_line(line)
                if feedback is not None:
                    yield feedback
                else:
                    on_skipped(path, number, _why(line))
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error


def journals(paths: Iterable[Path]) -> list[Path]:
    """The files themselves and the journals inside folders, each once. Raises NotFound."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found |= dict.fromkeys(sorted(path.glob(f"*{SUFFIX}")))
        elif path.is_file():
            found[path] = None
        else:
            raise NotFound(f"no journal {path}; give a {SUFFIX} file of INFERENCE_FEEDBACK_DIR or that folder")
    return list(found)


def _from_line(line: bytes) -> Feedback | None:
    try:
        fields = json.loads(line)
        if fields.pop("crc") != _crc(fields):
            return None
        return Feedback(**fields)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def _why(line: bytes) -> str:
    return (
        "does not match its checksum"
        if line.endswith(b"\n")
        else "torn: its replica died while writing it, or is writing it now"
    )


def _crc(fields: dict[str, object]) -> str:
    return f"{zlib.crc32(canonical_json(fields)):08x}"
