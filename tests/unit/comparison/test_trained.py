"""Networks that are trained embed for themselves: each model its own rows, and only those that are asked for."""

from dataclasses import replace

import numpy as np
import pytest

from services.trainer.comparison.curve import learning_curve
from services.trainer.comparison.scoring import Trained
from services.trainer.learning import SilentWatch
from tests.fakes import FakeLearner, RecordingWatch
from tests.unit.comparison.conftest import make_comparison, make_study


class FakeImages:
    """An image is its embedding; remembers what was read."""

    def __init__(self, pool):
        self._pool = pool
        self.read = []

    def __call__(self, ids):
        self.read.extend(ids)
        return self._pool.embeddings(ids)


class Training(FakeLearner):
    """Each model has a network of its own: it shifts what it sees by the number of labels."""

    def initial_model(self, class_count, watch):
        return self._own(super().initial_model(class_count, watch), 0)

    def fit(self, labelled, class_count, seed, watch):
        return self._own(super().fit(labelled, class_count, seed, watch), len(labelled))

    def _own(self, model, shift):
        return replace(
            model, embedding_shared=False, embedding_id=f"own-{shift}", reference=lambda images: images + shift
        )


def test_each_model_embeds_with_its_own_network_and_reads_a_sample_once(pool):
    images, learner = FakeImages(pool), Training(pool)
    model = learner.initial_model(2, SilentWatch())
    features = Trained(images)
    own = features.under(model, SilentWatch())
    first = own.of(pool.pool_ids[:3])
    again = own.of(pool.pool_ids[1:5])
    assert np.array_equal(first[1:], again[:2])
    assert images.read == list(pool.pool_ids[:5])
    other = features.under(replace(model, reference=lambda images: images + 7), SilentWatch())
    assert other.of(pool.pool_ids[:3]) == pytest.approx(first + 7, abs=0.01)  # rounded to float16, as stored


def test_a_random_pick_reads_no_image_of_the_pool(pool):
    images = FakeImages(pool)
    config = make_comparison(strategies=["random"])
    study = replace(make_study(pool), embedded=Trained(images))
    learning_curve(config.campaign(config.cells()[0]), study, Training(pool), SilentWatch())
    assert images.read == []


def test_a_score_is_of_the_unlabelled_pool_and_looks_at_the_watch(pool):
    images, watch = FakeImages(pool), RecordingWatch()
    config = make_comparison(strategies=["margin"])
    study = replace(make_study(pool), embedded=Trained(images))
    cell = next(c for c in config.cells() if c.strategy == "margin")
    outcome = learning_curve(config.campaign(cell), study, Training(pool), watch)
    assert [p.labels for p in outcome.points] == [10, 20, 30]
    assert len(images.read) == 30 + 20  # what was unlabelled when each batch was picked
    assert not set(images.read) & set(pool.test_ids)
    assert np.array(outcome.confusion).sum() == len(pool.test_ids)
