from services.trainer.promotion import decide


def rows(right: int, wrong: int) -> dict[str, bool]:
    return {f"s{i}": i < right for i in range(right + wrong)}


def test_the_first_trained_version_is_promoted():
    assert decide("not_worse", rows(1, 9), None).promote


def test_a_clearly_worse_version_is_refused():
    decision = decide("not_worse", rows(50, 50), rows(80, 20))
    assert not decision.promote
    assert "-30.0 points on 100" in decision.reason


def test_worse_by_less_than_one_standard_error_is_promoted():
    # One row of a hundred turns from right to wrong: mean -1 point, standard error 1 point.
    assert decide("not_worse", rows(79, 21), rows(80, 20)).promote


def test_only_rows_that_both_have_are_compared():
    new = {"a": True, "b": False, "only-new": False}
    assert decide("not_worse", new, {"a": True, "b": False, "only-old": True}).promote


def test_nothing_to_compare_on_promotes():
    assert decide("not_worse", {}, {"a": True}).promote


def test_manual_and_always_look_at_nothing():
    assert not decide("manual", rows(9, 1), None).promote
    assert decide("always", rows(0, 10), rows(10, 0)).promote
