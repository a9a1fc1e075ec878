import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import structlog

from services.common.embeddings import EmbeddingStore
from services.common.ids import unpack
from services.common.samples import SampleStore
from services.inference.claims import Backlog, Claim
from tests.tiny_models import make_source


@pytest.fixture
def samples(tmp_path):
    source = make_source(tmp_path / "sources", tmp_path / "data", splits={"pool": 100})
    return SampleStore.open(tmp_path / "sources", tmp_path / "data", source.source_id)


def replica(tmp_path, samples, positions=range(100)):
    """A backlog on a store of its own, as another process would have it."""
    store = EmbeddingStore(tmp_path / "embeddings", "embedding", "source")
    return store, Backlog(store, samples, np.array(positions), 32)


def finish(store, backlog, work):
    store.append(work.ids, np.ones((len(work.ids), 2), np.float32), work.prefix)
    backlog.done(work)


def test_a_claim_excludes_others_until_it_is_given_back(tmp_path):
    first = Claim.attempt(tmp_path / "0.claim")
    assert Claim.attempt(tmp_path / "0.claim") is None
    first.release()
    again = Claim.attempt(tmp_path / "0.claim")
    assert again
    assert not again.abandoned
    again.release()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_is_given_back_and_taken_again_and_again_has_one_owner_at_a_time(tmp_path):
    path, owned = tmp_path / "0.claim", tmp_path / "owned"

    def take_turns(_) -> int:
        turns = 0
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            if claim := Claim.attempt(path):
                owned.touch(exist_ok=False)  # FileExistsError: somebody else owns it too
                owned.unlink()
                claim.release()
                turns += 1
        return turns

    # A lock is its open file's, so that threads exclude each other as processes do.
    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(take_turns, range(4))) > 20
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_a_process_that_was_killed_is_free_and_known_as_abandoned(tmp_path):
    path = tmp_path / "0.claim"
    code = (
        "import sys, time; from pathlib import Path; from services.inference.claims import Claim;"
        "claim = Claim.attempt(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        assert Claim.attempt(path) is None
        owner.kill()
        owner.wait()
        claim = Claim.attempt(path)
    assert claim.abandoned
    claim.release()


def test_two_replicas_share_the_blocks_and_embed_no_sample_twice(tmp_path, samples):
    (one_store, one), (other_store, other) = replica(tmp_path, samples), replica(tmp_path, samples)
    given = []
    while not (one.all_given and other.all_given):
        working = [(s, b, w) for s, b in ((one_store, one), (other_store, other)) if (w := b.claim())]
        for store, backlog, work in working:
            given.extend(unpack(work.ids))
            finish(store, backlog, work)
    assert sorted(given) == sorted(samples.ids("pool"))
    assert list(one_store.folder.glob("*.claim")) == []


def test_blocks_held_by_another_come_when_it_has_given_up(tmp_path, samples):
    (_, one), (_, other) = replica(tmp_path, samples, range(32)), replica(tmp_path, samples, range(32))
    assert len(one.claim().ids) == 32
    assert other.claim() is None
    assert not other.all_given
    one.close()
    assert len(other.claim().ids) == 32
    assert other.all_given
    other.close()


def test_few_samples_of_many_blocks_are_one_work(tmp_path, samples):
    store, backlog = replica(tmp_path, samples, [1, 40, 41, 99])
    work = backlog.claim()
    assert unpack(work.ids) == [samples.ids("pool")[i] for i in (1, 40, 41, 99)]
    finish(store, backlog, work)
    assert backlog.all_given
    _, rest = replica(tmp_path, samples)
    counts = []
    while work := rest.claim():
        counts.append(len(work.ids))
        finish(store, rest, work)
    assert sum(counts) == 96


def test_what_a_killed_writer_left_of_a_block_is_deleted(tmp_path, samples):
    store, backlog = replica(tmp_path, samples, range(32))
    store.folder.mkdir(parents=True)
    (store.folder / "00000000.claim").touch()
    half = store.folder / "00000000-dead.f16.npy"
    half.touch()
    backlog.claim()
    assert not half.exists()
    backlog.close()


def test_samples_of_very_many_blocks_take_few_claims_at_a_time(tmp_path):
    source = make_source(tmp_path / "sources", tmp_path / "data", splits={"pool": 4000})
    samples = SampleStore.open(tmp_path / "sources", tmp_path / "data", source.source_id)
    store = EmbeddingStore(tmp_path / "embeddings", "embedding", "source")
    backlog = Backlog(store, samples, np.arange(0, 4000, 40), 40)
    counts = []
    while work := backlog.claim():
        counts.append(len(work.ids))
        assert len(list(store.folder.glob("*.claim"))) <= 32  # each holds a descriptor
        finish(store, backlog, work)
    assert counts == [32, 32, 32, 4]


def test_a_claim_whose_file_cannot_be_deleted_is_given_back_all_the_same(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    claim = Claim.attempt(tmp_path / "0.claim")
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", refused)
        claim.release()
    again = Claim.attempt(tmp_path / "0.claim")
    assert again
    again.release()


def test_file_systems_without_locks_still_get_their_embeddings_and_one_warning(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with structlog.testing.capture_logs() as logged:
        first, second = Claim.attempt(tmp_path / "0.claim"), Claim.attempt(tmp_path / "0.claim")
    assert first
    # It is another's file that is there, not that of a dead one: nothing of it may be deleted.
    assert not second.abandoned
    assert [line["event"] for line in logged] == ["claims_unavailable"]
    first.release()
    second.release()
