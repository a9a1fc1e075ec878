"""Files of weights: what is in them. Nothing in them is ever executed."""

import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from services.common.errors import DamagedArtefact

Tensors = dict[str, torch.Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt")
# Where training scripts keep the weights in a checkpoint, and what torch's wrapper for several devices adds to names.
_WITHIN = ("state_dict", "model", "model_state_dict")
_WRAPPED = "module."
_MOST_PARTS = 4


def read_weights(path: Path) -> Tensors:
    """Raises DamagedArtefact for a file that is not one of tensors, and for one that would have to run code."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise DamagedArtefact(f"{path} cannot be read as safetensors: {error}") from error
    try:
        return _tensors(torch.load(path, map_location="cpu", weights_only=True), path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise DamagedArtefact(
            f"{path} cannot be read as tensors alone: {reason} Save the state dict itself, best as safetensors"
        ) from error


def parts(keys: Iterable[str]) -> str:
    """What is there, by the first part of the names: "features (26 tensors), classifier (6 tensors)"."""
    counts = Counter(key.partition(".")[0] for key in keys)
    shown = [f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in counts.items()]
    more = f" and {len(shown) - _MOST_PARTS} more" if len(shown) > _MOST_PARTS else ""
    return ", ".join(shown[:_MOST_PARTS]) + more


def parts_of(path: Path) -> str:
    """Of a safetensors file, from its header alone."""
    try:
        with safe_open(path, framework="numpy") as file:
            return parts(file.keys())
    except (SafetensorError, OSError) as error:
        return f"cannot be read: {error}"


def _tensors(found: Any, path: Path) -> Tensors:
    for key in _WITHIN:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise DamagedArtefact(f"{path} is no state dict: names and tensors were expected")
    wrapped = all(key.startswith(_WRAPPED) for key in found)
    return {key.removeprefix(_WRAPPED) if wrapped else key: tensor for key, tensor in found.items()}
