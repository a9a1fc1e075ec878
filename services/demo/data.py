"""Which campaign the demo runs: CIFAR-10 where it can be had, scikit-learn's digits otherwise."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from services.common.errors import BadConfig, Unavailable
from services.demo.state import State

CIFAR10_CONFIG = Path("examples/cifar10-demo.yaml")
DIGITS_CONFIG = Path("examples/digits-demo.yaml")
_CHECKOUT_DATA = Path("../shared/data")
_OBTAINABLE = ("cifar10", "digits")

NO_CIFAR10 = """\
[yellow]CIFAR-10 cannot be had here, so the demo runs on scikit-learn's handwritten digits instead.[/]
  {why}
  To run it on CIFAR-10: allow the download, or set QUERENT_DATA_DIR to a folder that contains
  cifar10/train-*.parquet and cifar10/test-*.parquet."""


@dataclass(frozen=True)
class Chosen:
    config: Path
    data_dir: Path


def choose(config: Path | None, state: State, env: Mapping[str, str], say: Callable[[str], None]) -> Chosen:
    """The campaign to run and where its images lie. Raises BadConfig or Unavailable."""
    data_dir = given_data_dir(state, env)
    if config is not None:
        kind = _kind(config)
        return Chosen(config, _obtain(kind, data_dir, state) if kind in _OBTAINABLE else data_dir)
    try:
        return Chosen(CIFAR10_CONFIG, _obtain("cifar10", data_dir, state))
    except Unavailable as error:
        say(NO_CIFAR10.format(why=str(error).replace("[", r"\[")))
        return Chosen(DIGITS_CONFIG, _obtain("digits", data_dir, state))


def given_data_dir(state: State, env: Mapping[str, str]) -> Path:
    """QUERENT_DATA_DIR, or what the services take without it."""
    if env.get("QUERENT_DATA_DIR"):
        return Path(env["QUERENT_DATA_DIR"])
    return _CHECKOUT_DATA if _CHECKOUT_DATA.is_dir() else state.downloads


def _kind(config: Path) -> str:
    try:
        return str(yaml.safe_load(config.read_text())["source"]["kind"])
    except OSError as error:
        raise BadConfig(f"{config} cannot be read: {error.strerror}") from error
    # Whatever else is wrong with it, al-trainer explains better.
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return ""


def _obtain(kind: str, data_dir: Path, state: State) -> Path:
    """The folder that contains the data set; the trainer finds, downloads or makes it, as a process."""
    places = ["--data-dir", str(data_dir), "--download-dir", str(state.downloads)]
    command = [sys.executable, "-m", "services.trainer.datasets", kind, *places]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=False)
    said = answer.stdout.strip()
    if answer.returncode != 0:
        raise Unavailable(said or f"getting {kind} failed with exit code {answer.returncode}")
    return Path(said)
