import re
import time
from types import SimpleNamespace

import numpy as np
import pytest

from services.common.errors import BadRequest
from services.common.samples import sample_id
from services.inference.prediction_ids import parse, prediction_ids

MANIFEST = SimpleNamespace(campaign="pets-1", version=3, round=2)
SAMPLES = [sample_id(b"one"), sample_id(b"two")]


def ids(samples=SAMPLES):
    return prediction_ids(MANIFEST, np.array([1, 0]), samples)


def test_an_id_says_what_the_prediction_was():
    first, second = map(parse, ids())
    assert (first.campaign, first.version, first.round) == ("pets-1", 3, 2)
    assert [first.class_index, second.class_index] == [1, 0]
    assert [first.sample_id, second.sample_id] == SAMPLES
    assert abs(first.predicted_at - time.time()) < 5


def test_raw_pixels_have_no_sample_id_and_their_ids_differ_all_the_same():
    made = [*ids([]), *ids([])]
    assert {parse(i).sample_id for i in made} == {""}
    assert len(set(made)) == 4


def test_an_id_may_stand_in_a_url():
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", i) for i in ids())


def test_every_changed_shortened_or_lengthened_id_is_refused():
    good = ids()[0]
    other = {c: "B" if c == "A" else "A" for c in set(good)}
    mangled = [good[:i] + other[good[i]] + good[i + 1 :] for i in range(len(good))]
    for bad in [*mangled, good[:-2], good[:10], good + "AAAA", "", "no id", "é", good + "=", f" {good}"]:
        with pytest.raises(BadRequest, match="is not a prediction id"):
            parse(bad)


@pytest.mark.parametrize(("campaign", "version"), [("", 3), ("../pets", 3), ("Pets", 3), ("pets-1", 0)])
def test_a_made_up_id_that_names_no_campaign_or_version_is_refused(campaign, version):
    made_up = prediction_ids(SimpleNamespace(campaign=campaign, version=version, round=0), np.array([0]), [])
    with pytest.raises(BadRequest, match="is not a prediction id"):
        parse(made_up[0])


def test_the_longest_campaign_name_has_an_id_and_a_text_of_megabytes_is_not_even_decoded():
    name = "n" * 63
    [longest] = prediction_ids(SimpleNamespace(campaign=name, version=2**32 - 1, round=0), np.array([0]), [])
    assert parse(longest).campaign == name
    with pytest.raises(BadRequest, match="is not a prediction id"):
        parse("A" * 4_000_000)
