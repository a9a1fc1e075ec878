from dataclasses import replace

import numpy as np

from services.trainer.strategies import strategy
from services.trainer.strategies.auto import ENOUGH
from tests.unit.strategies.planes import group, pool_of
from tests.unit.strategies.test_with_a_model import by_sign

ROWS = {**group("east", 0, 40, spread=20), **group("west", 180, 40, spread=20)}
SCORES = {sample: float(number) for number, sample in enumerate(ROWS)}


def auto(bought: dict[int, int], budget: int = 4) -> tuple[list[str], list[str], str]:
    """With so many labels of each class: what auto picks, what typiclust and class_balanced would, and what it says."""
    labelled = [f"old-{c}-{i}" for c, count in bought.items() for i in range(count)]
    rows = ROWS | dict.fromkeys(labelled, (0.0, 1.0))
    classes = [int(i.split("-")[1]) for i in labelled]
    pool = pool_of(rows, labelled, SCORES, by_sign, classes_of_labelled=classes)
    said: list[str] = []
    picked = strategy("auto").pick(replace(pool, tell=said.append), budget, np.random.default_rng(0))
    same_as = [
        name
        for name in ("typiclust", "class_balanced")
        if strategy(name).pick(pool, budget, np.random.default_rng(0)) == picked
    ]
    (sentence,) = said
    return picked, same_as, sentence


def test_few_labels_ask_for_typical_samples_and_many_for_uncertain_ones():
    assert auto({0: ENOUGH - 1, 1: ENOUGH - 1})[1] == ["typiclust"]
    assert auto({0: ENOUGH, 1: ENOUGH})[1] == ["class_balanced"]


def test_a_class_that_is_never_found_does_not_hold_up_the_others():
    said: list[str] = []
    # Two of three classes have enough, and the median is one of them.
    bought = np.repeat([0, 1], ENOUGH)
    pool = replace(pool_of(ROWS, (), SCORES, by_sign), class_count=3, labelled_classes=bought, tell=said.append)
    strategy("auto").pick(pool, 1, np.random.default_rng(0))
    assert said[0].startswith("class_balanced")


def test_it_says_what_it_did_and_why():
    assert auto({0: 5, 1: 7})[2] == "typiclust: the median class has 6 of 12 labels, fewer than 30"
    assert auto({0: 30, 1: 34})[2] == "class_balanced: the median class has 32 of 64 labels, at least 30"


def test_it_may_pick_the_first_batch():
    picked, same_as, sentence = auto({})
    assert len(picked) == 4
    assert same_as == ["typiclust"]
    assert sentence.startswith("typiclust: the median class has 0 of 0 labels")


def test_a_label_that_is_not_answered_yet_decides_nothing():
    pool = pool_of(ROWS, (), SCORES, by_sign)
    said: list[str] = []
    waiting = np.append(np.repeat([0, 1], ENOUGH - 1), np.full(50, -1))
    strategy("auto").pick(replace(pool, labelled_classes=waiting, tell=said.append), 1, np.random.default_rng(0))
    assert said == ["typiclust: the median class has 29 of 58 labels, fewer than 30"]
