"""The story of a round: score, pick, request, label, fit, evaluate, publish, save.

Every step first asks whether it is already done, so that a round may be run again after a crash at any line and
ends in the same labels and the same model.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import structlog

from services.common.errors import Conflict, DamagedArtefact
from services.common.files import digest
from services.common.registry import Registry
from services.trainer import promotion, stopping
from services.trainer.batches import pick_batch, predictions
from services.trainer.campaign import Campaign, Lease, Pick, Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.evaluation import evaluate
from services.trainer.learning import Exporter, FittedModel, LabelledSamples, Learner, VersionFacts, Watch
from services.trainer.oracle import Oracle
from services.trainer.pool import Pool
from services.trainer.pool_scorer import PoolScorer, Version
from services.trainer.strategies import Kept, ScoredPool, strategy

log = structlog.get_logger()

STEPS = ("score", "pick", "request", "label", "fit", "evaluate", "publish", "save")
# Between the two halves of "publish": told to OnStep as well, since a crash there leaves a version unpromoted.
PROMOTE = "promote"
REPORT_FILE = "report.json"

OnStep = Callable[[str, int], None]


def ignore_step(step: str, round_no: int) -> None:
    """The OnStep of somebody who does not want to know."""


@dataclass(frozen=True)
class Tools:
    """What one campaign works with; built by wiring."""

    pool_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    # Class indices of the test samples, int64, aligned with test_ids. They are reported on and nothing else.
    test_truth: np.ndarray
    oracle: Oracle
    scorer: PoolScorer
    learner: Learner
    exporter: Exporter
    # What strategies compute from embeddings alone, between rounds.
    kept: Kept = field(default_factory=Kept)


@dataclass
class _Stopwatch:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class RoundRunner:
    """Runs the two tasks of a round for the worker that holds the campaign's lease."""

    def __init__(
        self,
        store: CampaignStore,
        registry: Registry,
        campaign: Campaign,
        tools: Tools,
        lease: Lease,
        watch: Watch,
        on_step: OnStep = ignore_step,
    ) -> None:
        self._store = store
        self._registry = registry
        self._campaign = campaign
        self._tools = tools
        self._lease = lease
        self._watch = watch
        self._on_step = on_step
        # What the strategy has to say about the batch, for the round's record.
        self._told: list[str] = []

    # ---- select_batch --------------------------------------------------------------------------------

    def select_batch(self, round_no: int) -> None:
        """Steps 1 to 3: afterwards the round's picks are recorded and the oracle knows of them."""
        current = self._store.round(self._campaign.name, round_no)
        if current.state == "selecting":
            self._score_and_pick(current)
        self._begin("request", round_no)
        picks = self._store.picks(self._campaign.name, round_no)
        self._tools.oracle.request([p.sample_id for p in picks])

    def _score_and_pick(self, current: Round) -> None:
        clock = _Stopwatch()
        self._told.clear()
        pool = self._store.pool(self._campaign.name, self._tools.pool_ids)
        wanted = self._wanted(pool, current.round_no)
        if not wanted:
            self._store.save_picks(self._lease, current.round_no, [], {}, None)
            return
        self._begin("score", current.round_no)
        with clock.phase("score"):
            scored = self._score(pool, current)
        self._begin("pick", current.round_no)
        with clock.phase("pick"):
            picks = self._pick(scored, wanted, current.round_no)
        for sentence in self._told:
            log.info("batch_chosen", campaign=self._campaign.name, round=current.round_no, how=sentence)
        rate = len(scored.ids) / clock.seconds["score"] if scored.scores is not None else None
        self._store.save_picks(self._lease, current.round_no, picks, clock.seconds, rate, self._told)

    def _wanted(self, pool: Pool, round_no: int) -> int:
        """Labels that the round buys. Imported ones are paid for from the same budget, so the last rounds buy fewer."""
        config = self._campaign.config
        if self._enough_before(round_no):
            return 0  # this round is for labels that were imported meanwhile
        return max(0, min(config.batch_of(round_no), config.budget - len(pool.labelled)))

    def _enough_before(self, round_no: int) -> bool:
        return bool(self._store.round(self._campaign.name, round_no - 1).report.get("stopping", {}).get("enough"))

    def _score(self, pool: Pool, current: Round) -> ScoredPool:
        """The unlabelled samples as the newest published version sees them: that of the round before."""
        newest = self._registry.manifest(self._campaign.name, current.round_no)
        at = Version.of(newest, self._campaign.source_id)
        wanted = strategy(current.strategy)
        scores = None
        if wanted.acquisition is not None:
            scores = self._tools.scorer.score(at, pool.unlabelled, wanted.acquisition, self._watch)

        def embeddings(ids: Sequence[str]) -> np.ndarray:
            return self._tools.scorer.embeddings(at, ids, self._watch)

        head: list[Callable[[np.ndarray], np.ndarray]] = []

        def classify(rows: np.ndarray) -> np.ndarray:
            if not head:  # read for the strategies that ask, and for them once
                head.append(self._tools.exporter.head(self._registry.version_dir(at.campaign, at.version)))
            return head[0](rows)

        return ScoredPool(
            ids=pool.unlabelled,
            labelled=pool.labelled,
            scores=scores,
            embeddings=embeddings,
            classify=classify,
            labelled_classes=self._known_classes(pool.labelled),
            class_count=len(self._campaign.classes),
            embedding_key=f"{at.embedding_id}/{at.source_id}",
            kept=self._tools.kept,
            look=lambda: self._watch.progress("pick", 0, 0),
            tell=self._told.append,
        )

    def _known_classes(self, labelled: tuple[str, ...]) -> np.ndarray:
        class_of = {label.sample_id: label.class_index for label in self._store.labels(self._campaign.name)}
        return np.array([class_of.get(i, -1) for i in labelled], np.int64)

    def _pick(self, scored: ScoredPool, wanted: int, round_no: int) -> list[Pick]:
        batch = pick_batch(scored, self._campaign.config, round_no, wanted)
        # Round 1 picks with the zero head of round 0, which predicts nothing.
        said = predictions(scored, batch.ids) if round_no > 1 else {}
        score_of = {} if scored.scores is None else dict(zip(scored.ids, scored.scores.tolist(), strict=True))
        return [
            Pick(i, score_of.get(i), drawn, *said.get(i, (None, None)))
            for i, drawn in zip(batch.ids, batch.drawn_at_random.tolist(), strict=True)
        ]

    # ---- train_round ---------------------------------------------------------------------------------

    def train_round(self, round_no: int) -> bool:
        """Steps 4 to 8. False while the oracle has not answered everything: the round then waits."""
        current = self._store.round(self._campaign.name, round_no)
        if current.state == "done":
            return True
        self._begin("label", round_no)
        if not self._label(round_no):
            return False
        report = self._published_report(round_no)
        if report is None:
            report = self._fit_and_publish(round_no)
        decision = self._promote(round_no, report)
        judged = {**report, "stopping": self._judge(round_no, report)}
        self._begin("save", round_no)
        done = replace(
            current,
            state="done",
            version=round_no + 1,
            promoted=decision.promote,
            promotion_reason=decision.reason,
            seconds=report["seconds"],
            report=judged,
        )
        self._store.save_round(self._lease, done)
        return True

    def _label(self, round_no: int) -> bool:
        ids = [p.sample_id for p in self._store.picks(self._campaign.name, round_no)]
        if not ids:
            return True  # round 0 buys nothing, nor does one that only trains on imported labels
        # A crash may have come between the picks and the request; asking twice asks once.
        self._tools.oracle.request(ids)
        answers = self._tools.oracle.answers(ids)
        if answers is None:
            return False
        self._store.save_labels(self._lease, round_no, answers, len(self._campaign.classes))
        return True

    def _published_report(self, round_no: int) -> dict[str, Any] | None:
        """What the round's version says of itself, when a crash came after it was published."""
        version = round_no + 1
        if version not in self._registry.versions(self._campaign.name):
            return None
        self._registry.verify(self._campaign.name, version)
        report = self._read_report(version)
        if report.get("made_from") != self._made_from(round_no):
            raise Conflict(
                f"the registry holds a version {version} of another campaign called {self._campaign.name!r}; "
                "delete that one or give this campaign another name"
            )
        return report

    def _made_from(self, round_no: int) -> str:
        """Digest of everything that decides the round's model: two campaigns of one name are told apart by it."""
        labels = self._store.labels(self._campaign.name, up_to_round=round_no)
        config = self._campaign.config.model_dump(mode="json")
        bought = [[label.sample_id, label.class_index] for label in labels]
        return digest([config, self._campaign.source_id, self._campaign.classes, bought])

    def _read_report(self, version: int) -> dict[str, Any]:
        path = self._registry.version_dir(self._campaign.name, version) / REPORT_FILE
        try:
            report: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedArtefact(f"{path} cannot be read: {error}") from error
        return report

    def _fit_and_publish(self, round_no: int) -> dict[str, Any]:
        clock = _Stopwatch()
        labelled = self._labelled(round_no)
        self._begin("fit", round_no)
        with clock.phase("fit"):
            model = self._fit(labelled, round_no)
        self._begin("evaluate", round_no)
        with clock.phase("evaluate"):
            report = self._evaluate(model, labelled, round_no)
        self._begin("publish", round_no)
        self._publish(model, report, labelled, round_no, clock)
        model.on_published()
        return report

    def _labelled(self, round_no: int) -> LabelledSamples:
        labels = self._store.labels(self._campaign.name, up_to_round=round_no)
        return LabelledSamples(
            ids=tuple(label.sample_id for label in labels),
            classes=np.array([label.class_index for label in labels], np.int64),
            drawn_at_random=np.array([label.drawn_at_random for label in labels], bool),
            rounds=np.array([label.round_no for label in labels], np.int64),
        )

    def _fit(self, labelled: LabelledSamples, round_no: int) -> FittedModel:
        class_count = len(self._campaign.classes)
        if round_no == 0:
            return self._tools.learner.initial_model(class_count, self._watch)
        # One seed for all rounds: a round's model depends on its labels only.
        return self._tools.learner.fit(labelled, class_count, self._campaign.config.seed, self._watch)

    def _evaluate(self, model: FittedModel, labelled: LabelledSamples, round_no: int) -> dict[str, Any]:
        """Everything about the round that is worth keeping, as plain values."""
        counts = np.bincount(labelled.classes, minlength=len(self._campaign.classes))
        report: dict[str, Any] = {
            "labels": len(labelled),
            "class_counts": dict(zip(self._campaign.classes, counts.tolist(), strict=True)),
            "metrics": {},
            "out_of_fold": model.out_of_fold,
            "out_of_fold_classes": model.out_of_fold_classes,
            "notes": {**model.notes, "temperature": model.head.temperature},
        }
        if round_no == 0:
            return report  # a zero head knows nothing that could be measured
        probabilities = self._tools.learner.probabilities(model, self._tools.test_ids, self._watch)
        evaluation = evaluate(probabilities, self._tools.test_truth)
        report["metrics"]["test"] = evaluation.metrics
        report["confusion"] = evaluation.confusion.tolist()
        report["reliability"] = evaluation.reliability.as_json()
        right = list(model.out_of_fold.values())
        if right:
            report["metrics"]["random_slice"] = {"accuracy": sum(right) / len(right), "rows": float(len(right))}
        return report

    def _publish(
        self, model: FittedModel, report: dict[str, Any], labelled: LabelledSamples, round_no: int, clock: _Stopwatch
    ) -> None:
        name, version = self._campaign.name, round_no + 1
        classes = self._campaign.classes
        facts = VersionFacts(name, version, round_no, classes, len(labelled), report["metrics"], labelled)
        self._registry.create_campaign(name, classes)
        staged = self._registry.staging_dir()
        started = time.perf_counter()
        report["seconds"] = clock.seconds
        report["made_from"] = self._made_from(round_no)
        try:
            extra = {REPORT_FILE: json.dumps(report).encode()}
            self._tools.exporter.stage(model, facts, extra, staged, self._watch)
            self._watch.progress("publish", 1, 1)
            self._registry.publish(staged, name, version)
        finally:
            shutil.rmtree(staged, ignore_errors=True)  # gone already when all went well
        self._on_step(PROMOTE, round_no)
        clock.seconds["publish"] = time.perf_counter() - started
        log.info("round_published", campaign=name, round=round_no, version=version, **_headline(report))

    def _promote(self, round_no: int, report: dict[str, Any]) -> promotion.Decision:
        name, version = self._campaign.name, round_no + 1
        if round_no == 0:
            return promotion.Decision(False, "the backbone alone predicts nothing")
        current = self._registry.current(name)
        if current == version:
            return promotion.Decision(True, "promoted before an interruption")
        rule = self._campaign.config.promotion
        before = None if current is None or rule != "not_worse" else self._correctness(current, round_no)
        decision = promotion.decide(rule, report["out_of_fold"], before)
        if decision.promote:
            self._watch.progress("publish", 1, 1)
            self._registry.promote(name, version)
        log.info("promotion_decided", campaign=name, version=version, promoted=decision.promote, why=decision.reason)
        return decision

    def _correctness(self, current: int, round_no: int) -> dict[str, bool]:
        """Was the current version right about each randomly drawn sample that it was not fitted on?

        Out of fold for the samples it knew, plainly predicted for those that were drawn later.
        """
        right: dict[str, bool] = dict(self._read_report(current)["out_of_fold"])
        later = [
            label
            for label in self._store.labels(self._campaign.name, up_to_round=round_no)
            if label.drawn_at_random and label.round_no >= current
        ]
        if later:
            folder = self._registry.version_dir(self._campaign.name, current)
            predicted = self._tools.exporter.probabilities(folder, [label.sample_id for label in later]).argmax(axis=1)
            right |= {it.sample_id: bool(p == it.class_index) for it, p in zip(later, predicted, strict=True)}
        return right

    def _judge(self, round_no: int, report: dict[str, Any]) -> dict[str, Any]:
        """Is it enough? From what this round and those before know of randomly drawn rows: the same after any crash."""
        config = self._campaign.config
        earlier = [r for r in self._store.rounds(self._campaign.name) if r.round_no < round_no]
        slices = [stopping.Slice.of_report(r.round_no, r.report) for r in earlier]
        slices.append(stopping.Slice.of_report(round_no, report))
        return stopping.record(config.stopping, slices, config.rounds.batch)

    def _begin(self, step: str, round_no: int) -> None:
        self._watch.progress(step, 0, 0)
        self._on_step(step, round_no)


def _headline(report: dict[str, Any]) -> dict[str, float]:
    test = report["metrics"].get("test", {})
    return {key: round(test[key], 4) for key in ("accuracy", "macro_f1", "ece") if key in test}
