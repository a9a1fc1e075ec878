"""Trainings that were cut short go on: their whole state in one file, found by what decides the result.

<folder>/<key>/<number>.pt      a training of a round: its state, or its end
"""

import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import structlog
import torch

from services.common.files import fsync_dir

log = structlog.get_logger()

# Part of every file: raise it when a training's steps or its state change.
FORMAT = 1
_EVERY_S = 30.0
_DAY_S = 86_400


class Checkpoints:
    """Of one round. `key`: digest of labels, configuration and network, so that no other round's are ever used."""

    def __init__(self, folder: Path, key: str, every_s: float = _EVERY_S) -> None:
        self._root = folder
        self._folder = folder / key
        self._every_s = every_s

    def training(self, number: int) -> "Checkpoint":
        return Checkpoint(self._folder / f"{number}.pt", self._every_s)

    def remove(self) -> None:
        """The round is published: nobody asks for its trainings again."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def drop_older_than_a_day(self) -> None:
        """Those of rounds that were given up; what is touched now stays."""
        for folder in self._root.glob("*"):
            newest = max((path.stat().st_mtime for path in folder.glob("*.pt")), default=0.0)
            if folder != self._folder and newest < time.time() - _DAY_S:
                shutil.rmtree(folder, ignore_errors=True)


class Checkpoint:
    """Of one training."""

    def __init__(self, path: Path, every_s: float) -> None:
        self._path = path
        self._every_s = every_s
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self._every_s

    def load(self) -> dict[str, Any] | None:
        """None when there is none, or none that can be used: the training then begins."""
        if not self._path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        # Whatever is wrong with the file, the training can be done again.
        except Exception as error:
            log.warning("checkpoint_unusable", path=str(self._path), error=f"{type(error).__name__}: {error}"[:200])
            return None
        return state if state.get("format") == FORMAT else None

    def save(self, state: dict[str, Any]) -> None:
        """Whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                torch.save({**state, "format": FORMAT}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            # A full disk must not end a training that needs nothing from it.
            log.warning("checkpoint_not_written", path=str(self._path), error=str(error))
        finally:
            temporary.unlink(missing_ok=True)
        fsync_dir(self._path.parent)
        self._saved_at = time.monotonic()
