"""What images a data set holds: Hugging Face parquet, image folders, CSV and JSONL manifests."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.common.errors import BadConfig
from services.common.files import digest
from services.common.samples import image_column
from services.trainer.config import SourceConfig

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})


@dataclass(frozen=True)
class ListedImage:
    # Relative to the source's location; a parquet file when row >= 0.
    file: str
    row: int
    label: str | None
    split: str
    root: Path
    # The image itself, held only for parquet rows: they cannot be read one by one cheaply.
    held: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.file if self.row < 0 else f"{self.file}, row {self.row}"

    def encoded(self) -> bytes:
        return self.held if self.held is not None else (self.root / self.file).read_bytes()


@dataclass(frozen=True)
class Listed:
    images: tuple[ListedImage, ...]
    # In the data set's own order where it has one.
    classes: tuple[str, ...]
    # Changes when a file is added, removed or replaced.
    fingerprint: str

    def read(self) -> Iterator[tuple[ListedImage, bytes]]:
        for image in self.images:
            yield image, image.encoded()


def list_images(config: SourceConfig, root: Path) -> Listed:
    """Raises BadConfig saying what was looked for and where."""
    if not root.exists():
        raise BadConfig(f"{root} does not exist; set QUERENT_DATA_DIR to the folder that contains {root.name!r}")
    if config.kind == "manifest":
        listed = _from_manifest(root)
    elif config.kind == "folder":
        listed = _from_folder(config, root)
    else:
        listed = _from_parquet(config, root)
    if not listed.images:
        raise BadConfig(f"{root} has no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    return listed


def _fingerprint(paths: list[Path], root: Path) -> str:
    return digest([[str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns] for p in paths])


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
    return Listed(tuple(listed), classes, _fingerprint([p for paths in files.values() for p in paths], root))


def _roles(config: SourceConfig) -> list[tuple[str, Any]]:
    return [("pool", config.pool), ("test", config.test)]


def _parquet_files(root: Path, split: str) -> list[Path]:
    named = {*root.rglob(f"{split}-*.parquet"), *root.rglob(f"{split}.parquet"), *root.rglob(f"{split}/*.parquet")}
    return sorted(named)


def _parquet_rows(path: Path, root: Path, role: str) -> tuple[list[ListedImage], tuple[str, ...]]:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise BadConfig(f"{path} is not a parquet file: {error}") from error
    column = image_column(table.schema)
    names = _class_names(table.schema)
    codes = table["label"].to_pylist() if "label" in table.column_names else [None] * table.num_rows
    file = str(path.relative_to(root))
    images = []
    for row, (entry, code) in enumerate(zip(table[column].to_pylist(), codes, strict=True)):
        label = None if code is None or code < 0 else (names[code] if names else str(code))
        images.append(ListedImage(file, row, label, role, root, entry["bytes"] or b""))
    return images, names


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
    roles = {"pool": pool_root if pool_root.is_dir() else root}
    if pool_root.is_dir() and (root / config.test.split).is_dir():
        roles["test"] = root / config.test.split
    listed: list[ListedImage] = []
    for role, folder in roles.items():
        for path in _image_files(folder):
            inside = path.relative_to(folder).parts
            label = inside[0] if len(inside) > 1 else None
            listed.append(ListedImage(str(path.relative_to(root)), -1, label, role, root))
    return Listed(tuple(listed), (), _fingerprint([root / i.file for i in listed], root))


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
        listed.append(ListedImage(name, -1, row.get("label") or None, split, root))
    return Listed(tuple(listed), (), _fingerprint([path, *(root / i.file for i in listed)], root))


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
