"""What images a data set holds: Hugging Face parquet, image folders, CSV and JSONL manifests."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.common.errors import BadConfig, NotFound
from services.common.files import digest
from services.common.samples import ImageReader, image_column
from services.trainer.config import SourceConfig

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})


@dataclass(frozen=True)
class ListedImage:
    # Relative to the source's location; a parquet file when row >= 0.
    file: str
    row: int
    label: str | None
    # "pool" or "test"
    split: str

    @property
    def name(self) -> str:
        return self.file if self.row < 0 else f"{self.file}, row {self.row}"


@dataclass(frozen=True)
class Listed:
    images: tuple[ListedImage, ...]
    # In the data set's own order where it has one.
    classes: tuple[str, ...]
    reader: ImageReader

    def encoded(self, image: ListedImage) -> bytes:
        """The image's file; a few row groups of parquet are kept, so read in listing order."""
        return self.reader.read(image.file, image.row)


def fingerprint(root: Path) -> str:
    """Changes when a file is added, removed or replaced. Looks at names, sizes and times, reads no image.

    Raises BadConfig when there is nothing at `root`.
    """
    if not root.exists():
        raise BadConfig(f"{root} does not exist; set QUERENT_DATA_DIR to the folder that contains {root.name!r}")
    folder = root if root.is_dir() else root.parent
    stats = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return digest([[str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for path, stat in stats])


def list_images(config: SourceConfig, root: Path) -> Listed:
    """Raises BadConfig saying what was looked for and where."""
    if config.kind == "manifest":
        listed = _from_manifest(root)
    elif config.kind == "folder":
        listed = _from_folder(config, root)
    else:
        listed = _from_parquet(config, root)
    if not listed.images:
        raise BadConfig(f"{root} has no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    return listed


# ---- Hugging Face parquet ----------------------------------------------------------------------------


def _from_parquet(config: SourceConfig, root: Path) -> Listed:
    files = {role: _parquet_files(root, split.split) for role, split in _roles(config)}
    if not files["pool"]:
        found = ", ".join(sorted(p.name for p in root.rglob("*.parquet"))) or "no parquet file at all"
        raise BadConfig(f"{root} has no parquet file of the split {config.pool.split!r}; it has {found}")
    listed: list[ListedImage] = []
    classes: tuple[str, ...] = ()
    for role, paths in files.items():
        for path in paths:
            images, names = _parquet_rows(path, root, role)
            listed += images
            classes = classes or names
    return Listed(tuple(listed), classes, ImageReader(root))


def _roles(config: SourceConfig) -> list[tuple[str, Any]]:
    return [("pool", config.pool), ("test", config.test)]


def _parquet_files(root: Path, split: str) -> list[Path]:
    named = {*root.rglob(f"{split}-*.parquet"), *root.rglob(f"{split}.parquet"), *root.rglob(f"{split}/*.parquet")}
    return sorted(named)


def _parquet_rows(path: Path, root: Path, role: str) -> tuple[list[ListedImage], tuple[str, ...]]:
    """Every row without its image, which is read when it is needed."""
    try:
        parquet = pq.ParquetFile(path)
        image_column(parquet.schema_arrow)
        named = "label" in parquet.schema_arrow.names
        codes = parquet.read(columns=["label"])["label"].to_pylist() if named else [None] * parquet.metadata.num_rows
    except (pa.ArrowInvalid, NotFound) as error:
        raise BadConfig(f"{path} is not a parquet file of images: {error}") from error
    names = _class_names(parquet.schema_arrow)
    file = str(path.relative_to(root))
    labels = (None if code is None or code < 0 else (names[code] if names else str(code)) for code in codes)
    return [ListedImage(file, row, label, role) for row, label in enumerate(labels)], names


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """Names of the ClassLabel feature in the Hugging Face metadata; empty without it."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return ()
    features = json.loads(metadata).get("info", {}).get("features", {})
    return tuple(features.get("label", {}).get("names", ()))


# ---- folders -----------------------------------------------------------------------------------------


def _from_folder(config: SourceConfig, root: Path) -> Listed:
    """<root>/<split>/<class>/*, or <root>/<class>/* when there is no folder of the pool's split."""
    pool_root = root / config.pool.split
    if not pool_root.is_dir() and (root / config.test.split).is_dir():
        found = sorted(p.name for p in root.iterdir() if p.is_dir())
        raise BadConfig(
            f"{root} has a folder {config.test.split!r} but none {config.pool.split!r} (it has {', '.join(found)}); "
            "name the pool's folder in source.pool.split"
        )
    roles = {"pool": pool_root if pool_root.is_dir() else root}
    if pool_root.is_dir() and (root / config.test.split).is_dir():
        roles["test"] = root / config.test.split
    listed: list[ListedImage] = []
    for role, folder in roles.items():
        for path in _image_files(folder):
            inside = path.relative_to(folder).parts
            label = inside[0] if len(inside) > 1 else None
            listed.append(ListedImage(str(path.relative_to(root)), -1, label, role))
    return Listed(tuple(listed), (), ImageReader(root))


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )


# ---- manifests ---------------------------------------------------------------------------------------


def _from_manifest(path: Path) -> Listed:
    """CSV with a header, or JSON lines: `file` (relative to the manifest), optional `label` and `split`."""
    root = path.parent
    listed = []
    for number, row in enumerate(_manifest_rows(path), start=1):
        name = str(row.get("file") or "")
        file = (root / name).resolve()
        if not name or not file.is_relative_to(root.resolve()) or not file.is_file():
            raise BadConfig(f"{path}, entry {number}: {name!r} is not a file beside the manifest")
        split = "test" if row.get("split") == "test" else "pool"
        listed.append(ListedImage(name, -1, row.get("label") or None, split))
    return Listed(tuple(listed), (), ImageReader(root))


def _manifest_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            rows = csv.DictReader(file)
            if "file" not in (rows.fieldnames or ()):
                raise BadConfig(f"{path} needs a header with the column 'file' (and 'label' and 'split' if known)")
            yield from rows
            return
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadConfig(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise BadConfig(f"{path}, line {number} is not a JSON object")
            yield row
