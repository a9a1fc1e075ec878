"""Working on cells: claim one, keep the claim while it runs, save what came of it. Each may be delivered twice."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from threadpoolctl import threadpool_limits

from services.common.embeddings import EmbeddingStore
from services.common.errors import BadRequest, Conflict, NotFound, Stopped
from services.common.samples import SampleStore
from services.trainer.comparison.cells import Cell, CellResult
from services.trainer.comparison.curve import Study, ceiling, learning_curve
from services.trainer.comparison.scoring import Embedded
from services.trainer.comparison.store import Comparison, ComparisonStore
from services.trainer.config import CampaignConfig
from services.trainer.learners import make_learner
from services.trainer.learning import Learner, Watch
from services.trainer.oracle import read_truth
from services.trainer.settings import Settings

log = structlog.get_logger()

# The same input would meet them again.
_PERMANENT = (BadRequest, NotFound, Conflict)

# What a cell runs with: the study of its backbone, and the learner of its configuration.
MakeTools = Callable[[Comparison, Cell, CampaignConfig], tuple[Study, Learner]]


class CellRunner:
    def __init__(
        self,
        store: ComparisonStore,
        make_tools: MakeTools,
        owner: str,
        claim_seconds: float,
        threads: int,
        stop: threading.Event,
    ) -> None:
        self.store = store
        self._make_tools = make_tools
        self._owner = owner
        self._claim_seconds = claim_seconds
        self._threads = threads
        self._stop = stop

    def run(self, name: str, key: str) -> bool:
        """False when there was nothing to do, or nothing came of it."""
        cell = self.store.claim(name, key, self._owner, self._claim_seconds)
        if cell is None:
            return False
        with self._kept(name, key) as watch:
            try:
                # Sums in another order round differently: the same number of threads gives the same curve.
                with threadpool_limits(limits=self._threads):
                    result = self._result(name, cell, watch)
                self.store.save(name, self._owner, result)
            except Stopped as stopped:
                log.info("cell_given_back", comparison=name, cell=key, why=str(stopped))
                return False
            except Exception as error:
                log.error("cell_failed", comparison=name, cell=key, exc_info=error)
                told = f"{type(error).__name__}: {error}"
                self.store.fail(name, key, self._owner, told, for_good=isinstance(error, _PERMANENT))
                return False
        log.info("cell_done", comparison=name, cell=key, accuracy=result.points[-1].accuracy)
        return True

    def _result(self, name: str, cell: Cell, watch: Watch) -> CellResult:
        comparison = self.store.comparison(name)
        config = comparison.config.campaign(cell)
        study, learner = self._make_tools(comparison, cell, config)
        run = ceiling if cell.is_ceiling else learning_curve
        return CellResult(cell, tuple(run(config, study, learner, watch)))

    @contextmanager
    def _kept(self, name: str, key: str) -> Iterator[Watch]:
        """The claim is renewed inside the block and given back after it."""
        keeper = _Keeper(lambda: self.store.renew(name, key, self._owner, self._claim_seconds), self._stop)
        thread = threading.Thread(target=keeper.renew, args=(self._claim_seconds / 3,), name="claim", daemon=True)
        thread.start()
        try:
            yield keeper
        finally:
            keeper.ended.set()
            thread.join()
            self.store.give_back(name, key, self._owner)


class _Keeper:
    """A Watch that raises when the worker is asked to stop, or the claim is gone."""

    def __init__(self, renew: Callable[[], bool], stop: threading.Event) -> None:
        self.ended = threading.Event()
        self._renew = renew
        self._stop = stop
        self._lost = False

    def progress(self, _phase: str, _done: int, _total: int) -> None:
        if self._stop.is_set():
            raise Stopped("the worker was asked to stop")
        if self._lost:
            raise Stopped("the comparison is stopped, or another worker has this cell")

    def renew(self, every_s: float) -> None:
        while not self.ended.wait(min(every_s, 2.0)):
            try:
                self._lost = not self._renew()
            # A database that is away for a moment: the next renewal may come in time.
            except Exception as error:
                log.warning("claim_not_renewed", error=str(error))


class StoredStudies:
    """MakeTools on the trainer's folders. The newest study stays in memory for the next cell."""

    def __init__(self, settings: Settings, threads: int) -> None:
        self._settings = settings
        self._threads = threads
        self._newest: tuple[tuple[str, str], Study, SampleStore] | None = None

    def __call__(self, comparison: Comparison, cell: Cell, config: CampaignConfig) -> tuple[Study, Learner]:
        settings = self._settings
        study, samples = self._study(comparison.source_id, comparison.embedding_ids[cell.backbone])
        learner = make_learner(
            config,
            source_height=samples.source.height,
            source_width=samples.source.width,
            weights_dir=settings.weights_dir,
            cache_dir=settings.cache_dir,
            embeddings=study.embedded.of,
            images=samples.images,
            threads=self._threads,
            pool_ids=study.pool_ids,
        )
        return study, learner

    def _study(self, source_id: str, embedding_id: str) -> tuple[Study, SampleStore]:
        key = source_id, embedding_id
        if self._newest is None or self._newest[0] != key:
            self._newest = None  # two pools in memory are one too many
            samples = SampleStore.open(self._settings.sources_dir, self._settings.data_dir, source_id)
            study = read_study(samples, self._settings.sources_dir, self._settings.embeddings_dir, embedding_id)
            self._newest = key, study, samples
        return self._newest[1], self._newest[2]


def read_study(samples: SampleStore, sources_dir: Path, embeddings_dir: Path, embedding_id: str) -> Study:
    """Raises NotFound when an embedding is missing."""
    source = samples.source
    pool, test = tuple(samples.ids("pool")), tuple(samples.ids("test"))
    stored = EmbeddingStore(embeddings_dir, embedding_id, source.source_id)
    return Study(
        pool_ids=pool,
        test_ids=test,
        truth=read_truth(sources_dir, source),
        class_count=len(source.classes),
        embedded=Embedded.stored(stored, (*pool, *test)),
        embedding_key=f"{embedding_id}/{source.source_id}",
    )
