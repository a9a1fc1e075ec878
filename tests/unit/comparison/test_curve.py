"""The loop of a cell: the same as a campaign's, and only on stored embeddings."""

from dataclasses import replace

import numpy as np
import pytest

from services.common.errors import Stopped
from services.common.registry import Registry
from services.trainer.campaign_store import CampaignStore
from services.trainer.comparison.curve import ceiling, learning_curve
from services.trainer.database import open_database
from services.trainer.learning import SilentWatch
from services.trainer.leases import LeaseStore
from services.trainer.oracle import SimulatedOracle
from services.trainer.rounds import RoundRunner, Tools
from services.trainer.strategies import STRATEGIES
from tests.fakes import FakeExporter, FakeLearner, FakePool, FakeScorer, RecordingWatch
from tests.unit.comparison.conftest import make_comparison, make_study


class Remembering(FakeLearner):
    """Knows what each of its fits was given."""

    def __init__(self, pool):
        super().__init__(pool)
        self.given = []

    def fit(self, labelled, class_count, seed, watch):
        self.given.append(labelled)
        return super().fit(labelled, class_count, seed, watch)


class HeadScorer(FakeScorer):
    """Scores by the head of the version that it is asked about, as inference does."""

    def __init__(self, pool, study, learner):
        super().__init__(pool)
        self._study, self._learner = study, learner

    def score(self, at, ids, acquisition, watch):
        return self._study.embedded.scores(self._learner.models[at.version], ids, acquisition)


class Kept(Remembering):
    """Keeps the models, version by version."""

    def __init__(self, pool):
        super().__init__(pool)
        self.models = {}

    def initial_model(self, class_count, watch):
        self.models[1] = super().initial_model(class_count, watch)
        return self.models[1]

    def fit(self, labelled, class_count, seed, watch):
        model = super().fit(labelled, class_count, seed, watch)
        self.models[len(self.models) + 1] = model
        return model


def cell(config, strategy="margin", seed=0):
    return next(c for c in config.cells() if (c.strategy, c.seed) == (strategy, seed))


def curve(pool, study, strategy="margin", seed=0, watch=None, **changes):
    config = make_comparison(**{"strategies": [strategy], **changes})
    learner = Remembering(pool)
    outcome = learning_curve(config.campaign(cell(config, strategy, seed)), study, learner, watch or SilentWatch())
    return outcome.points, learner.given


@pytest.mark.parametrize("strategy", ["margin", "random", "badge", "k_center"])
def test_a_cell_buys_what_a_campaign_buys(tmp_path, strategy):
    pool = FakePool(size=60)
    study = make_study(pool)
    config = make_comparison(strategies=[strategy])
    campaign_config = config.campaign(cell(config, strategy))
    cells = Remembering(pool)
    points = learning_curve(campaign_config, study, cells, SilentWatch()).points

    engine = open_database(f"sqlite:///{tmp_path}/trainer.db")
    store, leases = CampaignStore(engine), LeaseStore(engine)
    campaign = store.create(campaign_config, "fake", ["cat", "dog"])
    lease = leases.take_lease(campaign.name, "me", 60)
    learner = Kept(pool)
    truth = np.array([pool.truth[i] for i in pool.test_ids])
    tools = Tools(
        pool.pool_ids,
        pool.test_ids,
        truth,
        SimulatedOracle(pool.truth),
        HeadScorer(pool, study, learner),
        learner,
        FakeExporter(pool),
    )
    runner = RoundRunner(store, Registry(tmp_path / "registry"), campaign, tools, lease, SilentWatch())
    for round_no in range(campaign_config.last_round + 1):
        if round_no:
            store.begin_round(lease, round_no, campaign_config.strategy_of(round_no))
            runner.select_batch(round_no)
        runner.train_round(round_no)
    engine.dispose()

    assert [set(given.ids) for given in cells.given] == [set(given.ids) for given in learner.given]
    assert [given.drawn_at_random.sum() for given in cells.given] == [
        given.drawn_at_random.sum() for given in learner.given
    ]
    assert [sorted(given.rounds) for given in cells.given] == [sorted(given.rounds) for given in learner.given]
    rounds = [r.report["metrics"]["test"]["accuracy"] for r in store.rounds(campaign.name) if r.round_no]
    assert [p.accuracy for p in points] == pytest.approx(rounds)


def test_every_strategy_of_a_seed_begins_with_the_same_labels(pool, study):
    firsts = {tuple(curve(pool, study, name)[1][0].ids) for name in ("random", "margin", "typiclust")}
    assert len(firsts) == 1


def test_another_seed_begins_with_other_labels(pool, study):
    assert curve(pool, study, seed=0)[1][0].ids != curve(pool, study, seed=1)[1][0].ids


def test_the_budget_is_spent_to_the_last_label(pool, study):
    points, given = curve(pool, study)
    assert [p.labels for p in points] == [10, 20, 30]
    assert len(set(given[-1].ids)) == 30


def test_a_tenth_of_each_later_batch_is_drawn_at_random(pool, study):
    _, given = curve(pool, study)
    assert [int(g.drawn_at_random.sum()) for g in given] == [10, 11, 12]


def test_the_classes_of_unbought_and_test_samples_are_never_read_for_a_pick(pool, study):
    points, given = curve(pool, study)
    bought = set(given[-1].ids)
    lied = {i: c if i in bought else 1 - c for i, c in pool.truth.items()}
    again, given_again = curve(pool, replace(study, truth=lied))
    assert given_again[-1].ids == given[-1].ids
    assert again[-1].accuracy != points[-1].accuracy  # the test samples do report


def test_the_same_cell_gives_the_same_curve(pool, study):
    def shown(points):
        return [(p.labels, p.accuracy, p.macro_f1, p.ece, p.worst_class_recall) for p in points]

    assert shown(curve(pool, study)[0]) == shown(curve(pool, study)[0])


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if not s.needs_committee])
def test_every_strategy_runs(name):
    pool = FakePool(size=80)
    points, _ = curve(pool, make_study(pool), name)
    assert points[-1].labels == 30


def test_a_stop_ends_a_cell_between_two_looks(pool, study):
    with pytest.raises(Stopped):
        curve(pool, study, watch=RecordingWatch("fit", Stopped("now")))


def test_the_ceiling_is_one_fit_on_the_whole_pool(pool, study):
    learner = Remembering(pool)
    config = make_comparison()
    points = ceiling(config.campaign(config.cells()[0]), study, learner, SilentWatch()).points
    assert [p.labels for p in points] == [40]
    assert set(learner.given[0].ids) == set(pool.pool_ids)
