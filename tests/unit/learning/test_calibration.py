import numpy as np
import pytest

from services.trainer.calibration import BOUNDS, FEWEST_ROWS, log_loss, softmax, temperature


@pytest.fixture
def overconfident() -> tuple[np.ndarray, np.ndarray]:
    """Logits three times too large for how often they are right."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 1.5
    truth = np.array([rng.choice(5, p=p) for p in softmax(logits)])
    return logits * 3, truth


def test_temperature_finds_how_overconfident_the_logits_are(overconfident):
    assert temperature(*overconfident) == pytest.approx(3, rel=0.1)


def test_no_other_temperature_has_a_lower_nll(overconfident):
    logits, truth = overconfident
    best = temperature(logits, truth)
    at_best = log_loss(logits / best, truth)
    assert at_best < log_loss(logits, truth)
    assert all(at_best <= log_loss(logits / t, truth) for t in (best * 0.98, best * 1.02, 0.5, 1, 10))


def test_too_few_rows_leave_the_logits_alone(overconfident):
    logits, truth = overconfident
    assert temperature(logits[: FEWEST_ROWS - 1], truth[: FEWEST_ROWS - 1]) == 1.0


@pytest.mark.parametrize(("truth", "bound"), [(0, BOUNDS[0]), (1, BOUNDS[1])])
def test_temperature_stays_within_its_bounds(truth, bound):
    logits = np.tile([0.1, 0.0], (30, 1))
    assert temperature(logits, np.full(30, truth)) == pytest.approx(bound, rel=1e-6)
