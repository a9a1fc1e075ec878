"""The trainer's pool scorer against a real inference process."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import grpc
import numpy as np
import pytest

from services.common.errors import BadRequest, Forbidden, NotFound, Stopped, Unauthenticated, Unavailable
from services.common.pb import pool_scoring_pb2, pool_scoring_pb2_grpc
from services.trainer import pool_scorer
from services.trainer.doctor import examine
from services.trainer.pool_scorer import GrpcPoolScorer, Version
from services.trainer.settings import Settings
from tests.authorities import Authority
from tests.fakes import RecordingWatch
from tests.tiny_models import Folders, TinyModel, embeddings, probabilities, publish, running_inference

pytestmark = pytest.mark.slow

MODEL = TinyModel(campaign="tiny")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = Folders(tmp_path_factory.mktemp("pool-scorer"))
    publish(folders.registry, MODEL)
    return folders


@pytest.fixture(scope="module")
def source(folders):
    return folders.source(splits={"pool": 300, "test": 20})


@pytest.fixture(scope="module")
def server(folders, source):
    with running_inference(folders) as server:
        yield server


@pytest.fixture
def scorer(server, folders):
    scorer = GrpcPoolScorer(server.address, folders.embeddings_dir, parallelism=2)
    yield scorer
    scorer.close()


@pytest.fixture
def at(source):
    return Version("tiny", 1, source.source_id)


def test_scores_are_aligned_with_the_ids_asked_for(scorer, source, at, monkeypatch):
    monkeypatch.setattr(pool_scorer, "SHARD", 64)  # several shards side by side
    ids = source.ids["pool"][::-1]
    watch = RecordingWatch()
    scores = scorer.score(at, ids, "least_confidence", watch)
    expected = 1 - probabilities(MODEL, source.images(ids)).max(axis=1)
    np.testing.assert_allclose(scores, expected, atol=2e-3)  # embeddings are stored as float16
    assert {"embed", "score"} <= set(watch.phases)


def test_embeddings_of_pool_and_test_come_from_the_shared_store(scorer, source, at):
    ids = [*source.ids["test"], *source.ids["pool"][:7]]
    stored = scorer.embeddings(at, ids, RecordingWatch())
    np.testing.assert_allclose(stored, embeddings(MODEL, source.images(ids)), atol=1e-3)


def test_what_inference_refuses_is_told_with_its_reason(scorer, source, at, monkeypatch):
    monkeypatch.setattr(pool_scorer, "_ATTEMPTS", 1)
    # The trainer asks for published versions only, so one that is not there may come: the campaign waits.
    with pytest.raises(Unavailable, match=r"version 9.*the one mounted there"):
        scorer.score(Version("tiny", 9, source.source_id), source.ids["pool"], "margin", RecordingWatch())
    with pytest.raises(NotFound, match="no sample 'x'"):
        scorer.score(at, ["x"], "margin", RecordingWatch())
    with pytest.raises(BadRequest, match="margn"):
        scorer.score(at, source.ids["pool"], "margn", RecordingWatch())


def test_a_stop_ends_the_call_at_once(scorer, source, at):
    watch = RecordingWatch(end_in="score", error=Stopped("asked to stop"))
    with pytest.raises(Stopped):
        scorer.score(at, source.ids["pool"], "margin", watch)


def test_an_error_in_a_shards_thread_reaches_the_caller(server, folders, source, at):
    scorer = GrpcPoolScorer(server.address, folders.embeddings_dir, parallelism=1)
    scorer.close()
    with pytest.raises(ValueError, match="Channel closed"):
        scorer.score(at, source.ids["pool"], "margin", RecordingWatch())


def test_a_replica_that_is_away_is_tried_again_and_then_named(folders, at, monkeypatch):
    monkeypatch.setattr(pool_scorer, "_ATTEMPTS", 2)
    scorer = GrpcPoolScorer("127.0.0.1:1", folders.embeddings_dir, parallelism=1)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 answered UNAVAILABLE"):
        scorer.score(at, ["a"], "margin", RecordingWatch())
    scorer.close()


class StopsOnce(pool_scoring_pb2_grpc.PoolScoringServiceServicer):
    """Cancels the first call, as a server does that stops under it, and answers the next."""

    def __init__(self):
        self.calls = 0

    def ScorePool(self, request, context):
        self.calls += 1
        if self.calls == 1:
            context.abort(grpc.StatusCode.CANCELLED, "stopping")
        scores = pool_scoring_pb2.Scores(sample_ids=request.sample_ids, scores=[0.5] * len(request.sample_ids))
        yield pool_scoring_pb2.ScorePoolResponse(version=1, scores=scores)


def test_a_shard_that_a_stopping_replica_cancelled_is_tried_again(folders, source, at):
    servicer, server = StopsOnce(), grpc.server(ThreadPoolExecutor(2))
    pool_scoring_pb2_grpc.add_PoolScoringServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    scorer = GrpcPoolScorer(address, folders.embeddings_dir, parallelism=1)
    try:
        assert scorer.score(at, ["a", "b"], "margin", RecordingWatch()).tolist() == [0.5, 0.5]
        assert servicer.calls == 2
    finally:
        scorer.close()
        server.stop(None)


def test_the_scorer_brings_its_certificate_and_an_admin_token(folders, source, at, tmp_path):
    authority = Authority(tmp_path / "authority")
    (cert, key), own = authority.issue(), authority.issue("trainer")
    guarded = {
        "INFERENCE_TLS_CERT_FILE": str(cert),
        "INFERENCE_TLS_KEY_FILE": str(key),
        "INFERENCE_TLS_CLIENT_CA_FILE": str(authority.ca_file),
        "INFERENCE_ADMIN_TOKEN": "may-all",
        "INFERENCE_PREDICT_TOKEN": "may-predict",
    }
    with running_inference(folders, **guarded) as server:
        for token, refused in [("may-all", None), ("may-predict", Forbidden), ("", Unauthenticated)]:
            config = Settings(
                inference_address=server.address,
                inference_ca_file=authority.ca_file,
                inference_cert_file=own[0],
                inference_key_file=own[1],
                inference_token=token,
            )
            scorer = GrpcPoolScorer(server.address, folders.embeddings_dir, 1, config.inference_access)
            with pytest.raises(refused) if refused else nullcontext():
                assert len(scorer.score(at, source.ids["test"], "margin", RecordingWatch())) == 20
            scorer.close()
            finding = next(f for f in examine(config) if f.name == "inference")
            assert (finding.ok, "TRAINER_INFERENCE_TOKEN" in finding.advice) == (not refused, bool(refused))
