"""Feedback over a real channel: what is answered is on the disk, counted once, and understood by any replica."""

import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from services.client.messages import Feedback, Prediction
from services.common.errors import BadRequest, NotFound
from services.common.feedback import Feedback as Entry
from services.common.feedback import journals, read_journal
from services.common.pb import prediction_pb2
from services.common.samples import sample_id
from services.inference.metrics import FEEDBACK_VERSIONS
from tests.integration.inference.harness import Served, serving
from tests.tiny_models import Folders, TinyModel, next_version, png, publish

MODEL = TinyModel()


@pytest.fixture(autouse=True)
def promoted(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)


@pytest.fixture
def journal_dir(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


def entries(folder: Path) -> list[Entry]:
    return [entry for path in journals([folder]) for entry in read_journal(path)]


async def predicted(served: Served, image: bytes | None = None) -> Prediction:
    return (await served.client.predict([image or png()], model="tiny", with_feedback_id=True)).predictions[0]


def other_label(label: str) -> str:
    return next(name for name in MODEL.classes if name != label)


async def test_ids_come_only_when_they_are_asked_for(folders: Folders) -> None:
    async with serving(folders) as served:
        assert (await served.client.predict([png()])).predictions[0].prediction_id == ""
        asked = await served.client.predict([png(), png()], with_feedback_id=True)
        assert len({p.prediction_id for p in asked.predictions} - {""}) == 2


async def test_what_is_answered_is_in_the_journal_and_in_the_counter(folders: Folders, journal_dir: Path) -> None:
    async with serving(folders, feedback_dir=journal_dir) as served:
        prediction = await predicted(served)
        wrong = await predicted(served, png((1, 2, 3)))
        index = MODEL.classes.index(other_label(wrong.label))
        new = await served.client.feedback(
            [Feedback(prediction.prediction_id, prediction.label, "ann"), Feedback(wrong.prediction_id, index)]
        )
        assert new == 2
        first, second = entries(journal_dir)
        assert (first.campaign, first.version, first.round) == ("tiny", 1, 0)
        assert (first.predicted, first.label, first.annotator) == (prediction.label, prediction.label, "ann")
        assert (second.label, second.correct, second.annotator) == (other_label(wrong.label), False, "")
        assert [first.sample_id, second.sample_id] == [sample_id(png()), sample_id(png((1, 2, 3)))]
        for correct in ("true", "false"):
            labels = {"model": "tiny", "version": "1", "round": "0", "correct": correct}
            assert served.metric("inference_feedback_total", **labels) == 1


async def test_raw_pixels_have_feedback_without_a_sample(folders: Folders, journal_dir: Path) -> None:
    async with serving(folders, feedback_dir=journal_dir) as served:
        answer = await served.client.predict(np.zeros((1, 8, 8, 3), np.uint8), with_feedback_id=True)
        await served.client.feedback([Feedback(answer.predictions[0].prediction_id, 0)])
    assert [entry.sample_id for entry in entries(journal_dir)] == [""]


async def test_the_same_prediction_is_kept_twice_and_counted_once(folders: Folders, journal_dir: Path) -> None:
    async with serving(folders, feedback_dir=journal_dir) as served:
        prediction = await predicted(served)
        item = Feedback(prediction.prediction_id, prediction.label)
        assert [await served.client.feedback([item, item]), await served.client.feedback([item])] == [1, 0]
        assert len(entries(journal_dir)) == 3
        assert served.metric("inference_feedback_total", model="tiny", version="1", round="0", correct="true") == 1


async def test_another_replica_understands_the_id_after_the_first_has_gone(folders: Folders, journal_dir: Path) -> None:
    async with serving(folders, feedback_dir=journal_dir) as served:
        prediction = await predicted(served)
    async with serving(folders, feedback_dir=journal_dir) as other:
        assert await other.client.feedback([Feedback(prediction.prediction_id, prediction.label)]) == 1


async def test_feedback_about_a_pruned_version_is_kept_and_counted(folders: Folders, journal_dir: Path) -> None:
    async with serving(folders, feedback_dir=journal_dir) as served:
        prediction = await predicted(served)
        second = next_version(MODEL)
        for model in (second, next_version(second)):
            publish(folders.registry, model, promote=True)
        async for model_now in served.client.watch_model("tiny", timeout_s=10):
            if model_now.version == 3:
                break
        folders.registry.prune("tiny", keep_newest=1)
        assert folders.registry.versions("tiny") == [3]
        assert await served.client.feedback([Feedback(prediction.prediction_id, prediction.label)]) == 1
        assert served.metric("inference_feedback_total", model="tiny", version="1", round="0", correct="true") == 1
        folders.registry.delete("tiny")
        with pytest.raises(NotFound):
            async for _ in served.client.watch_model("tiny", timeout_s=10):
                pass
        with pytest.raises(NotFound, match="item 0: no model 'tiny'"):
            await served.client.feedback([Feedback(prediction.prediction_id, prediction.label)])


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (Feedback("{id}", "gren"), "item 1: no class 'gren'; did you mean 'green'"),
        (Feedback("{id}", 3), r"item 1: no class 3; the model has 0\.\.2"),
        (Feedback("{id}", "green", "a" * 129), "item 1: the annotator has 129 characters; the limit is 128"),
        (Feedback("{id}x", "green"), "item 1: .*is not a prediction id"),
    ],
)
async def test_one_bad_item_is_named_and_nothing_is_kept(
    folders: Folders, journal_dir: Path, bad: Feedback, told: str
) -> None:
    async with serving(folders, feedback_dir=journal_dir) as served:
        given = (await predicted(served)).prediction_id
        good = Feedback(given, "green", "a" * 128)
        with pytest.raises(BadRequest, match=told):
            await served.client.feedback([good, Feedback(bad.prediction_id.format(id=given), bad.truth, bad.annotator)])
        assert not journal_dir.exists()


async def test_requests_without_items_truth_or_measure_are_refused(folders: Folders) -> None:
    async with serving(folders) as served:
        given = (await predicted(served)).prediction_id
        item = prediction_pb2.FeedbackItem(prediction_id=given)
        for items, told in (([], "no items"), ([item], "item 0: no true class"), ([item] * 1001, "")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.prediction.Feedback(prediction_pb2.FeedbackRequest(items=items))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert told in (caught.value.details() or "")
        with pytest.raises(BadRequest, match="has 1001 items; the limit is 1000"):
            await served.client.feedback([Feedback(given, 0)] * 1001)


async def test_a_folder_that_cannot_be_written_is_unavailable_and_says_the_way_out(
    folders: Folders, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with serving(folders, feedback_dir=tmp_path / "file" / "feedback") as served:
        prediction = await predicted(served)
        request = prediction_pb2.FeedbackRequest(
            items=[prediction_pb2.FeedbackItem(prediction_id=prediction.prediction_id, class_index=0)]
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.prediction.Feedback(request)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "INFERENCE_FEEDBACK_DIR" in (caught.value.details() or "")
        # Not counted, and once there is a folder the same feedback is new.
        (tmp_path / "file").unlink()
        assert (await served.prediction.Feedback(request)).repeats == 0


def feedback_series(served: Served) -> dict[tuple[str, str], float]:
    """(version, correct) -> count"""
    return {
        (sample.labels["version"], sample.labels["correct"]): sample.value
        for metric in served.server.metrics.registry.collect()
        if metric.name == "inference_feedback"
        for sample in metric.samples
    }


async def test_the_series_of_a_version_begin_at_0_so_that_increase_sees_its_first_feedback(folders: Folders) -> None:
    async with serving(folders) as served:
        assert feedback_series(served) == {("1", "true"): 0, ("1", "false"): 0}
        prediction = await predicted(served)
        await served.client.feedback([Feedback(prediction.prediction_id, prediction.label)])
        assert feedback_series(served) == {("1", "true"): 1, ("1", "false"): 0}


async def test_the_series_of_a_version_outlive_it_in_memory_and_go_on_when_it_comes_back(folders: Folders) -> None:
    async with serving(folders) as served:
        prediction = await predicted(served)
        told = Feedback(prediction.prediction_id, prediction.label)
        await served.client.feedback([told])
        model = MODEL
        for _ in range(4):  # beyond INFERENCE_MAX_LOADED
            model = next_version(model)
            publish(folders.registry, model, promote=True)
            await served.client.predict([png()], model="tiny", version=model.version)
        info = {"model": "tiny", "version": "1", "round": "0"}
        info |= {"provider": "CPUExecutionProvider", "precision": "fp32"}
        assert not served.has_series("inference_model_info", **info)
        assert feedback_series(served)["1", "true"] == 1
        await served.client.predict([png()], model="tiny", version=1)
        assert served.has_series("inference_model_info", **info)
        assert feedback_series(served)["1", "true"] == 1


async def test_series_of_feedback_are_bounded_and_those_of_versions_in_memory_stay(folders: Folders) -> None:
    async with serving(folders) as served:
        for version in range(2, FEEDBACK_VERSIONS + 4):
            served.server.metrics.count_feedback("tiny", version, version - 1, correct=version % 2 == 0)
        versions = {version for version, _ in feedback_series(served)}
        assert len(versions) == FEEDBACK_VERSIONS + 1
        assert "1" in versions  # in memory, and never told of
        assert {"2", "3"}.isdisjoint(versions)


async def test_a_million_items_are_counted_before_they_are_looked_at(folders: Folders) -> None:
    class_zero = prediction_pb2.FeedbackItem(class_index=0).SerializeToString()
    items = b"".join([b"\x0a" + bytes([len(class_zero)]) + class_zero] * 1_000_000)
    async with serving(folders) as served:
        started = time.process_time()
        call = served.channel.unary_unary("/querent.v1.PredictionService/Feedback")(items)
        assert "has 1000000 items; the limit is 1000" in await call.details()
        assert time.process_time() - started < 1.0  # making a Python object of each takes twice as long
