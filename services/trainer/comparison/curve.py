"""A campaign's loop in this process: nothing is exported, nothing published, the test samples only report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from services.trainer.batches import pick_batch
from services.trainer.comparison.cells import Outcome, Point
from services.trainer.comparison.meter import Cost, measured
from services.trainer.comparison.scoring import Features, members
from services.trainer.config import CampaignConfig
from services.trainer.evaluation import Evaluation, evaluate
from services.trainer.learning import FittedModel, LabelledSamples, Learner, Watch
from services.trainer.pool import Pool
from services.trainer.strategies import Kept, ScoredPool, Strategy, strategy

# A confusion matrix of more classes is larger than everything else that is kept of a cell.
_MOST_CLASSES = 100


@dataclass(frozen=True)
class Study:
    """What all cells on one backbone share."""

    pool_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    # Class index of every pool sample (the simulated oracle) and test sample.
    truth: Mapping[str, int]
    class_count: int
    embedded: Features
    embedding_key: str

    def classes_of(self, ids: tuple[str, ...]) -> np.ndarray:
        """int64 (n,)"""
        return np.array([self.truth[i] for i in ids], np.int64)


@dataclass
class _Run:
    """One cell on its way."""

    config: CampaignConfig
    study: Study
    learner: Learner
    watch: Watch
    named: Callable[[str], Strategy]
    # Of this run alone: what another one has computed would make its queries look cheaper than they are.
    kept: Kept = field(default_factory=Kept)
    told: list[str] = field(default_factory=list)

    def scored(self, pool: Pool, model: FittedModel, round_no: int) -> ScoredPool:
        """What the strategy may see. It reads classes of bought samples only."""
        embedded, wanted = self.study.embedded.under(model, self.watch), self.named(self.config.strategy_of(round_no))
        return ScoredPool(
            ids=pool.unlabelled,
            labelled=pool.labelled,
            scores=embedded.scores(model, pool.unlabelled, wanted.acquisition) if wanted.acquisition else None,
            embeddings=embedded.of,
            classify=lambda rows: members(model, rows),
            labelled_classes=self.study.classes_of(pool.labelled),
            class_count=self.study.class_count,
            embedding_key=self.study.embedding_key if model.embedding_shared else model.embedding_id,
            kept=self.kept,
            look=lambda: self.watch.progress("pick", 0, 0),
            tell=self.told.append,
        )


def learning_curve(
    config: CampaignConfig,
    study: Study,
    learner: Learner,
    watch: Watch,
    named: Callable[[str], Strategy] = strategy,
) -> Outcome:
    """Buy, fit and evaluate until the budget is spent. The same configuration gives the same curve.

    `named` gives a strategy by its name: the table of all strategies, unless others are to be compared.
    """
    run = _Run(config, study, learner, watch, named)
    pool, drawn = Pool(study.pool_ids), np.empty(0, bool)
    model = learner.initial_model(study.class_count, watch)
    points: list[Point] = []
    evaluation: Evaluation | None = None
    for round_no in range(1, config.last_round + 1):
        run.told.clear()
        with measured() as query:
            scored = run.scored(pool, model, round_no)
            batch = pick_batch(scored, config, round_no, config.batch_of(round_no), named)
        pool = Pool(pool.ids, {**pool.labelled_at, **dict.fromkeys(batch.ids, round_no)})
        drawn = np.append(drawn, batch.drawn_at_random)
        bought_in = np.array([pool.labelled_at[i] for i in pool.labelled], np.int64)
        labelled = LabelledSamples(pool.labelled, study.classes_of(pool.labelled), drawn, bought_in)
        with measured() as fit:
            # One seed for all rounds, as in a campaign: a round's model depends on its labels only.
            model = learner.fit(labelled, study.class_count, config.seed, watch)
        evaluation = on_test(model, study, learner, watch)
        points.append(point(evaluation, len(labelled), query, fit, " ".join(run.told)))
        watch.progress("round", round_no, config.last_round)
    return Outcome(tuple(points), confusion_of(evaluation))


def ceiling(config: CampaignConfig, study: Study, learner: Learner, watch: Watch) -> Outcome:
    """The same learner on the labels of the whole pool."""
    every = LabelledSamples(study.pool_ids, study.classes_of(study.pool_ids), np.ones(len(study.pool_ids), bool))
    with measured() as fit:
        model = learner.fit(every, study.class_count, config.seed, watch)
    evaluation = on_test(model, study, learner, watch)
    return Outcome((point(evaluation, len(every), Cost(), fit),), confusion_of(evaluation))


def on_test(model: FittedModel, study: Study, learner: Learner, watch: Watch) -> Evaluation:
    return evaluate(learner.probabilities(model, study.test_ids, watch), study.classes_of(study.test_ids))


def point(evaluation: Evaluation, labels: int, query: Cost, fit: Cost, told: str = "") -> Point:
    return Point(
        labels=labels,
        accuracy=evaluation.metrics["accuracy"],
        macro_f1=evaluation.metrics["macro_f1"],
        ece=evaluation.metrics["ece"],
        nll=evaluation.metrics["nll"],
        worst_class_recall=float(np.nanmin(evaluation.recall)),
        query_cpu_seconds=query.cpu_seconds,
        query_peak_mb=query.peak_mb,
        fit_cpu_seconds=fit.cpu_seconds,
        told=told,
    )


def confusion_of(evaluation: Evaluation | None) -> tuple[tuple[int, ...], ...]:
    """As plain values; empty for more classes than are worth keeping."""
    if evaluation is None or len(evaluation.confusion) > _MOST_CLASSES:
        return ()
    return tuple(tuple(int(n) for n in row) for row in evaluation.confusion)
