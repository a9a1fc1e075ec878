"""Working on cells: claim one, keep the claim while it runs, save what came of it. Each may be delivered twice."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from threadpoolctl import threadpool_limits

from services.common.embeddings import EmbeddingStore
from services.common.errors import BadRequest, Conflict, NotFound, Stopped, Unavailable
from services.common.samples import SampleStore
from services.trainer.comparison.cells import CEILING, TRIAL, Cell, CellResult, Outcome
from services.trainer.comparison.curve import Study, ceiling, learning_curve
from services.trainer.comparison.scoring import Embedded, Features, Trained
from services.trainer.comparison.store import Comparison, ComparisonStore
from services.trainer.comparison.trial import trial
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
Run = Callable[[CampaignConfig, Study, Learner, Watch], Outcome]
# What stands in a cell's strategy -> what is done; a strategy's own name: its learning curve.
_RUNS: dict[str, Run] = {CEILING: ceiling, TRIAL: trial}


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
            # Not the cell's fault when the database is away.
            except (Stopped, Unavailable) as error:
                log.info("cell_given_back", comparison=name, cell=key, why=str(error))
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
        run = _RUNS.get(cell.strategy, learning_curve)
        return CellResult.of(cell, run(config, study, learner, watch))

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

    def progress(self, _phase: str, _done: int, _total: int, _detail: str = "") -> None:
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
        self._newest: tuple[tuple[str, ...], Study, SampleStore] | None = None

    def __call__(self, comparison: Comparison, cell: Cell, config: CampaignConfig) -> tuple[Study, Learner]:
        settings = self._settings
        study, samples = self._study(comparison, cell, trained=config.learner.mode != "head")
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
            publishes=False,
        )
        return study, learner

    def _study(self, comparison: Comparison, cell: Cell, trained: bool) -> tuple[Study, SampleStore]:
        embedding_id = "" if trained else comparison.embedding_ids[cell.backbone]
        key = comparison.name, comparison.source_id, embedding_id
        if self._newest is None or self._newest[0] != key:
            self._newest = None  # two pools in memory are one too many
            samples = SampleStore.open(self._settings.sources_dir, self._settings.data_dir, comparison.source_id)
            features = Trained(samples.images) if trained else self._stored(comparison, samples, embedding_id)
            self._newest = key, read_study(samples, self._settings.sources_dir, features, embedding_id), samples
        return self._newest[1], self._newest[2]

    def _stored(self, comparison: Comparison, samples: SampleStore, embedding_id: str) -> Embedded:
        """Raises NotFound when an embedding is missing."""
        ids = (*comparison.config.pool_rows(samples.ids("pool")), *samples.ids("test"))
        store = EmbeddingStore(self._settings.embeddings_dir, embedding_id, samples.source.source_id)
        return Embedded.stored(store, ids)


def read_study(samples: SampleStore, sources_dir: Path, embedded: Features, embedding_id: str) -> Study:
    source = samples.source
    return Study(
        pool_ids=tuple(samples.ids("pool")),
        test_ids=tuple(samples.ids("test")),
        truth=read_truth(sources_dir, source),
        class_count=len(source.classes),
        embedded=embedded,
        embedding_key=f"{embedding_id}/{source.source_id}",
    )
