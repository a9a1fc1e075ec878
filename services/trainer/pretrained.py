"""A configured backbone as it comes: its exported graph from the cache, its torch module only when needed."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from services.common.errors import DamagedArtefact
from services.common.files import digest, sha256_file
from services.common.manifest import BackboneInfo
from services.trainer.config import BackboneConfig
from services.trainer.graph_cache import GRAPH_FORMAT, GraphCache, GraphCard, file_in_weights_dir
from services.trainer.learning import FittedModel, Head, SilentWatch, Watch
from services.trainer.watched import watched

if TYPE_CHECKING:
    from torch import nn

    from services.trainer.backbones import Backbone

_BATCH = 32


class PretrainedBackbone:
    """torch is imported by `build` and `embed`, and by `card` unless the graph is cached."""

    def __init__(
        self,
        config: BackboneConfig,
        height: int,
        width: int,
        weights_dir: Path | None,
        cache: GraphCache,
        seed: int,
        threads: int,
    ) -> None:
        self._config = config
        self._height, self._width = height, width
        self._weights_dir = weights_dir
        self._cache = cache
        self._seed = seed
        self._threads = threads
        self._card: GraphCard | None = None
        self._backbone: Backbone | None = None

    def card(self, watch: Watch) -> GraphCard:
        """The exported graph's card; exports when it is not in the cache."""
        if self._card is None or not self._cache.path(self._card.embedding_id).is_file():
            request = self._request()
            self._card = self._cache.requested(request)
            if self._card is None:
                self._card = self._exported(watch)
                self._cache.remember(request, self._card)
        return self._card

    def build(self, watch: Watch) -> "Backbone":
        """The torch module with its weights; it is kept."""
        if self._backbone is None:
            # The first import of torch and timm takes seconds, on a busy machine many.
            self._backbone = watched(partial(self._built, watch), "build", watch)
            use_threads(self._threads)
        return self._backbone

    def _built(self, watch: Watch) -> "Backbone":
        use_threads(self._threads)
        from services.trainer.backbones import build

        return build(self._config, self._height, self._width, self._weights_dir, self._seed, watch)

    def model(self, head: Head, out_of_fold: dict[str, bool], notes: dict[str, float], watch: Watch) -> FittedModel:
        """This backbone with a head on it."""
        card = self.card(watch)
        return FittedModel(
            head=head,
            backbone=card.backbone,
            embedding_id=card.embedding_id,
            embedding_size=card.embedding_size,
            embedding_shared=True,
            embedding_graph=self._cache.path(card.embedding_id),
            out_of_fold=out_of_fold,
            notes=notes,
            reference=self._embed,
        )

    def _embed(self, images: np.ndarray) -> np.ndarray:
        backbone = self.build(SilentWatch())
        card = self._card
        if card is not None and backbone.embedding_id != card.embedding_id:
            raise DamagedArtefact(
                f"the weights of {self._config.name!r} are no longer those that {card.embedding_id} was made from"
            )
        return embed(backbone.net, images)

    def _exported(self, watch: Watch) -> GraphCard:
        # The card's name follows from the weights, which may have come another way before.
        backbone = self.build(watch)
        return self._cache.card(backbone.embedding_id) or export(self._cache, backbone, backbone.info, watch)

    def _request(self) -> str:
        """Digest of everything that decides the embedding and can be seen without torch."""
        return digest(
            {
                "format": GRAPH_FORMAT,
                "backbone": self._config.model_dump(mode="json"),
                # What "default" stands for may change.
                "taps": [it.resolved_taps for it in self._single()],
                "size": [self._height, self._width],
                "seed": self._seed if any(it.weights == "none" for it in self._single()) else 0,
                "files": [[sha256_file(path) for path in self._files(it)] for it in self._single()],
            }
        )

    def _single(self) -> Sequence[BackboneConfig]:
        return self._config.members or (self._config,)

    def _files(self, config: BackboneConfig) -> list[Path]:
        """The weights file that would be read, if it is there; a download is named by its own sha256."""
        source = config.weights
        if source == "none" or not isinstance(source, str):
            return []
        given = [] if source == "default" else [source]
        names = given or [file_in_weights_dir(name) for name in (config.name, Path(config.name).name)]
        places = [Path(name).expanduser() for name in given]
        places += [self._weights_dir / name for name in names] if self._weights_dir else []
        return [path for path in places if path.is_file()][:1]


def export(cache: GraphCache, backbone: "Backbone", info: BackboneInfo, watch: Watch) -> GraphCard:
    """Put the graph of a torch module into the cache; looks at `watch` meanwhile."""

    def work() -> bytes:
        from services.trainer.torch_export import export_embedding_graph

        return export_embedding_graph(backbone.net, backbone.height, backbone.width)

    graph = watched(work, "export", watch)
    return cache.put(graph, info, backbone.embedding_size, backbone.height, backbone.width, backbone.blocks)


def embed(net: "nn.Module", images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32 (N, D), on the device where the module is."""
    import torch

    device = device_of(net)
    parts = []
    with torch.inference_mode():
        for first in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[first : first + _BATCH]))
            parts.append(net(batch.to(device)).cpu().numpy())
    return np.concatenate(parts)


def device_of(net: "nn.Module") -> str:
    return next(net.parameters()).device.type


def use_threads(threads: int) -> None:
    """Let torch use this many threads. Results repeat exactly for the same number."""
    # torch's OpenMP reads this when it is loaded. Its threads otherwise spin while they wait: with another busy
    # process on the same cores, every barrier lasts a time slice (measured: 20 ms a step became 1,000).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
