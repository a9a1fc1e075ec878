from dataclasses import replace

import numpy as np

from services.trainer.strategies import strategy
from services.trainer.strategies.auto import ENOUGH
from tests.unit.strategies.planes import group, pool_of

# Many samples east that the model is sure of, a few in the west that it doubts.
ROWS = {**group("east", 0, 40, spread=20), **group("west", 180, 10, spread=20)}
SCORES = {sample: 0.9 if sample.startswith("west") else 0.01 for sample in ROWS}


def auto(classes: list[int], class_count: int = 2) -> tuple[str, str]:
    """With labels of these classes, far from everything: where the first pick lies, and what auto says."""
    labelled = [f"old-{i}" for i in range(len(classes))]
    rows = ROWS | dict.fromkeys(labelled, (0.0, 1.0))
    pool = pool_of(rows, labelled, SCORES, classes_of_labelled=classes)
    said: list[str] = []
    pool = replace(pool, class_count=class_count, tell=said.append)
    (picked,) = strategy("auto").pick(pool, 1, np.random.default_rng(0))
    (sentence,) = said
    return picked.split("-")[0], sentence


def test_few_labels_ask_for_typical_samples_and_many_for_uncertain_ones():
    assert auto([0, 1] * (ENOUGH - 1))[0] == "east"
    assert auto([0, 1] * ENOUGH)[0] == "west"


def test_a_class_that_is_never_found_does_not_hold_up_the_others():
    # Two of three classes have enough, and the median is one of them.
    assert auto([0, 1] * ENOUGH, class_count=3)[0] == "west"


def test_it_says_what_it_did_and_why():
    assert auto([0, 0, 1, 1, 1])[1] == ("representative samples: the median class has 2.5 of 5 labels, fewer than 5")
    assert auto([0, 1] * 6)[1] == "uncertainty herding: the median class has 6 of 12 labels, at least 5"


def test_it_may_pick_the_first_batch():
    where, sentence = auto([])
    assert where == "east"
    assert sentence.startswith("representative samples: the median class has 0 of 0 labels")


def test_a_label_that_is_not_answered_yet_decides_nothing():
    waiting = [0, 1] * (ENOUGH - 1) + [-1] * 50
    where, sentence = auto(waiting)
    assert where == "east"
    assert f"{ENOUGH - 1} of {2 * (ENOUGH - 1)} labels" in sentence
