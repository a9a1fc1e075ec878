"""Query strategies of scikit-activeml and modAL at our port: their own query code, on our embeddings and our head.

Each gets the embeddings as they are stored, the labels bought so far and, where it asks a model, the very head that
was fitted for this round. `TOO_SLOW` names those that are asked about a random part of the pool: BADGE of
scikit-activeml builds N x C x D, and MaxHerding an N x N kernel that it goes through for every sample of the batch.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from modAL import uncertainty as modal
from skactiveml import pool as scikit
from skactiveml.base import SkactivemlClassifier
from sklearn.cluster import MiniBatchKMeans

from services.trainer.strategies import ScoredPool, Strategy

# Candidates that a slow peer is asked about, drawn anew in each round.
CANDIDATES = 2000

# (embeddings (N, D) of everything, classes (N,) with nan where unknown, the head, labelled rows, budget, rng) -> rows
Query = Callable[["Question"], np.ndarray]


class OurHead(SkactivemlClassifier):  # type: ignore[misc]
    """The round's head as scikit-activeml and modAL want a classifier: it is fitted already."""

    def __init__(
        self,
        classify: Callable[[np.ndarray], np.ndarray] | None = None,
        classes: Any = None,
        missing_label: float = np.nan,
        cost_matrix: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(classes, missing_label, cost_matrix, random_state)
        self.classify = classify

    @property
    def classes_(self) -> np.ndarray:
        return np.asarray(self.classes)

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: Any = None) -> "OurHead":
        raise AssertionError("the head was fitted by our learner")

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        assert self.classify is not None
        mean = self.classify(np.asarray(X, np.float32)).mean(axis=1).astype(np.float64)
        return np.asarray(mean / mean.sum(axis=1, keepdims=True))

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(self.predict_proba(X).argmax(axis=1))


class Question:
    """What a peer is told of a round."""

    def __init__(self, pool: ScoredPool, budget: int, rng: np.random.Generator, candidates: int | None) -> None:
        bought = len(pool.labelled)
        self.rows = pool.embeddings((*pool.labelled, *pool.ids))  # (L + N, D)
        self.classes = np.full(len(self.rows), np.nan)  # (L + N,)
        known = pool.labelled_classes >= 0
        self.classes[:bought][known] = pool.labelled_classes[known]
        self.open = np.arange(bought, len(self.rows))
        if candidates is not None and len(self.open) > candidates:
            self.open = np.sort(rng.choice(self.open, max(candidates, budget), replace=False))
        self.head = OurHead(pool.classify, list(range(pool.class_count)))
        self.budget = budget
        self.seed = int(rng.integers(2**31))


def of_scikit(make: Callable[..., Any], asks: str = "", **settings: Any) -> Query:
    """A strategy of scikit-activeml; `asks`: what it calls the model that it wants, if it wants one."""

    def query(question: Question) -> np.ndarray:
        model = {asks: question.head, f"fit_{asks}": False} if asks else {}
        more = dict(settings)
        if "cluster_algo_dict" in more:  # only TypiClust hands its own random state down
            more["cluster_algo_dict"] = {**more["cluster_algo_dict"], "random_state": question.seed}
        strategy = make(random_state=question.seed, **more)
        return np.asarray(
            strategy.query(
                question.rows, question.classes, candidates=question.open, batch_size=question.budget, **model
            )
        )

    return query


def of_modal(sampling: Callable[..., Any]) -> Query:
    """A sampling function of modAL, equal scores in random order."""

    def query(question: Question) -> np.ndarray:
        np.random.seed(question.seed)  # noqa: NPY002 (modAL shuffles by the global generator)
        found = sampling(
            question.head, question.rows[question.open], n_instances=question.budget, random_tie_break=True
        )
        return np.asarray(question.open[found[0]])

    return query


_FEW_PASSES = {"n_init": 1, "batch_size": 2048, "max_iter": 20}
_MINI_BATCH = {"cluster_algo": MiniBatchKMeans, "cluster_algo_dict": _FEW_PASSES}

QUERIES: Mapping[str, Query] = {
    "scikit-activeml margin": of_scikit(scikit.UncertaintySampling, "clf", method="margin_sampling"),
    "scikit-activeml least confident": of_scikit(scikit.UncertaintySampling, "clf", method="least_confident"),
    "scikit-activeml entropy": of_scikit(scikit.UncertaintySampling, "clf", method="entropy"),
    "scikit-activeml core-set": of_scikit(scikit.CoreSet),
    "scikit-activeml BADGE": of_scikit(scikit.Badge, "clf"),
    "scikit-activeml TypiClust": of_scikit(scikit.TypiClust, **_MINI_BATCH),
    "scikit-activeml DropQuery": of_scikit(scikit.DropQuery, "clf", **_MINI_BATCH),
    "scikit-activeml CLUE": of_scikit(scikit.Clue, "estimator", **_MINI_BATCH),
    "scikit-activeml Falcun": of_scikit(scikit.Falcun, "clf"),
    "scikit-activeml MaxHerding": of_scikit(scikit.MaxHerding),
    "modAL margin": of_modal(modal.margin_sampling),
    "modAL entropy": of_modal(modal.entropy_sampling),
    "modAL uncertainty": of_modal(modal.uncertainty_sampling),
}
TOO_SLOW = frozenset({"scikit-activeml BADGE", "scikit-activeml MaxHerding"})


def _pick(query: Query, candidates: int | None, pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    budget = min(budget, len(pool.ids))
    if not budget:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of k-means about clusters of duplicates, and the like
        places = query(Question(pool, budget, rng, candidates))
    return [pool.ids[place - len(pool.labelled)] for place in places]


PEERS: Mapping[str, Strategy] = {
    name: Strategy(
        name,
        partial(_pick, query, CANDIDATES if name in TOO_SLOW else None),
        uses_embeddings=True,
        needs_model=True,
    )
    for name, query in QUERIES.items()
}
