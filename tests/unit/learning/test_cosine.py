import numpy as np

from services.trainer.heads import HeadTask
from services.trainer.heads.cosine import COSINE
from services.trainer.learning import SilentWatch
from tests.unit.learning.conftest import blobs, labelled


def fit(rows, truth, class_count=3):
    return COSINE.fit(HeadTask(rows, labelled(truth), class_count, 0, SilentWatch()))


def test_prototypes_are_the_mean_directions_of_their_classes():
    rows, truth = blobs(60, 8)
    result = fit(rows, truth)
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    units = standard / np.linalg.norm(standard, axis=1, keepdims=True)
    for c in range(3):
        mean = units[truth == c].mean(axis=0)
        expected = result.notes["sharpness"] * mean / np.linalg.norm(mean)
        np.testing.assert_allclose(result.head.weights[0, c], expected, rtol=1e-3, atol=1e-3)


def test_only_the_direction_from_the_mean_counts():
    rows, truth = blobs(60, 8)
    head = fit(rows, truth).head
    near, far = head.mean + 0.1 * (rows - head.mean), head.mean + 10 * (rows - head.mean)
    np.testing.assert_allclose(head.logits(near), head.logits(far), rtol=1e-3, atol=1e-3)


def test_classes_that_lie_apart_get_a_sharper_head_than_classes_that_mix():
    rng = np.random.default_rng(0)
    truth = np.arange(120) % 3
    clear = (5 * np.eye(8)[truth] + rng.normal(size=(120, 8))).astype(np.float32)
    mixed = (0.5 * np.eye(8)[truth] + rng.normal(size=(120, 8))).astype(np.float32)
    assert fit(clear, truth).notes["sharpness"] > 2 * fit(mixed, truth).notes["sharpness"]


def test_a_fold_that_lacks_a_class_does_not_blunt_the_head():
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 2
    truth[0] = 2  # its only row: without it, its fold knows no class 2
    rows = (1.5 * np.eye(8)[truth] + rng.normal(size=(60, 8))).astype(np.float32)
    result = fit(rows, truth)
    assert result.out_of_fold["s0"] is False
    without = fit(rows[1:], truth[1:])
    assert result.notes["sharpness"] > 0.6 * without.notes["sharpness"]
