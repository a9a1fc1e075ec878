"""The port to inference: scores and embeddings of samples, never computed here."""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import structlog

from services.common.access import Access
from services.common.embeddings import EmbeddingStore
from services.common.errors import (
    BadRequest,
    DamagedArtefact,
    Forbidden,
    NotFound,
    QuerentError,
    Unauthenticated,
    Unavailable,
)
from services.common.manifest import Manifest
from services.common.pb import pool_scoring_pb2 as pb
from services.common.pb import pool_scoring_pb2_grpc as pb_grpc
from services.trainer.channel import open_channel
from services.trainer.learning import Watch

log = structlog.get_logger()

# 16,384 ids are 0.6 MB on the wire: far below message limits, and enough to keep a replica busy.
SHARD = 16_384
_ATTEMPTS = 6
_KEPT_STORES = 4
# Generous: the whole pool of a large shard may have to be embedded within one call.
_CALL_TIMEOUT_S = 6 * 3600

_STATUS_TO_ERROR: dict[grpc.StatusCode, type[QuerentError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.FAILED_PRECONDITION: DamagedArtefact,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    # The replica that computed was stopped.
    grpc.StatusCode.CANCELLED: Unavailable,
}


@dataclass(frozen=True)
class Version:
    """A published version and the source that it is asked about."""

    campaign: str
    version: int
    source_id: str
    # What the registry says of it; a replica that answers with another one has another model under this name.
    embedding_id: str = ""

    @classmethod
    def of(cls, manifest: Manifest, source_id: str) -> "Version":
        return cls(manifest.campaign, manifest.version, source_id, manifest.embedding_id)


class PoolScorer(Protocol):
    def score(self, at: Version, ids: Sequence[str], acquisition: str, watch: Watch) -> np.ndarray:
        """Acquisition scores float32 (N,), aligned with `ids`; higher means more worth labelling."""

    def embeddings(self, at: Version, ids: Sequence[str], watch: Watch) -> np.ndarray:
        """Stored embeddings float32 (N, D), aligned with `ids`; computed by inference where missing."""


class GrpcPoolScorer:
    """Splits the ids into shards, calls replicas side by side and retries a shard alone."""

    def __init__(self, address: str, embeddings_dir: Path, parallelism: int, access: Access = Access()) -> None:  # noqa: B008  # frozen
        """Raises BadConfig for files of `access` that cannot be read."""
        self._address = address
        self._embeddings_dir = embeddings_dir
        self._parallelism = parallelism
        self._stores: dict[tuple[str, str], EmbeddingStore] = {}
        self._metadata = access.bearer().metadata
        self._channel = open_channel(f"dns:///{address}", access)
        self._stub = pb_grpc.PoolScoringServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def score(self, at: Version, ids: Sequence[str], acquisition: str, watch: Watch) -> np.ndarray:
        scores: dict[str, float] = {}

        def call(shard: Sequence[str]) -> Any:
            return self._stub.ScorePool(
                pb.ScorePoolRequest(
                    model=at.campaign,
                    version=at.version,
                    source_id=at.source_id,
                    sample_ids=shard,
                    acquisition=acquisition,
                ),
                timeout=_CALL_TIMEOUT_S,
                metadata=self._metadata(),
            )

        for event in self._run(call, ids, watch):
            if event.WhichOneof("event") == "scores":
                scores.update(zip(event.scores.sample_ids, event.scores.scores, strict=True))
        return np.fromiter((scores[i] for i in ids), np.float32, len(ids))

    def embeddings(self, at: Version, ids: Sequence[str], watch: Watch) -> np.ndarray:
        if not ids:
            raise BadRequest("no samples to embed")
        embedding_id = ""

        def call(shard: Sequence[str]) -> Any:
            return self._stub.Embed(
                pb.EmbedRequest(model=at.campaign, version=at.version, source_id=at.source_id, sample_ids=shard),
                timeout=_CALL_TIMEOUT_S,
                metadata=self._metadata(),
            )

        for event in self._run(call, ids, watch):
            embedding_id = event.embedding_id or embedding_id
        if at.embedding_id and embedding_id != at.embedding_id:
            raise Unavailable(
                f"inference at {self._address} embeds {at.campaign!r} version {at.version} as {embedding_id}, "
                f"the registry says {at.embedding_id}; is the trainer's registry the one mounted there?"
            )
        return self._stored(embedding_id, at.source_id).read(ids)

    def _stored(self, embedding_id: str, source_id: str) -> EmbeddingStore:
        key = (embedding_id, source_id)
        if key not in self._stores:
            # Those of fine-tuned versions come and go; the newest few are all that is asked for again.
            for old in list(self._stores)[: -_KEPT_STORES + 1]:
                del self._stores[old]
            self._stores[key] = EmbeddingStore(self._embeddings_dir, embedding_id, source_id)
        self._stores[key].refresh()
        return self._stores[key]

    def _run(self, call: Callable[[Sequence[str]], Any], ids: Sequence[str], watch: Watch) -> Iterator[Any]:
        """Events of all shards as they come; `watch` is looked at twice a second whatever happens."""
        shards = [ids[first : first + SHARD] for first in range(0, len(ids), SHARD)]
        run = _ShardedCall(call, shards, self._address)
        with ThreadPoolExecutor(self._parallelism, thread_name_prefix="scoring") as threads:
            try:
                for shard in range(len(shards)):
                    threads.submit(run.follow, shard)
                yield from run.events(watch)
            finally:
                run.cancel()


class _ShardedCall:
    """The calls of one request, each followed by a thread, their events joined in one queue."""

    def __init__(self, call: Callable[[Sequence[str]], Any], shards: list[Sequence[str]], address: str) -> None:
        self._call = call
        self._shards = shards
        self._address = address
        self._events: queue.Queue[tuple[int, Any]] = queue.Queue()
        self._running: dict[int, Any] = {}
        self._cancelled = False

    def follow(self, shard: int) -> None:
        """Runs in a thread of its own; its last event is an error or None."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if self._cancelled:
                    return
                self._running[shard] = running = self._call(self._shards[shard])
                if self._cancelled:  # in between: cancel() may not have seen this call
                    running.cancel()
                for event in running:
                    self._events.put((shard, event))
                self._events.put((shard, None))
                return
            except grpc.RpcError as error:
                failure = self._translate(error)
                if not isinstance(failure, Unavailable) or attempt == _ATTEMPTS or self._cancelled:
                    self._events.put((shard, failure))
                    return
                log.warning("shard_retried", shard=shard, attempt=attempt, error=str(failure))
                time.sleep(min(0.2 * 2**attempt, 3.0))
            # Whatever else it is must reach the caller: nobody looks at this thread.
            except Exception as error:
                self._events.put((shard, error))
                return

    def events(self, watch: Watch) -> Iterator[Any]:
        done: dict[str, dict[int, tuple[int, int]]] = {}
        open_shards = len(self._shards)
        phase = "score"
        while open_shards:
            try:
                shard, event = self._events.get(timeout=0.5)
            except queue.Empty:
                shard, event = -1, None
            if isinstance(event, Exception):
                raise event
            if event is None:
                open_shards -= shard >= 0
            else:
                phase = self._count(shard, event, done) or phase
                yield event
            counts = done.get(phase, {}).values()
            watch.progress(phase, sum(d for d, _ in counts), sum(t for _, t in counts))

    def _count(self, shard: int, event: Any, done: dict[str, dict[int, tuple[int, int]]]) -> str:
        if not event.HasField("progress"):
            return ""
        progress = event.progress
        done.setdefault(progress.phase, {})[shard] = (progress.done, progress.total)
        return str(progress.phase)

    def cancel(self) -> None:
        self._cancelled = True
        for call in list(self._running.values()):
            call.cancel()

    def _translate(self, error: grpc.RpcError) -> QuerentError:
        status = error.code()
        kind = _STATUS_TO_ERROR.get(status, QuerentError)
        details = str(error.details())
        if kind is NotFound and details.startswith(("no version", "no model")):
            # It is published, so this replica's view of the registry is late (a network file system) or of another.
            kind, details = Unavailable, f"{details}; is the trainer's registry the one mounted there?"
        return kind(f"inference at {self._address} answered {status.name}: {details}")
