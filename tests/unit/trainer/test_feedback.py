"""Which answers of the journals become labels, and what is said of the others."""

import io
from collections import Counter

import pytest
from PIL import Image

from services.common.errors import NotFound
from services.common.feedback import Feedback, to_line
from services.common.samples import SampleStore, sample_id
from services.trainer.campaign import Standing
from services.trainer.config import SourceConfig
from services.trainer.feedback import (
    AGREED,
    ASKED,
    CONFLICT,
    DISAGREE,
    KNOWN,
    NO_CLASS,
    NO_SAMPLE,
    NOT_IN_SOURCE,
    OTHER_CAMPAIGN,
    OVER_BUDGET,
    REASONS,
    TEST,
    Held,
    held_by,
    import_feedback,
    judge,
    read_feedback,
)
from services.trainer.sources import make_source
from tests.unit.trainer.conftest import make_config

HELD = {
    "a": Held(["a"]),
    "b": Held(["b"]),
    "c": Held(["c"]),
    "twice": Held(["twice", "twice-2"]),
    "tested": Held([], ["tested"]),
}


@pytest.fixture
def campaign(store):
    return store.create(make_config(), "source", ["cat", "dog"])


def said(image, label, annotator="ann", campaign="demo-1"):
    return Feedback("id", campaign, 2, 1, image, "cat", label, annotator, 1.0, 2.0)


def standing(room=10, labelled=None, asked=()):
    return Standing(2, room, labelled or {}, frozenset(asked))


def taken(verdict):
    return [(answer.sample_id, answer.class_index, answer.annotator) for answer in verdict.taken]


def left_out(verdict):
    return [(it.feedback.sample_id, it.why) for it in verdict.left_out]


def test_an_answer_about_a_pool_image_becomes_a_label_of_its_own_origin(campaign):
    verdict = judge(campaign, [said("a", "dog"), said("b", "cat", annotator="")], HELD, standing())
    assert taken(verdict) == [("a", 1, "ann"), ("b", 0, "")]
    assert {answer.origin for answer in verdict.taken} == {"feedback"}
    assert verdict.left_out == ()


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (said("a", "cat", campaign="demo-2"), OTHER_CAMPAIGN),
        (said("a", "bird"), NO_CLASS),
        (said("", "cat"), NO_SAMPLE),
        (said("elsewhere", "cat"), NOT_IN_SOURCE),
        (said("tested", "cat"), TEST),
    ],
)
def test_an_answer_that_cannot_be_a_label_is_left_out_and_spoils_no_other(campaign, entry, why):
    verdict = judge(campaign, [entry, said("a", "dog")], HELD, standing())
    assert left_out(verdict) == [(entry.sample_id, why)]
    assert taken(verdict) == [("a", 1, "ann")]


def test_a_test_image_is_no_label_even_where_a_duplicate_lies_in_the_pool(campaign):
    verdict = judge(campaign, [said("x", "cat")], {"x": Held(["x-2"], ["x"])}, standing())
    assert (taken(verdict), left_out(verdict)) == ([], [("x", TEST)])


def test_a_labelled_image_keeps_its_label_and_another_answer_is_a_conflict(campaign):
    verdict = judge(campaign, [said("a", "cat"), said("a", "dog")], HELD, standing(labelled={"a": 1}))
    assert taken(verdict) == []
    assert [(it.feedback.label, it.why, it.labelled_as) for it in verdict.left_out] == [
        ("cat", CONFLICT, "dog"),
        ("dog", KNOWN, ""),
    ]


def test_duplicates_in_the_pool_are_one_image(campaign):
    verdict = judge(campaign, [said("twice", "dog")], HELD, standing())
    assert taken(verdict) == [("twice", 1, "ann")]
    for labelled in ({"twice": 1}, {"twice-2": 1}):
        assert left_out(judge(campaign, [said("twice", "dog")], HELD, standing(labelled=labelled))) == [
            ("twice", KNOWN)
        ]


def test_an_image_that_a_round_has_asked_for_waits_for_its_own_label(campaign):
    verdict = judge(campaign, [said("a", "dog")], HELD, standing(asked=["a"]))
    assert (taken(verdict), left_out(verdict)) == ([], [("a", ASKED)])


def test_answers_that_disagree_are_all_refused(campaign):
    entries = [said("a", "dog"), said("b", "cat"), said("a", "cat", "bob"), said("a", "dog", "eve")]
    verdict = judge(campaign, entries, HELD, standing())
    assert taken(verdict) == [("b", 0, "ann")]
    assert left_out(verdict) == [("a", DISAGREE)] * 3


def test_answers_that_agree_are_one_label_by_who_said_it_first(campaign):
    verdict = judge(campaign, [said("a", "dog", "bob"), said("a", "dog", "eve")], HELD, standing())
    assert (taken(verdict), left_out(verdict)) == ([("a", 1, "bob")], [("a", AGREED)])


def test_the_budget_goes_to_what_was_told_first(campaign):
    entries = [said("c", "dog"), said("a", "cat"), said("b", "cat"), said("c", "dog")]
    verdict = judge(campaign, entries, HELD, standing(room=2))
    assert [answer.sample_id for answer in verdict.taken] == ["c", "a"]
    assert left_out(verdict) == [("c", AGREED), ("b", OVER_BUDGET)]


def test_what_is_refused_costs_no_budget(campaign):
    entries = [said("a", "dog"), said("a", "cat"), said("tested", "cat"), said("b", "cat")]
    assert taken(judge(campaign, entries, HELD, standing(room=1))) == [("b", 0, "ann")]


def test_every_answer_is_taken_or_left_out_with_a_reason(campaign):
    images, labels = [*HELD, "", "elsewhere"], ["cat", "dog", "bird"]
    entries = [said(i, c, campaign=n) for i in images for c in labels for n in ("demo-1", "demo-2")]
    verdict = judge(campaign, entries, HELD, standing(room=1, labelled={"a": 0}, asked=["b"]))
    assert len(verdict.taken) + len(verdict.left_out) == len(entries)
    assert {it.why for it in verdict.left_out} <= set(REASONS)


# ---- journals and sources ----------------------------------------------------------------------------


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def samples(tmp_path):
    for number in range(12):
        path = tmp_path / "data" / "pets" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    (tmp_path / "data" / "pets" / "cat" / "copy.png").write_bytes(png(1))
    config = SourceConfig(kind="folder", location="pets", size=8)
    source = make_source(config, tmp_path / "data", tmp_path / "sources", lambda *_: None)
    return SampleStore.open(tmp_path / "sources", tmp_path / "data", source.source_id)


def test_an_image_is_found_in_the_source_by_its_bytes(samples):
    held = held_by(samples, [said(sample_id(png(n)), "cat") for n in (*range(12), 99)])
    assert sorted(i for it in held.values() for i in it.pool) == sorted(samples.ids("pool"))
    assert sorted(i for it in held.values() for i in it.test) == sorted(samples.ids("test"))
    copied = held[sample_id(png(1))]
    assert len(copied.pool) + len(copied.test) == 2
    assert sample_id(png(99)) not in held


def test_a_torn_last_line_is_told_and_the_rest_is_read(tmp_path):
    line = to_line(said("a", "dog"))
    (tmp_path / "host-1.jsonl").write_bytes(line + line[:30])
    (tmp_path / "host-2.jsonl").write_bytes(to_line(said("b", "cat")))
    told = read_feedback([tmp_path])
    assert [entry.sample_id for entry in told.feedback] == ["a", "b"]
    assert [(d.journal.name, d.line) for d in told.damaged] == [("host-1.jsonl", 2)]
    assert "torn" in told.damaged[0].why


def test_a_folder_without_journals_is_named(tmp_path):
    with pytest.raises(NotFound, match="no journals in"):
        read_feedback([tmp_path])


def write_journal(tmp_path, samples, count):
    lines = [to_line(said(image, "dog")) for image in samples.ids("pool")[:count]]
    (tmp_path / "host.jsonl").write_bytes(b"".join(lines))
    return read_feedback([tmp_path / "host.jsonl"])


def test_a_second_import_changes_nothing(tmp_path, store, imports, samples, campaign):
    told = write_journal(tmp_path, samples, 3)
    first, _ = import_feedback(campaign, told, samples, imports)
    labels = store.labels(campaign.name)
    assert len(first.taken) == len(labels) == 3
    second, standing_then = import_feedback(campaign, told, samples, imports)
    assert Counter(it.why for it in second.left_out) == {KNOWN: 3}
    assert (second.taken, standing_then.room) == ((), 27)
    assert store.labels(campaign.name) == labels


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path, store, imports, samples, campaign):
    told = write_journal(tmp_path, samples, 3)
    dry, _ = import_feedback(campaign, told, samples, imports, dry_run=True)
    assert store.labels(campaign.name) == []
    assert import_feedback(campaign, told, samples, imports)[0] == dry
