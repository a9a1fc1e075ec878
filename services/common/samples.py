"""Sources: sets of images with ids, read the same way by both services.

A source is described by `<source_id>.json` and listed by `<source_id>.index.parquet`, one row a sample:
id, split, file (relative to the source's location), row (inside a parquet file; -1 for a plain file) and
label. The label column is the simulated oracle's alone; SampleStore never reads it.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from services.common import images
from services.common.errors import BadImage, DamagedArtefact, NotFound, shown
from services.common.files import sha256_file
from services.common.ids import ID, WIDTH, IdIndex, Ids, pack, unpack

INDEX_COLUMNS = ("id", "split", "file", "row")
_CACHED_ROW_GROUPS = 8


class Source(BaseModel):
    """sources/<source_id>.json"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_id: str
    kind: Literal["parquet", "folder", "manifest"]
    # Relative to QUERENT_DATA_DIR, which may be mounted elsewhere in the other service.
    location: str
    height: int
    width: int
    classes: tuple[str, ...]
    id_scheme: Literal["sha256-16"] = "sha256-16"
    # split -> number of samples
    splits: dict[str, int]
    # sha256 of the index file
    fingerprint: str


def sample_id(encoded: bytes) -> str:
    """First 16 bytes, in hex, of the sha256 of the encoded image: never a name, which may hold the class."""
    return hashlib.sha256(encoded).hexdigest()[:32]


def read_source(sources_dir: Path, source_id: str) -> Source:
    """Raises NotFound or DamagedArtefact."""
    path = sources_dir / f"{source_id}.json"
    # The id comes from requests: compare it with what is there rather than make a path of it.
    if f"{source_id}.json" not in {p.name for p in sources_dir.glob("*.json")}:
        raise NotFound(f"no source {shown(source_id)}; is the trainer's sources folder the one mounted here?")
    try:
        return Source.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DamagedArtefact(f"{path} is not a source description: {error.errors()[0]['msg']}") from error


class SampleStore:
    """Random access to the images of one source by sample id. Safe to use from several threads."""

    def __init__(self, source: Source, index_path: Path, data_dir: Path) -> None:
        self.source = source
        self._index_path = index_path
        self._reader = ImageReader(data_dir / source.location)

    @classmethod
    def open(cls, sources_dir: Path, data_dir: Path, source_id: str) -> "SampleStore":
        """Raises NotFound for an unknown source, DamagedArtefact when its index is not the one described."""
        source = read_source(sources_dir, source_id)
        index_path = sources_dir / f"{source_id}.index.parquet"
        if not index_path.is_file() or sha256_file(index_path) != source.fingerprint:
            raise DamagedArtefact(f"{index_path} is missing or does not match its source description")
        return cls(source, index_path, data_dir)

    @cached_property
    def _index(self) -> "_Index":
        return _Index(pq.read_table(self._index_path, columns=list(INDEX_COLUMNS)))

    def ids(self, split: str) -> list[str]:
        """Ids of a split in storage order. Raises NotFound."""
        return unpack(self.packed_ids(split))

    def packed_ids(self, split: str) -> np.ndarray:
        """`ids` as an array of S40: a million are 40 MB instead of a million strings."""
        if split not in self.source.splits:
            raise NotFound(f"no split {shown(split)} in this source; it has {', '.join(self.source.splits)}")
        return self._index.ids_of(split)

    def positions(self, ids: Ids) -> np.ndarray:
        """Place of each sample in storage order, int64 (N,). Raises NotFound naming the first unknown id."""
        return self._index.positions(pack(ids))

    def ids_at(self, positions: np.ndarray) -> np.ndarray:
        """S40 (N,): the ids of samples by their place in storage order."""
        return self._index.ids_at(positions)

    def encoded(self, ids: Sequence[str]) -> list[bytes]:
        """The samples' files as they lie in the source."""
        positions = self.positions(ids)
        out = [b""] * len(ids)
        # In storage order, so that each row group of a parquet file is read once.
        for i in np.argsort(positions, kind="stable"):
            out[i] = self._reader.read(*self._index.place(int(positions[i])))
        return out

    def images(self, ids: Sequence[str]) -> np.ndarray:
        """Decoded images, uint8 RGB [N, H, W, 3]. Raises BadImage naming the sample."""
        out = np.empty((len(ids), self.source.height, self.source.width, 3), np.uint8)
        for i, encoded in enumerate(self.encoded(ids)):
            try:
                out[i] = images.decode(encoded, self.source.height, self.source.width)
            except BadImage as error:
                raise BadImage(f"sample {ids[i]}: {error}") from error
        return out


class _Index:
    def __init__(self, table: pa.Table) -> None:
        self._ids = IdIndex(_packed(table["id"]))
        self._splits = table["split"].combine_chunks().dictionary_encode()
        self._files = table["file"].combine_chunks().dictionary_encode()
        self._rows = table["row"].to_numpy()

    def ids_of(self, split: str) -> np.ndarray:
        code = self._splits.dictionary.to_pylist().index(split)
        return np.asarray(self._ids.ids[self._splits.indices.to_numpy() == code])

    def ids_at(self, positions: np.ndarray) -> np.ndarray:
        return np.asarray(self._ids.ids[positions])

    def positions(self, ids: np.ndarray) -> np.ndarray:
        positions = self._ids.find(ids)
        if len(unknown := np.flatnonzero(positions < 0)):
            raise NotFound(f"no sample {ids[unknown[0]].decode()!r} in this source")
        return positions

    def place(self, position: int) -> tuple[str, int]:
        return self._files[position].as_py(), int(self._rows[position])


def _packed(ids: pa.ChunkedArray) -> np.ndarray:
    """S40 (N,), without a Python string for each. Raises DamagedArtefact."""
    lengths = pc.max(pc.binary_length(ids)).as_py() or 0
    if lengths > WIDTH:
        raise DamagedArtefact(f"the source's index holds an id of {lengths} bytes; ids are at most {WIDTH}")
    padded = pc.utf8_rpad(ids.cast(pa.string()), WIDTH, padding="\0").combine_chunks()
    return (
        np.frombuffer(padded.buffers()[2], ID, len(padded), padded.offset * WIDTH) if len(padded) else np.empty(0, ID)
    )


class ImageReader:
    """Encoded images of plain files and of parquet files, of which a few row groups are kept. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, tuple[pq.ParquetFile, np.ndarray]] = {}
        self._groups: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, file: str, row: int) -> bytes:
        """`row`: inside a parquet file; -1 for a plain file. Raises NotFound."""
        if row < 0:
            try:
                return (self._root / file).read_bytes()
            except OSError as error:
                raise self._unreadable(file, error) from error
        with self._lock:
            parquet, ends = self._open(file)
            group = int(np.searchsorted(ends, row, side="right"))
            first = int(ends[group - 1]) if group else 0
            return self._group(file, parquet, group)[row - first]

    def _open(self, file: str) -> tuple[pq.ParquetFile, np.ndarray]:
        if file not in self._files:
            try:
                parquet = pq.ParquetFile(self._root / file)
            except (OSError, pa.ArrowInvalid) as error:
                raise self._unreadable(file, error) from error
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            self._files[file] = parquet, np.cumsum(sizes)
        return self._files[file]

    def _unreadable(self, file: str, error: Exception) -> NotFound:
        return NotFound(
            f"{self._root / file} cannot be read ({getattr(error, 'strerror', None) or error}); "
            "is QUERENT_DATA_DIR the folder that the source was made from?"
        )

    def _group(self, file: str, parquet: pq.ParquetFile, group: int) -> list[bytes]:
        key = (file, group)
        if key not in self._groups:
            column = image_column(parquet.schema_arrow)
            table = parquet.read_row_group(group, columns=[f"{column}.bytes"])
            self._groups[key] = [entry["bytes"] or b"" for entry in table[column].to_pylist()]
            if len(self._groups) > _CACHED_ROW_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


def image_column(schema: pa.Schema) -> str:
    """Name of the Hugging Face image column: a struct of `bytes` and `path`. Raises NotFound."""
    for field in schema:
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {f.name for f in field.type}:
            return str(field.name)
    raise NotFound("the parquet file has no image column (a struct of `bytes` and `path`)")
