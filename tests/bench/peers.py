"""The strategies of scikit-activeml and modAL that ours are measured against: one query each on a `World`.

Their heads (logistic regression of scikit-learn, committees of five on bootstrapped labels) are fitted and have
predicted once before the clock starts.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.bench.strategies import World

Query = Callable[["World", np.ndarray, int], np.ndarray]
MEMBERS = 5
_WARM_UP_ROWS = 1024


def _rows_by_member(world: "World", labelled: np.ndarray) -> list[np.ndarray]:
    """Bootstrap draws, each with a sample of every class."""
    rng, truth = np.random.default_rng(2), world.classes[labelled]
    one_each = labelled[[np.flatnonzero(truth == c)[0] for c in np.unique(truth)]]
    return [np.concatenate([one_each, rng.choice(labelled, len(labelled))]) for _ in range(MEMBERS)]


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.01, max_iter=50)


def _warm(world: "World", *models: Any) -> None:
    for model in models:
        model.predict_proba(world.points[:_WARM_UP_ROWS])
    world.start()


# ---- modAL ---------------------------------------------------------------------------------------------


def modal(query: str) -> Query:
    """A function of modAL.uncertainty."""

    def run(world: "World", labelled: np.ndarray, batch: int) -> np.ndarray:
        from modAL import uncertainty

        model = _logistic().fit(world.points[labelled], world.classes[labelled])
        _warm(world, model)
        return np.asarray(getattr(uncertainty, query)(model, world.points, n_instances=batch)[0])

    return run


def modal_committee(query: str) -> Query:
    """A function of modAL.disagreement."""

    def run(world: "World", labelled: np.ndarray, batch: int) -> np.ndarray:
        from modAL import disagreement
        from modAL.models import ActiveLearner, Committee

        drawn = _rows_by_member(world, labelled)
        learners = [
            ActiveLearner(_logistic(), X_training=world.points[rows], y_training=world.classes[rows]) for rows in drawn
        ]
        committee = Committee(learners)
        _warm(world, committee)
        return np.asarray(getattr(disagreement, query)(committee, world.points, n_instances=batch)[0])

    return run


# ---- scikit-activeml -----------------------------------------------------------------------------------


def _labels(world: "World", labelled: np.ndarray) -> np.ndarray:
    y = np.full(len(world.points), np.nan)
    y[labelled] = world.classes[labelled]
    return y


def _classifier(world: "World", rows: Sequence[int] | np.ndarray) -> Any:
    from skactiveml.classifier import SklearnClassifier

    model = SklearnClassifier(_logistic(), classes=list(range(int(world.classes.max()) + 1)))
    return model.fit(world.points[rows], world.classes[rows].astype(float))


def activeml(query: str, needs_model: bool = False, **options: Any) -> Query:
    """A class of skactiveml.pool."""

    def run(world: "World", labelled: np.ndarray, batch: int) -> np.ndarray:
        from skactiveml import pool

        y, more = _labels(world, labelled), {}
        if needs_model:
            more = {"clf": _classifier(world, labelled), "fit_clf": False}
        strategy = getattr(pool, query)(random_state=0, **options)
        _warm(world, *([more["clf"]] if needs_model else []))
        return np.asarray(strategy.query(world.points, y, batch_size=batch, **more))

    return run


def activeml_committee(method: str) -> Query:
    def run(world: "World", labelled: np.ndarray, batch: int) -> np.ndarray:
        from skactiveml.pool import QueryByCommittee

        y = _labels(world, labelled)
        ensemble = [_classifier(world, rows) for rows in _rows_by_member(world, labelled)]
        strategy = QueryByCommittee(method=method, random_state=0)
        _warm(world, *ensemble)
        chosen = strategy.query(world.points, y, ensemble=ensemble, fit_ensemble=False, batch_size=batch)
        return np.asarray(chosen)

    return run


# By the name of our strategy. modAL's committees have no mean KL divergence: its maximum is the nearest they have.
PEERS: dict[str, dict[str, Query]] = {
    "margin": {
        "modAL margin": modal("margin_sampling"),
        "scikit-activeml margin": activeml("UncertaintySampling", True, method="margin_sampling"),
    },
    "least_confidence": {
        "modAL least_confidence": modal("uncertainty_sampling"),
        "scikit-activeml least_confidence": activeml("UncertaintySampling", True, method="least_confident"),
    },
    "entropy": {
        "modAL entropy": modal("entropy_sampling"),
        "scikit-activeml entropy": activeml("UncertaintySampling", True, method="entropy"),
    },
    "vote_entropy": {
        "modAL vote_entropy": modal_committee("vote_entropy_sampling"),
        "scikit-activeml vote_entropy": activeml_committee("vote_entropy"),
    },
    "consensus_entropy": {"modAL consensus_entropy": modal_committee("consensus_entropy_sampling")},
    "mean_kl": {
        "modAL max_disagreement": modal_committee("max_disagreement_sampling"),
        "scikit-activeml mean_kl": activeml_committee("KL_divergence"),
    },
    "k_center": {"scikit-activeml k_center": activeml("CoreSet")},
    "badge": {"scikit-activeml badge": activeml("Badge", True)},
    "typiclust": {"scikit-activeml typiclust": activeml("TypiClust")},
    "prob_cover": {"scikit-activeml prob_cover": activeml("ProbCover", n_classes=10)},
}
