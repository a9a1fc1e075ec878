import numpy as np
import pytest

from services.inference.servicer import _most_probable


@pytest.mark.parametrize("classes", [2, 10, 64, 65, 300])
def test_the_most_probable_classes_come_first_and_equal_ones_in_the_order_of_the_classes(classes: int) -> None:
    # One of five values each: many are equal.
    probabilities = np.random.default_rng(0).integers(0, 5, (20, classes)).astype(np.float32)
    for count in (1, 2, classes):
        expected = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
        assert _most_probable(probabilities, count) == expected.tolist()
