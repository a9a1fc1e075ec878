"""WatchModel: what answers now, and again whenever another version does."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from services.common.errors import DamagedArtefact, ModelNotReady, NotFound, Overloaded, Unavailable, shown
from services.inference.store import Description, ModelStore

log = structlog.get_logger()


@dataclass(frozen=True)
class Seen:
    campaign: str
    # None: the campaign is gone, or has nothing yet that could be described.
    description: Description | None


class Watchers:
    """Watches last for as long as their callers like, so that only `limit` of them may be open at once."""

    def __init__(self, store: ModelStore, limit: int) -> None:
        self._store = store
        self._limit = limit
        self._open = 0

    async def watch(self, name: str) -> AsyncGenerator[Seen, None]:
        """Raises what `watch` raises, and Overloaded."""
        if self._open >= self._limit:
            raise Overloaded(
                f"{self._open} watches are open here, which is the limit (half of INFERENCE_MAX_CONCURRENT_RPCS); "
                "watch another replica or ask GetModel from time to time"
            )
        self._open += 1
        try:
            async with aclosing(watch(self._store, name)) as changes:
                async for seen in changes:
                    yield seen
        finally:
            self._open -= 1


async def watch(store: ModelStore, name: str = "") -> AsyncGenerator[Seen, None]:
    """One campaign, or all with name "". Raises NotFound for a campaign that is not there or goes, Unavailable at
    the replica's end. Changes that come faster than the caller reads are one.
    """
    told: dict[str, int] = {}
    await store.sync()
    while not store.changes.ended:
        change = store.changes.next
        answering = store.answering if not name else {n: v for n, v in store.answering.items() if n == name}
        if name and name not in answering:
            raise NotFound(f"no model {shown(name)} is served here; `ListModels` names those that are")
        for campaign in sorted(told.keys() - answering.keys()):
            yield Seen(campaign, None)
        for campaign, version in answering.items():
            if told.get(campaign) != version:
                yield Seen(campaign, await _described(store, campaign, version))
        told = dict(answering)
        await change.wait()
    raise Unavailable("this replica is shutting down; watch another one")


async def _described(store: ModelStore, campaign: str, version: int) -> Description | None:
    try:
        return await store.describe(campaign, version)
    except ModelNotReady:
        return None
    except (NotFound, DamagedArtefact) as error:
        # Replaced or deleted between the look at it and now: the next change tells.
        log.warning("watched_model_not_described", model=campaign, version=version, error=str(error))
        return None
