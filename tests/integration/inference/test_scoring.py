"""ScorePool and Embed over a real channel, a real store on disk and real onnxruntime."""

import asyncio
import hashlib
import json
import shutil
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from services.client.messages import Progress
from services.common.embeddings import EmbeddingStore
from services.common.errors import BadRequest, NotFound
from services.common.pb.pool_scoring_pb2 import ScorePoolRequest, ScorePoolResponse
from services.common.pb.pool_scoring_pb2_grpc import PoolScoringServiceStub
from tests.integration.inference.harness import Served, serving
from tests.tiny_models import Folders, TinyModel, TinySource, next_version, png, probabilities, publish


def shards(folders: Folders, embedding_id: str = "tiny-embedding") -> list[tuple[list[str], bytes]]:
    """(ids, digest of the rows) of each whole shard, the earliest sample first."""
    found = []
    for commit in (folders.embeddings_dir / embedding_id).rglob("*.json"):
        ids = np.load(commit.with_suffix(".ids.npy")).astype(str).tolist()
        rows = commit.with_suffix(".f16.npy").read_bytes()
        found.append((ids, hashlib.sha256(rows).digest()))
    return found


def in_storage_order(found: list[tuple[list[str], bytes]], source: TinySource) -> list[tuple[list[str], bytes]]:
    places = {sample: place for place, sample in enumerate(source.encoded)}
    return sorted(found, key=lambda shard: places[shard[0][0]])


def ids_of(found: list[tuple[list[str], bytes]], source: TinySource) -> list[str]:
    return [sample for ids, _ in in_storage_order(found, source) for sample in ids]


def images(served: Served, purpose: str) -> float:
    return served.metric("inference_images_total", model="tiny", version="1", round="0", purpose=purpose)


@pytest.mark.parametrize("kind", ["parquet", "folder"])
async def test_scores_are_those_of_the_model_and_follow_the_order_asked_for(folders: Folders, kind: str) -> None:
    model = TinyModel(members=3)
    publish(folders.registry, model, promote=True)
    source = folders.source(kind=kind)
    ids = source.ids["pool"][::-1]
    async with serving(folders) as served:
        scored = await served.client.score_pool(source.source_id, "least_confidence", sample_ids=ids)
    expected = 1 - probabilities(model, source.images(ids)).max(axis=1)
    assert list(scored.sample_ids) == ids
    np.testing.assert_allclose(scored.scores, expected, atol=2e-3)  # float16 on the way


async def test_cold_and_warm_calls_give_the_same_scores_and_embed_once(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    source = folders.source(splits={"pool": 300, "test": 50})
    async with serving(folders) as served:
        cold = await served.client.score_pool(source.source_id, "margin")
        warm = await served.client.score_pool(source.source_id, "margin")
        assert (images(served, "embed"), images(served, "score")) == (300, 600)
        await served.client.embed(source.source_id, source.ids["test"])
        assert images(served, "embed") == 350
    async with serving(folders) as again:
        restarted = await again.client.score_pool(source.source_id, "margin")
        assert images(again, "embed") == 0
    assert list(cold.sample_ids) == source.ids["pool"]
    assert cold.sample_ids == warm.sample_ids == restarted.sample_ids
    assert cold.scores.tolist() == warm.scores.tolist() == restarted.scores.tolist()


async def test_top_gives_the_highest_scores_first(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    source = folders.source()
    async with serving(folders) as served:
        every = await served.client.score_pool(source.source_id, "entropy")
        top = await served.client.score_pool(source.source_id, "entropy", top=7)
    order = np.argsort(-every.scores, kind="stable")[:7]
    assert list(top.sample_ids) == [every.sample_ids[i] for i in order]
    assert top.scores.tolist() == sorted(top.scores.tolist(), reverse=True)


async def test_many_scores_come_in_several_messages(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.scoring.IDS_IN_A_MESSAGE", 30)
    publish(folders.registry, TinyModel(), promote=True)
    source = folders.source()
    async with serving(folders) as served:
        call = served.pool.ScorePool(ScorePoolRequest(source_id=source.source_id, acquisition="margin"))
        parts = [len(m.scores.sample_ids) for m in [m async for m in call] if m.HasField("scores")]
    assert parts == [30, 30, 30, 10]


async def test_a_new_head_on_shared_embeddings_reads_no_pixels(folders: Folders) -> None:
    model = TinyModel()
    publish(folders.registry, model, promote=True)
    publish(folders.registry, next_version(model))
    source = folders.source()
    async with serving(folders) as served:
        await served.client.score_pool(source.source_id, "margin", version=1)
        shutil.rmtree(folders.data_dir)
        scored = await served.client.score_pool(source.source_id, "margin", version=2)
    expected = probabilities(next_version(model), source.images(source.ids["pool"]))
    top = np.sort(expected, axis=1)
    np.testing.assert_allclose(scored.scores, 1 - (top[:, -1] - top[:, -2]), atol=1e-2)


async def test_embedding_tells_its_progress_and_nothing_to_do_is_fine(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=5), promote=True)
    source = folders.source(splits={"pool": 400})
    told: list[Progress] = []
    async with serving(folders) as served:
        started = time.monotonic()
        await served.client.score_pool(source.source_id, "margin", on_progress=told.append)
        took = time.monotonic() - started
        assert await served.client.embed(source.source_id, []) == "tiny-embedding"
    embed = [p for p in told if p.phase == "embed"]
    assert len(embed) >= took // 0.7
    assert [p.done for p in embed] == sorted(p.done for p in embed)
    assert embed[-1] == Progress("embed", 400, 400)
    assert told[-1] == Progress("score", 400, 400)


async def test_a_cancelled_cold_call_leaves_whole_aligned_shards_and_a_repeat_computes_the_same_bits(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.inference.embedding.SHARD", 64)
    publish(folders.registry, TinyModel(work=3), promote=True)
    source = folders.source(splits={"pool": 500})
    request = ScorePoolRequest(source_id=source.source_id, acquisition="margin")
    async with serving(folders) as served:
        call = served.pool.ScorePool(request)
        await until(lambda: len(shards(folders)) >= 2)
        call.cancel()
        await until(lambda: served.metric("inference_rpcs_total", method=SCORE, code="CANCELLED") == 1)
        embedded = images(served, "embed")
        await asyncio.sleep(0.3)
        left = shards(folders)
        assert images(served, "embed") <= embedded + 2 * 32  # the batches that were running, and no more
        assert images(served, "embed") < 500
    assert all(len(ids) == 64 for ids, _ in left)
    assert ids_of(left, source) == source.ids["pool"][: 64 * len(left)]

    async with serving(folders) as served:
        await served.client.score_pool(source.source_id, "margin")
        assert images(served, "embed") == 500 - 64 * len(left)
    undisturbed = Folders(tmp_path / "undisturbed")
    publish(undisturbed.registry, TinyModel(work=3), promote=True)
    undisturbed.source(splits={"pool": 500})
    async with serving(undisturbed, threads=1) as served:
        await served.client.score_pool(source.source_id, "margin")
    assert in_storage_order(shards(folders), source) == in_storage_order(shards(undisturbed), source)


async def test_two_cold_calls_at_once_embed_each_sample_once(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=2), promote=True)
    source = folders.source(splits={"pool": 200, "test": 50})
    async with serving(folders) as served:
        one, other = await asyncio.gather(
            served.client.score_pool(source.source_id, "margin"),
            served.client.score_pool(source.source_id, "margin", sample_ids=list(source.encoded)),
        )
        assert images(served, "embed") == 250
    assert one.scores.tolist() == other.scores[:200].tolist()


async def test_whole_shards_before_a_broken_sample_are_kept(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.embedding.SHARD", 32)
    publish(folders.registry, TinyModel(), promote=True)
    source = folders.source(replaced={70: b"broken"})
    async with serving(folders) as served:
        with pytest.raises(BadRequest, match=source.ids["pool"][70]):
            await served.client.score_pool(source.source_id, "margin")
    assert ids_of(shards(folders), source) == source.ids["pool"][:64]


async def test_a_damaged_or_deleted_embedding_is_computed_again(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    source = folders.source()
    async with serving(folders) as served:
        before = await served.client.score_pool(source.source_id, "margin")
        shutil.rmtree(folders.embeddings_dir)
        deleted = await served.client.score_pool(source.source_id, "margin")
        assert images(served, "embed") == 200
    for rows in folders.embeddings_dir.rglob("*.f16.npy"):
        rows.write_bytes(rows.read_bytes()[:-8])
    async with serving(folders) as served:
        damaged = await served.client.score_pool(source.source_id, "margin")
        assert images(served, "embed") == 100
    assert before.scores.tolist() == deleted.scores.tolist() == damaged.scores.tolist()


async def test_a_sample_that_a_source_made_anew_no_longer_has_is_not_found(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    before = folders.source()
    async with serving(folders) as served:
        await served.client.score_pool(before.source_id, "margin")
        after = folders.source(splits={"pool": 30})
        gone = next(sample for sample in before.ids["pool"] if sample not in after.encoded)
        for call in (
            served.client.score_pool(after.source_id, "margin", sample_ids=[after.ids["pool"][0], gone]),
            served.client.embed(after.source_id, [gone]),
        ):
            with pytest.raises(NotFound, match=gone):
                await call
        assert len((await served.client.score_pool(after.source_id, "margin")).scores) == 30


async def test_embeddings_of_fine_tuned_versions_are_kept_for_the_last_two(folders: Folders) -> None:
    publish(folders.registry, TinyModel(embedding_id="shared"))
    for version in (2, 3, 4):
        publish(
            folders.registry,
            TinyModel(version=version, embedding_id=f"own-{version}", embedding_shared=False),
        )
    source = folders.source()
    async with serving(folders) as served:
        for version in (1, 2, 3, 4):
            await served.client.score_pool(source.source_id, "margin", model="tiny", version=version)
    assert {p.name for p in folders.embeddings_dir.iterdir()} == {"shared", "own-3", "own-4"}


async def test_embeddings_that_float16_cannot_hold_are_refused(folders: Folders) -> None:
    publish(folders.registry, TinyModel(embedding_shift=70_000.0), promote=True)
    source = folders.source()
    async with serving(folders) as served:
        with pytest.raises(BadRequest, match="float16"):
            await served.client.score_pool(source.source_id, "margin")
    assert shards(folders) == []


async def test_samples_that_are_embedded_do_not_wait_for_others_of_their_source(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=5), promote=True)
    source = folders.source(splits={"pool": 600, "test": 20})
    async with serving(folders) as served, asyncio.timeout(60):
        await served.client.embed(source.source_id, source.ids["test"])
        cold = asyncio.create_task(served.client.score_pool(source.source_id, "margin"))
        await until(lambda: images(served, "embed") >= 20 + 32)
        await served.client.score_pool(source.source_id, "margin", split="test")
        assert images(served, "embed") < 620
        assert len((await cold).scores) == 600


async def test_predict_answers_while_a_pool_is_being_embedded(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=5), promote=True)
    source = folders.source(splits={"pool": 600})
    one = source.images(source.ids["pool"][:1])
    async with serving(folders) as served:
        scoring = asyncio.create_task(served.client.score_pool(source.source_id, "margin"))
        await until(lambda: images(served, "embed") >= 32)
        seconds = []
        while not scoring.done() and len(seconds) < 10:
            started = time.monotonic()
            await served.client.predict(one)
            seconds.append(time.monotonic() - started)
        await scoring
    assert sorted(seconds)[len(seconds) // 2] < 0.5


async def test_progress_is_a_message_of_its_own_and_carries_the_version(folders: Folders) -> None:
    publish(folders.registry, TinyModel(version=1))
    source = folders.source()
    async with serving(folders) as served:
        request = ScorePoolRequest(model="tiny", version=1, source_id=source.source_id, acquisition="margin")
        messages: list[ScorePoolResponse] = [m async for m in served.pool.ScorePool(request)]
    assert {m.version for m in messages} == {1}
    assert [m.WhichOneof("event") for m in messages][-2:] == ["progress", "scores"]


async def test_the_store_is_what_the_trainer_reads(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    source = folders.source()
    async with serving(folders) as served:
        embedding_id = await served.client.embed(source.source_id, source.ids["pool"])
    store = EmbeddingStore(folders.embeddings_dir, embedding_id, source.source_id)
    colour = source.images(source.ids["pool"]).mean(axis=(1, 2)) / 255
    np.testing.assert_allclose(store.read(source.ids["pool"])[:, :3], colour, atol=1e-3)
    commit = next(store.folder.glob("*.json"))
    assert set(json.loads(commit.read_text())) == {"ids", "f16"}


SCORE = "querent.v1.PoolScoringService/ScorePool"


async def until(condition: object, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def test_more_ids_than_the_source_has_samples_are_refused_before_they_are_looked_at(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    source = folders.source(splits={"pool": 30, "test": 10})
    async with serving(folders) as served:
        for ids in ([""] * 1_000_000, [source.ids["pool"][0]] * 41):
            told = f"names {len(ids)} samples; source 'tiny-source' has 40"
            with pytest.raises(BadRequest, match=told):
                await served.client.score_pool(source.source_id, "margin", sample_ids=ids)
            with pytest.raises(BadRequest, match=told):
                await served.client.embed(source.source_id, ids)
        scored = await served.client.score_pool(source.source_id, "margin", sample_ids=source.ids["pool"])
        assert list(scored.sample_ids) == source.ids["pool"]


async def test_a_reader_of_scores_that_never_reads_holds_up_nobody(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    source = folders.source(splits={"pool": 4000, "test": 10})  # an answer of 150 kB: more than a closed window takes
    request = ScorePoolRequest(source_id=source.source_id, acquisition="margin")
    windows = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1000)]
    async with (
        serving(folders, grace_seconds=0.2) as served,
        grpc.aio.insecure_channel(served.address, options=windows) as channel,
    ):
        stuck = [PoolScoringServiceStub(channel).ScorePool(request) for _ in range(20)]
        async with asyncio.timeout(60):
            while images(served, "score") < 20 * 4000:
                await asyncio.sleep(0.02)
        async with asyncio.timeout(10):
            scored = await served.client.score_pool(source.source_id, "margin", top=5)
            assert len(scored.scores) == 5
            assert len((await served.client.predict([png()])).predictions) == 1
        # Only the one that was read has ended.
        method = "querent.v1.PoolScoringService/ScorePool"
        assert served.metric("inference_rpcs_total", method=method, code="OK") == 1
        for call in stuck:
            call.cancel()
