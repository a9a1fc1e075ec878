"""What can happen to a version's files: name -> a function that does it to a folder.

    DAMAGES["truncated"](folder, registry, model)

Other files come from the campaign's version 1 or, for version 1, from another model of its kind.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from services.common.manifest import HEAD_FILE, MANIFEST_FILE, MODEL_FILE
from services.common.registry import Registry
from tests.tiny_models import TinyModel, stage, write_manifest

Damage = Callable[[Path, Registry, TinyModel], None]


def _truncated(folder: Path, registry: Registry, model: TinyModel) -> None:
    content = (folder / MODEL_FILE).read_bytes()
    (folder / MODEL_FILE).write_bytes(content[: len(content) // 2])


def _bit_flipped(name: str) -> Damage:
    def flip(folder: Path, registry: Registry, model: TinyModel) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip


def _swapped(name: str, honest: bool = False) -> Damage:
    """`honest`: the manifest has the checksum of the other file."""

    def swap(folder: Path, registry: Registry, model: TinyModel) -> None:
        other = registry.staging_dir()
        stage(replace(model, seed=model.seed + 99, version=1), other)
        shutil.copy(other / name, folder / name)
        if honest:
            write_manifest(model, folder)

    return swap


def _says(**changes: object) -> Damage:
    """A manifest that tells something else of the files that lie there."""
    return lambda folder, registry, model: _nothing(write_manifest(model, folder, changes))


def _not_a_graph(folder: Path, registry: Registry, model: TinyModel) -> None:
    (folder / MODEL_FILE).write_bytes(b"not a graph")
    write_manifest(model, folder)


def _another_input(folder: Path, registry: Registry, model: TinyModel) -> None:
    graph = onnx.load(folder / MODEL_FILE)
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(graph, folder / MODEL_FILE)
    write_manifest(model, folder)


def _not_numbers(folder: Path, registry: Registry, model: TinyModel) -> None:
    for name in (MODEL_FILE, HEAD_FILE):
        graph = onnx.load(folder / name)
        [weights] = [w for w in graph.graph.initializer if w.name == "weights"]
        weights.CopyFrom(numpy_helper.from_array(np.full(weights.dims, np.nan, np.float32), weights.name))
        onnx.save(graph, folder / name)
    write_manifest(model, folder)


def _nothing(_: object) -> None:
    return None


DAMAGES: Mapping[str, Damage] = {
    "truncated": _truncated,
    "bit flipped": _bit_flipped(MODEL_FILE),
    "bit flipped in the head": _bit_flipped(HEAD_FILE),
    "missing": lambda folder, registry, model: (folder / MODEL_FILE).unlink(),
    "another version's network": _swapped(MODEL_FILE),
    "another version's head": _swapped(HEAD_FILE),
    "no manifest": lambda folder, registry, model: (folder / MANIFEST_FILE).unlink(),
    "a manifest that is no JSON": lambda folder, registry, model: _nothing((folder / MANIFEST_FILE).write_text("{")),
    "another version's manifest": _says(version=99),
    "other classes in the manifest": _says(classes=("red", "green")),
    "another size in the manifest": _says(input_height=9),
    "not a graph": _not_a_graph,
    "another model's head": _swapped(HEAD_FILE, honest=True),
    "another input": _another_input,
    "weights that are not numbers": _not_numbers,
}
