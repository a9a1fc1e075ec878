"""Loading versions from the registry, and remembering those that were refused."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.common.errors import DamagedArtefact, NotFound, QuerentError, Unavailable
from services.common.manifest import Manifest
from services.common.registry import Registry
from services.inference.metrics import Metrics
from services.inference.model import Model, Refused, load
from services.inference.runtime import Runtime

log = structlog.get_logger()

# A file that could not be read, memory that was short: these may pass, unlike damage.
_RETRY_SECONDS = 30.0

Key = tuple[str, int]
Signature = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class _Refusal:
    signature: Signature
    error: QuerentError
    retry_at: float


class Loader:
    """Loads versions. One that was refused is refused again, without work, until its files change."""

    def __init__(self, registry: Registry, runtime: Runtime, batch_sizes: Sequence[int], metrics: Metrics) -> None:
        self._registry = registry
        self._runtime = runtime
        self._batch_sizes = batch_sizes
        self._metrics = metrics
        self._refusals: dict[Key, _Refusal] = {}
        # What was reported, and which of it again in this look at the registry.
        self._reported: dict[Key, str] = {}
        self._seen: set[Key] = set()
        self._lock = threading.Lock()

    def load(self, key: Key) -> Model:
        """Takes seconds: call it in a thread. Raises NotFound, DamagedArtefact or Unavailable."""
        folder = self._registry.version_dir(*key)
        signature = self._signature(key)
        refusal = self._refusals.get(key)
        if refusal and refusal.signature == signature and time.monotonic() < refusal.retry_at:
            raise type(refusal.error)(*refusal.error.args)
        started = time.perf_counter()
        # One at a time: several warm-ups side by side would take the cores from those who are being served.
        with self._lock:
            try:
                model = load(folder, self._manifest(key), self._runtime, self._batch_sizes)
            except Refused as error:
                raise self._refuse(key, signature, error.reason, DamagedArtefact(str(error)), float("inf")) from error
            except OSError as error:
                # Pruned between the look and the read, or the disk fails.
                self._registry.version_dir(*key)
                raise self._refuse_for_now(key, signature, "io", error) from error
            except MemoryError as error:
                raise self._refuse_for_now(key, signature, "memory", error) from error
        self._refusals.pop(key, None)
        self._reported.pop(key, None)
        self._metrics.provider_fallback.set(self._runtime.fell_back)
        self._look_at_precision(key, model)
        seconds = round(time.perf_counter() - started, 3)
        how = {"provider": model.provider, "precision": model.precision}
        log.info("model_loaded", model=key[0], version=key[1], **how, seconds=seconds)
        return model

    def signature(self, key: Key) -> Signature:
        """Changes when the version's files are replaced; empty when they cannot be looked at."""
        try:
            return self._signature(key)
        except NotFound:
            return ()

    def report(self, key: Key, error: QuerentError) -> None:
        """A promoted version that cannot be served: one log line for each new reason, however often polled."""
        self._seen.add(key)
        if self._reported.get(key) == str(error):
            return
        self._reported[key] = str(error)
        if key not in self._refusals:
            reason = "missing" if isinstance(error, NotFound) else "current"
            self._metrics.load_failures.labels(reason).inc()
        log.error("promoted_model_refused", model=key[0], version=key[1] or None, error=str(error))

    def looked(self) -> None:
        """A look at the registry is over: what was not reported in it has passed, and is told when it comes again."""
        self._reported = {key: text for key, text in self._reported.items() if key in self._seen}
        self._seen.clear()

    def _look_at_precision(self, key: Key, model: Model) -> None:
        """Another precision than the one asked for is served rather than nothing, and told."""
        if model.variant_refused:
            self._metrics.load_failures.labels("variant").inc()
            log.error("variant_refused", model=key[0], version=key[1], why=model.variant_refused, serves="fp32")
        elif self._runtime.wanted_precision not in ("auto", model.precision):
            wanted = self._runtime.wanted_precision
            log.warning("variant_not_published", model=key[0], version=key[1], wanted=wanted, serves=model.precision)

    def _manifest(self, key: Key) -> Manifest:
        try:
            return self._registry.manifest(*key)
        except DamagedArtefact as error:
            raise Refused("manifest", str(error)) from error

    def _refuse_for_now(self, key: Key, signature: Signature, reason: str, error: BaseException) -> QuerentError:
        message = f"version {key[1]} of {key[0]!r} cannot be loaded now: {error or type(error).__name__}"
        return self._refuse(key, signature, reason, Unavailable(message), time.monotonic() + _RETRY_SECONDS)

    def _refuse(
        self, key: Key, signature: Signature, reason: str, error: QuerentError, retry_at: float
    ) -> QuerentError:
        self._refusals[key] = _Refusal(signature, error, retry_at)
        self._metrics.load_failures.labels(reason).inc()
        log.error("model_load_failed", model=key[0], version=key[1], reason=reason, error=str(error))
        return error

    def _signature(self, key: Key) -> Signature:
        """What changes when somebody repairs the version's files."""
        folder = self._registry.version_dir(*key)
        try:
            stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
        except OSError:
            return ()
        # The time of change as well: whoever repairs a file in place may give it back its time of modification.
        return tuple((name, s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino) for name, s in stats)
