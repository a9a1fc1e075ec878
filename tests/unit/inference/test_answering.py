"""The number of the version that answers, as Prometheus reads it."""

from services.inference.metrics import LOAD_FAILURES, Metrics


def test_the_version_that_answers_is_the_value_and_follows_a_swap() -> None:
    metrics, answering = Metrics(), {"cats": 3, "dogs": 0}
    metrics.follow(lambda: answering)
    assert metrics.registry.get_sample_value("inference_current_version", {"model": "cats"}) == 3
    assert metrics.registry.get_sample_value("inference_current_version", {"model": "dogs"}) == 0
    answering["cats"] = 4
    del answering["dogs"]
    assert metrics.registry.get_sample_value("inference_current_version", {"model": "cats"}) == 4
    assert metrics.registry.get_sample_value("inference_current_version", {"model": "dogs"}) is None


def test_load_failures_of_every_reason_are_counted_from_0() -> None:
    registry = Metrics().registry
    for reason in LOAD_FAILURES:
        assert registry.get_sample_value("inference_model_load_failures_total", {"reason": reason}) == 0
