"""The model versions in memory: loaded once, held while in use, dropped when outdated or unused for longest."""

import asyncio
import ctypes
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field

import structlog

from services.common.errors import QuerentError
from services.inference.loading import Key, Loader, Signature
from services.inference.metrics import Metrics
from services.inference.model import Model

log = structlog.get_logger()

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Above a batch of 32 images of 224 x 224 (5 MB), below the blocks of 16 MB that Pillow makes an image of.
_LARGE_BLOCK_BYTES = 8 * 1024 * 1024


@dataclass(eq=False)
class _Loaded:
    model: Model
    signature: Signature
    used_at: float = field(default_factory=time.monotonic)
    # Another version has taken over: it goes as soon as nobody uses it.
    retired: bool = False


def return_freed_memory() -> None:
    """glibc keeps the arenas of dropped sessions: without this each swap costs megabytes for ever."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)


def give_back_large_blocks() -> None:
    """Have glibc map each large block for itself, so that it goes back to the system when it is freed.

    By itself glibc learns from the first large image that blocks of its size are common, keeps their like in its
    arenas, one a thread, and gives none back: after a few images of 64 megapixels some hundred MB. These are the
    values at which it would arrive after a block of 8 MiB; with a value given, it learns no more.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt:
            mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
            mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BLOCK_BYTES)


class Held:
    """A model in use."""

    __slots__ = ("_key", "_loaded", "model")

    def __init__(self, loaded: "LoadedModels", key: Key, model: Model) -> None:
        self._loaded = loaded
        self._key = key
        self.model = model

    def let_go(self) -> None:
        self._loaded.let_go(self._key)


class LoadedModels:
    """At most `max_loaded` versions, apart from those in use or on their way out.

    Lives on the event loop; loads in threads.
    """

    def __init__(
        self,
        loader: Loader,
        metrics: Metrics,
        max_loaded: int,
        trim: Callable[[], None] = return_freed_memory,
    ) -> None:
        self._loader = loader
        self._metrics = metrics
        self._max_loaded = max_loaded
        self._trim = trim
        self._loaded: dict[Key, _Loaded] = {}
        self._loading: dict[Key, asyncio.Task[_Loaded]] = {}
        # How many use a version or wait for it: what is being loaded for somebody must not go before he has it.
        self._users: Counter[Key] = Counter()
        self._dropped = False

    def get(self, key: Key) -> Model | None:
        """The model when it is in memory. Safe from any thread."""
        entry = self._loaded.get(key)
        return entry.model if entry else None

    @property
    def full(self) -> bool:
        return len(self._staying()) >= self._max_loaded

    def hold(self, key: Key) -> Held | None:
        """A version that is in memory, which stays there until it is let go; None when it is not."""
        entry = self._loaded.get(key)
        return self._hold(key, entry) if entry else None

    async def hold_loaded(self, key: Key) -> Held:
        """The same, loaded when it must be. Raises what loading it raises."""
        with self._in_use(key):  # while it is being loaded
            return self._hold(key, await self._entry(key))

    def _hold(self, key: Key, entry: _Loaded) -> Held:
        entry.used_at = time.monotonic()
        self._users[key] += 1
        return Held(self, key, entry.model)

    def let_go(self, key: Key) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
        entry = self._loaded.get(key)
        # Every call passes here: whether there is anything to do is asked first.
        if len(self._loaded) > self._max_loaded or (entry and entry.retired):
            self._evict()

    @asynccontextmanager
    async def taking_over(self, key: Key, old: Key | None) -> AsyncIterator[None]:
        """A block with `key` in memory, warm and not on its way out, and `old` still there; after it `old` is retired.

        Raises what loading raises. `old` must not go before the block: its callers would load it again.
        """
        with self._in_use(key), self._in_use(old) if old else nullcontext():
            (await self._entry(key)).retired = False
            yield
            if old in self._loaded:
                self._loaded[old].retired = True

    def retire(self, key: Key) -> None:
        """Drop it as soon as its last user is done."""
        if key in self._loaded:
            self._loaded[key].retired = True
        self._evict()

    async def tidy(self) -> None:
        """Give the memory of what was dropped since the last time back to the system."""
        if self._dropped:
            self._dropped = False
            await asyncio.to_thread(self._trim)

    async def reload_replaced(self) -> None:
        """Load versions anew whose files are others by now, as after a campaign was deleted and made anew.

        The old one answers until the new one is warm, and goes on when that is refused or cannot be looked at:
        what is in memory was verified, and damage on the disk must not reach those who are served.
        """
        for key, entry in list(self._loaded.items()):
            now = await asyncio.to_thread(self._loader.signature, key)
            if not now or now == entry.signature or self._loaded.get(key) is not entry or entry.retired:
                continue
            try:
                await self._load(key)
            except QuerentError as error:
                self._loader.report(key, error)
            else:
                log.warning("model_replaced_on_disk", model=key[0], version=key[1])

    async def _entry(self, key: Key) -> _Loaded:
        """Loaded already, or loaded now; callers that come meanwhile share the work."""
        if key in self._loaded:
            return self._loaded[key]
        if key not in self._loading:
            self._loading[key] = asyncio.create_task(self._load(key))
            self._loading[key].add_done_callback(lambda task: self._finish(key, task))
        # A caller who goes away must not take the model from the others.
        return await asyncio.shield(self._loading[key])

    def _finish(self, key: Key, task: "asyncio.Task[_Loaded]") -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain when every caller has gone
        if not self._users[key]:
            self._evict()

    async def _load(self, key: Key) -> _Loaded:
        """Into memory, in the place of what is there under that name."""
        signature = await asyncio.to_thread(self._loader.signature, key)
        model = await asyncio.to_thread(self._loader.load, key)
        if key in self._loaded:
            self._drop(key)
        entry = self._loaded[key] = _Loaded(model, signature)
        self._metrics.loaded(model.manifest, model.provider, model.precision, model.statistics)
        return entry

    @contextmanager
    def _in_use(self, key: Key) -> Iterator[None]:
        self._users[key] += 1
        try:
            yield
        finally:
            self.let_go(key)

    def _evict(self) -> None:
        """Drop what is retired, then what was used longest ago, as long as nobody uses it."""
        idle = [key for key in self._loaded if not self._users[key]]
        idle.sort(key=lambda key: (not self._loaded[key].retired, self._loaded[key].used_at))
        for key in idle:
            # Those on their way out do not count: the version that took over from one must not go in its place.
            if not self._loaded[key].retired and len(self._staying()) <= self._max_loaded:
                return
            self._drop(key)
            log.info("model_unloaded", model=key[0], version=key[1])

    def _staying(self) -> list[Key]:
        return [key for key, entry in self._loaded.items() if not entry.retired]

    def _drop(self, key: Key) -> None:
        """Those who still use it hold it until they are done; nobody else gets it."""
        model = self._loaded.pop(key).model
        self._metrics.unloaded(model.manifest, model.provider, model.precision)
        self._dropped = True
