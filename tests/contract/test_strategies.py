"""One contract for every strategy in the table, whatever package it comes from, and for the documented example."""

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from services.common.acquisition import ACQUISITIONS
from services.common.errors import BadConfig, Stopped
from services.trainer.calibration import softmax
from services.trainer.strategies import Kept, ScoredPool, Strategy, strategies, strategy
from services.trainer.strategies.plugins import GROUP, with_plugins

POOL = 60
SIZE = 8


def head(classes: int, members: int, seed: int = 2) -> Callable[[np.ndarray], np.ndarray]:
    """A committee of random linear heads: (n, D) -> (n, K, C)."""
    weights = np.random.default_rng(seed).normal(size=(members, classes, SIZE)).astype(np.float32)
    return lambda rows: softmax(np.einsum("nd,kcd->nkc", rows, weights))


def scored_pool(
    acquisition: str | None = "margin",
    labelled: int = 5,
    size: int = POOL,
    classes: int = 3,
    members: int = 1,
    embedding: Callable[[int], np.ndarray] | None = None,
) -> ScoredPool:
    """Ids say nothing about embeddings, and embeddings nothing that a label would."""
    rows = np.random.default_rng(1).normal(size=(size + labelled, SIZE)).astype(np.float32)
    ids = tuple(f"u{i:03d}" for i in range(size))
    old = tuple(f"l{i:03d}" for i in range(labelled))
    row_of = {sample: rows[i] if embedding is None else embedding(i) for i, sample in enumerate((*ids, *old))}

    def embeddings(wanted):
        assert len(wanted), "the scorer refuses to embed nothing"
        return np.array([row_of[i] for i in wanted], np.float32)

    classify = head(classes, members)
    return ScoredPool(
        ids=ids,
        labelled=old,
        scores=None if acquisition is None else ACQUISITIONS[acquisition](classify(embeddings(ids))),
        embeddings=embeddings,
        classify=classify,
        # The last one is of this round's random draw: bought, and not answered yet.
        labelled_classes=np.append(np.arange(labelled - 1) % classes, -1)[:labelled],
        class_count=classes,
        embedding_key="made-up",
    )


def documented_example() -> EntryPoint:
    """The module in docs/extending.md, as an installed package would name it."""
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    module = ModuleType("documented_example")
    exec(compile(code, "docs/extending.md", "exec"), vars(module))
    sys.modules[module.__name__] = module
    return EntryPoint("farthest_from_mean", "documented_example:FARTHEST_FROM_MEAN", GROUP)


TABLE = with_plugins(strategies(), [documented_example()])

every_strategy = pytest.mark.parametrize("name", sorted(TABLE))


def pool_for(name: str, **changes: object) -> ScoredPool:
    return scored_pool(TABLE[name].acquisition, **changes)


def pick(name: str, pool: ScoredPool, budget: int, seed: int = 0) -> list[str]:
    return TABLE[name].pick(pool, budget, np.random.default_rng(seed))


def assert_honest(picked: list[str], pool: ScoredPool, budget: int) -> None:
    assert len(picked) == len(set(picked)) == min(budget, len(pool.ids))
    assert set(picked) <= set(pool.ids)


@every_strategy
@pytest.mark.parametrize("budget", [0, 1, 7, POOL, POOL + 10])
def test_picks_distinct_unlabelled_samples_within_the_budget(name, budget):
    pool = pool_for(name)
    assert_honest(pick(name, pool, budget), pool, budget)


@every_strategy
@pytest.mark.parametrize("size", [1, 2, 3])
def test_works_when_the_pool_is_smaller_than_the_batch(name, size):
    pool = pool_for(name, size=size)
    assert_honest(pick(name, pool, 5), pool, 5)


@every_strategy
@pytest.mark.parametrize(("classes", "members"), [(2, 1), (2, 3), (5, 1), (5, 4)])
def test_works_for_two_classes_and_for_committees(name, classes, members):
    pool = pool_for(name, classes=classes, members=members)
    assert_honest(pick(name, pool, 12), pool, 12)


@every_strategy
def test_the_same_seed_picks_the_same_batch(name):
    assert pick(name, pool_for(name), 10, seed=3) == pick(name, pool_for(name), 10, seed=3)


@every_strategy
def test_what_earlier_rounds_kept_changes_nothing(name):
    """A worker that died has kept nothing, and must pick what the one that went on would have picked."""
    first = pool_for(name, labelled=0)
    bought = pick(name, first, 10)
    old = {i: k for k, i in enumerate(first.ids)}
    left = tuple(i for i in first.ids if i not in bought)
    assert first.scores is None or len(first.scores) == POOL
    second = replace(
        first,
        ids=left,
        labelled=tuple(bought),
        labelled_classes=np.arange(len(bought)) % 3,
        scores=None if first.scores is None else first.scores[[old[i] for i in left]],
    )
    assert pick(name, second, 10) == pick(name, replace(second, kept=Kept()), 10)


@every_strategy
def test_works_before_anything_is_labelled(name):
    pool = pool_for(name, labelled=0)
    assert_honest(pick(name, pool, 5), pool, 5)


@every_strategy
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_works_when_all_embeddings_are_equal(name, value):
    pool = pool_for(name, embedding=lambda _: np.full(SIZE, value, np.float32))
    assert_honest(pick(name, pool, 10), pool, 10)


@every_strategy
def test_works_when_every_sample_has_a_copy(name):
    rows = np.random.default_rng(4).normal(size=(POOL, SIZE))
    pool = pool_for(name, embedding=lambda i: rows[i // 2])
    assert_honest(pick(name, pool, 40), pool, 40)


def test_labels_reach_a_strategy_in_one_place_which_holds_those_of_bought_samples_only():
    """Whoever adds a field here must know that it tells no class of an unlabelled sample."""
    known = {"ids", "labelled", "scores", "embeddings", "classify", "class_count", "embedding_key", "kept"}
    assert {field.name for field in fields(ScoredPool)} == known | {"labelled_classes", "look", "tell"}


@every_strategy
def test_leaves_what_it_was_given_as_it_was(name):
    pool = pool_for(name)
    classes, scores = pool.labelled_classes.copy(), None if pool.scores is None else pool.scores.copy()
    pick(name, pool, 10)
    np.testing.assert_array_equal(pool.labelled_classes, classes)
    if scores is not None:
        np.testing.assert_array_equal(pool.scores, scores)


# The others make one pass over the scores: nothing in it lasts a second.
@pytest.mark.parametrize("name", sorted(name for name, it in TABLE.items() if it.uses_embeddings))
def test_ends_when_it_is_told_to(name):
    def look():
        raise Stopped("now")

    with pytest.raises(Stopped):
        pick(name, replace(pool_for(name), look=look), 10)


@every_strategy
def test_a_strategy_says_truly_what_it_needs(name):
    """One that says that it needs no embeddings or no model is not given any."""

    def refuse(*_):
        raise AssertionError(f"{name} reads what it says it does not need")

    it = TABLE[name]
    assert it.name == name
    assert it.acquisition is None or it.acquisition in ACQUISITIONS
    pool = pool_for(name)
    if not it.uses_embeddings:
        pool = replace(pool, embeddings=refuse)
    if not it.needs_model:
        pool = replace(pool, classify=refuse)
    assert_honest(pick(name, pool, 10), pool, 10)


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(BadConfig, match="did you mean 'margin'"):
        strategy("margins")


def test_every_built_in_strategy_is_in_the_table_under_its_name():
    assert all(isinstance(it, Strategy) and it.name == name for name, it in strategies().items())
