"""Exported embedding graphs on disk, so that a backbone is exported once and torch is not even imported later.

<folder>/<embedding_id>.onnx, <embedding_id>.json     the graph, and its card, written last
<folder>/<request>.request                            what was asked for -> embedding_id
"""

import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from services.common.files import digest, sha256_file, write_atomically
from services.common.manifest import BackboneInfo

# Part of every card: raise it when the exported graph changes for the same weights.
GRAPH_FORMAT = 1
_DAY_S = 86_400


class GraphCard(BaseModel):
    """What must be known about a graph without looking into it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = GRAPH_FORMAT
    embedding_id: str
    embedding_size: int
    backbone: BackboneInfo
    height: int
    width: int
    sha256: str
    # Dimensions of each backbone's part of the embedding, when there are several.
    blocks: tuple[int, ...] = ()


def embedding_id(backbone: BackboneInfo, height: int, width: int) -> str:
    """The same id for the same embedding: of the weights themselves, not of where they came from."""
    return digest({**_fields(backbone), "height": height, "width": width})


def _fields(backbone: BackboneInfo) -> dict[str, Any]:
    own = backbone.model_dump(mode="json", exclude={"weights", "members"})
    return {**own, "members": [_fields(it) for it in backbone.members]} if backbone.members else own


def file_in_weights_dir(name: str) -> str:
    """Name of the file that QUERENT_WEIGHTS_DIR may hold for a backbone."""
    return (
        "vgg16_imagenet_features.safetensors" if name == "vgg16" else f"{name.replace('/', '_')}_imagenet.safetensors"
    )


class GraphCache:
    """Safe to share between processes: files appear whole, and equal names have equal content."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """The graph of an embedding id."""
        return self._folder / f"{name}.onnx"

    def requested(self, request: str) -> GraphCard | None:
        """The card that this request led to before."""
        try:
            return self.card((self._folder / f"{request}.request").read_text().strip())
        except OSError:
            return None

    def card(self, name: str) -> GraphCard | None:
        """None for a graph that is not there, not whole, or of another format: it is made again."""
        try:
            card = GraphCard.model_validate_json((self._folder / f"{name}.json").read_bytes())
            whole = sha256_file(self.path(card.embedding_id)) == card.sha256
        except (OSError, ValidationError):
            return None
        return card if whole and card.format == GRAPH_FORMAT and card.embedding_id == name else None

    def put(
        self,
        graph: bytes,
        backbone: BackboneInfo,
        embedding_size: int,
        height: int,
        width: int,
        blocks: tuple[int, ...] = (),
    ) -> GraphCard:
        name = embedding_id(backbone, height, width)
        write_atomically(self.path(name), graph)
        card = GraphCard(
            embedding_id=name,
            embedding_size=embedding_size,
            backbone=backbone,
            height=height,
            width=width,
            sha256=sha256_file(self.path(name)),
            blocks=blocks,
        )
        write_atomically(self._folder / f"{name}.json", card.model_dump_json(indent=2).encode())
        return card

    def drop_older_than_a_day(self) -> None:
        """For graphs of fine-tuned networks, which nobody asks for again once their version is published."""
        for path in self._folder.glob("*.*"):
            if path.stat().st_mtime < time.time() - _DAY_S:
                path.unlink(missing_ok=True)

    def remember(self, request: str, card: GraphCard) -> None:
        write_atomically(self._folder / f"{request}.request", card.embedding_id.encode())
