"""The folders that inference reads and writes beside the registry: opened once, kept open."""

import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TypeVar

import structlog

from services.common.embeddings import EmbeddingStore
from services.common.errors import DamagedArtefact, NotFound
from services.common.manifest import Manifest
from services.common.registry import Registry
from services.common.samples import SampleStore, read_source

log = structlog.get_logger()

_K = TypeVar("_K")
_V = TypeVar("_V")

_KEPT_OPEN = 8
_KEPT_FINE_TUNED = 2


class Folders:
    """Opens sources and embedding stores. Its methods read files: call them in threads."""

    def __init__(self, sources_dir: Path, data_dir: Path, embeddings_dir: Path, registry: Registry) -> None:
        self._sources_dir = sources_dir
        self._data_dir = data_dir
        self._embeddings_dir = embeddings_dir
        self._registry = registry
        self._samples: OrderedDict[str, SampleStore] = OrderedDict()
        self._stores: OrderedDict[tuple[str, str], EmbeddingStore] = OrderedDict()
        self._lock = threading.Lock()

    def samples(self, source_id: str) -> SampleStore:
        """Raises NotFound or DamagedArtefact."""
        # Reading the description anew each time (it is small) notices a source that was made again.
        source = read_source(self._sources_dir, source_id)
        with self._lock:
            samples = self._samples.get(source_id)
            if samples is None or samples.source != source:
                samples = SampleStore.open(self._sources_dir, self._data_dir, source_id)
            _keep(self._samples, source_id, samples)
            return samples

    def embeddings(self, embedding_id: str, source_id: str) -> EmbeddingStore:
        """Both names were checked by their owners: the manifest's loader and `samples`."""
        key = (embedding_id, source_id)
        with self._lock:
            store = self._stores.get(key)
            if store is None:
                store = EmbeddingStore(self._embeddings_dir, *key)
            _keep(self._stores, key, store)
            return store

    def drop_outdated_embeddings(self, newest: Manifest) -> None:
        """Delete the stores of a campaign's fine-tuned versions, except those of the last two."""
        versions = [v for v in self._registry.versions(newest.campaign) if v < newest.version]
        own = [m for v in reversed(versions) if (m := self._fine_tuned(newest.campaign, v))]
        kept = {newest.embedding_id, *(m.embedding_id for m in own[: _KEPT_FINE_TUNED - 1])}
        # The same labels and seed give the same network: another campaign may be scoring with one of these.
        kept |= {i for name in self._registry.campaigns() if name != newest.campaign for i in self._latest(name)}
        for embedding_id in {m.embedding_id for m in own} - kept:
            self._drop(embedding_id)

    def _latest(self, campaign: str) -> set[str]:
        versions = self._registry.versions(campaign)[-_KEPT_FINE_TUNED:]
        return {m.embedding_id for v in versions if (m := self._fine_tuned(campaign, v))}

    def _fine_tuned(self, campaign: str, version: int) -> Manifest | None:
        try:
            manifest = self._registry.manifest(campaign, version)
        except (DamagedArtefact, NotFound):
            return None
        return manifest if not manifest.embedding_shared else None

    def _drop(self, embedding_id: str) -> None:
        folder = self._embeddings_dir / embedding_id
        # The id comes from a manifest that nothing has checked yet: one plain folder of ours, or nothing.
        if folder.parent != self._embeddings_dir or folder.name in {"", ".", ".."} or not folder.is_dir():
            return
        shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            for key in [k for k in self._stores if k[0] == embedding_id]:
                del self._stores[key]
        log.info("embeddings_dropped", embedding_id=embedding_id, why="its fine-tuned version is outdated")


def _keep(cache: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > _KEPT_OPEN:
        cache.popitem(last=False)
