"""Getting the data sets that the examples use: found, downloaded with a checksum, or made from what is installed.

Whatever they come from, they end as Hugging Face parquet, so that no service ever reads a pickle.

    python -m services.trainer.datasets cifar10      prints the folder that contains cifar10/
"""

import argparse
import io
import json
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from services.common.errors import DamagedArtefact, QuerentError, Unavailable
from services.trainer.downloads import download_verified

Kind = Literal["cifar10", "digits"]
Say = Callable[[str], None]

# Of the archive whose md5 torchvision knows.
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
DIGITS_TRAIN = 1_400
_DIGITS_SEED = 0
_DIGITS_SIZE = 32
_ROWS_PER_GROUP = 1_000
_SPLITS = ("train", "test")
_TELL_EVERY_S = 2.0


def ensure_dataset(kind: Kind, data_dir: Path | None, download_dir: Path, say: Say) -> Path:
    """The folder that contains `kind`: `data_dir` when it is there, else `download_dir`, filled if need be.

    Raises Unavailable naming what was tried.
    """
    candidates = [d for d in (data_dir, download_dir) if d is not None]
    for folder in candidates:
        if _complete(folder / kind):
            return folder
    tried = "; ".join(f"no {kind}/train-*.parquet and {kind}/test-*.parquet in {d}" for d in candidates)
    target = download_dir / kind
    try:
        if target.exists() and any(target.iterdir()):
            # It may be somebody's own data under another layout: never written over.
            raise Unavailable(f"{target} holds other files and is left alone")
        if kind == "digits":
            make_digits(target)
        else:
            download_cifar10(target, say)
    except (Unavailable, DamagedArtefact) as error:
        raise Unavailable(f"{kind} is not available. Tried: {tried}; {error}") from error
    except OSError as error:
        raise Unavailable(
            f"{kind} is not available. Tried: {tried}; {download_dir} cannot be written ({error})"
        ) from error
    return download_dir


def _complete(folder: Path) -> bool:
    return all(any(folder.glob(f"{split}-*.parquet")) for split in _SPLITS)


# ---- CIFAR-10 ----------------------------------------------------------------------------------------


def download_cifar10(target: Path, say: Say, dataset: Any = None, sha256: str = CIFAR10_SHA256) -> None:
    """torchvision's verified CIFAR-10, written once as parquet.

    `dataset`: a class like torchvision.datasets.CIFAR10, which is the default. Raises Unavailable without a
    connection and DamagedArtefact for an archive that is not the expected one.
    """
    cifar10 = dataset or _torchvision_cifar10()
    raw = target.parent / ".downloads" / target.name
    # torchvision's own download waits for ever for a server that does not answer. Given the archive, it only
    # verifies (by its md5 sums) and unpacks.
    say(f"downloading {cifar10.url}")
    download_verified(cifar10.url, raw / cifar10.filename, sha256, watch=_Told(say))
    say("converting CIFAR-10 to parquet (once)")
    try:
        splits = {split: cifar10(str(raw), train=split == "train", download=True) for split in _SPLITS}
    except RuntimeError as error:
        raise DamagedArtefact(f"the CIFAR-10 archive of {cifar10.url} cannot be used: {error}") from error
    tables = {
        split: image_table((_png(pixels) for pixels in part.data), part.targets, part.classes)
        for split, part in splits.items()
    }
    _write_splits(target, tables)
    shutil.rmtree(raw)


def _torchvision_cifar10() -> Any:
    # Here and not above: torchvision takes seconds to import, and most runs find their data.
    from services.trainer.torchvision_shim import torchvision

    return torchvision.datasets.CIFAR10


class _Told:
    """A Watch that says every few seconds how far the download is."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._told_at = time.monotonic()

    def progress(self, phase: str, done: int, total: int, _detail: str = "") -> None:
        now = time.monotonic()
        if now > self._told_at + _TELL_EVERY_S:
            self._told_at = now
            self._say(f"  {phase}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")


# ---- digits ------------------------------------------------------------------------------------------


def make_digits(target: Path) -> None:
    """scikit-learn's 1,797 handwritten digits, shuffled, as 32 px images: 1,400 train and 397 test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), 0..16 before
    order = np.random.default_rng(_DIGITS_SEED).permutation(len(pixels))
    parts = {"train": order[:DIGITS_TRAIN], "test": order[DIGITS_TRAIN:]}
    names = [str(name) for name in bunch.target_names]
    tables = {
        split: image_table((_png(pixels[i], _DIGITS_SIZE) for i in rows), [int(bunch.target[i]) for i in rows], names)
        for split, rows in parts.items()
    }
    _write_splits(target, tables)


# ---- Hugging Face parquet ----------------------------------------------------------------------------


def image_table(encoded: Iterable[bytes], labels: Sequence[int], class_names: Sequence[str]) -> pa.Table:
    """The Hugging Face layout: `img` (struct of bytes and path), `label`, and the ClassLabel names."""
    features = {"img": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("img", image_type), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = pa.array([{"bytes": image, "path": None} for image in encoded], image_type)
    return pa.Table.from_arrays([images, pa.array(labels, pa.int64())], schema=schema)


def _png(pixels: np.ndarray, size: int | None = None) -> bytes:
    image = Image.fromarray(pixels)
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _write_splits(target: Path, tables: dict[str, pa.Table]) -> None:
    """All splits or none: the folder appears under its name only when it is complete."""
    staged = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    staged.mkdir(parents=True)
    try:
        for split, table in tables.items():
            pq.write_table(table, staged / f"{split}-00000-of-00001.parquet", row_group_size=_ROWS_PER_GROUP)
        staged.rename(target)
    except OSError:
        # Another process may have finished the same work first.
        if not _complete(target):
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the folder, or with exit code 1 why there is none; progress goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.datasets")
    parser.add_argument("kind", choices=("cifar10", "digits"))
    parser.add_argument("--data-dir", type=Path, help="where data sets already lie")
    parser.add_argument("--download-dir", type=Path, default=Path(".querent/data"))
    given = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        print(ensure_dataset(given.kind, given.data_dir, given.download_dir, say))
    except QuerentError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
