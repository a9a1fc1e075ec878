"""Against a real HTTP server on this machine."""

import socket
import time

import pytest

from services.common.errors import DamagedArtefact, Stopped, Unavailable
from services.trainer.downloads import can_connect, download_verified
from tests.unit.learning.conftest import CONTENT, SHA256, CountingWatch


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8]], ids=["whole hash", "first digits"])
def test_the_right_file_is_kept(url, tmp_path, sha256, watch):
    target = download_verified(url, tmp_path / "new" / "file.pth", sha256, watch=watch)
    assert target.read_bytes() == CONTENT
    assert watch.seen[-1] == ("download", len(CONTENT), len(CONTENT))


def test_a_file_that_is_there_is_not_downloaded_again(url, server, tmp_path):
    for _ in range(2):
        download_verified(url, tmp_path / "file.pth", SHA256)
    assert server.requests == 1


def test_a_damaged_file_is_replaced(url, tmp_path):
    (tmp_path / "file.pth").write_bytes(b"half of it")
    assert download_verified(url, tmp_path / "file.pth", SHA256).read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing_behind(url, tmp_path):
    with pytest.raises(DamagedArtefact, match=f"{SHA256}; expected 00000000"):
        download_verified(url, tmp_path / "file.pth", "00000000")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("path", "message"), [("/missing", "answered 404"), ("/cut", "connection broke after")])
def test_a_download_that_fails_says_how_and_leaves_nothing_behind(url, tmp_path, path, message):
    with pytest.raises(Unavailable, match=message):
        download_verified(url.replace("/file.pth", path), tmp_path / "file.pth", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_ends_the_download(url, tmp_path):
    with pytest.raises(Stopped):
        download_verified(url, tmp_path / "file.pth", SHA256, watch=CountingWatch(stop_at=1))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_is_given_up(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no connection to"):
            download_verified(address, tmp_path / "x", SHA256, connect_timeout_s=0.5)
        assert time.monotonic() - started < 2
        assert can_connect(address, 0.2) is not None


def test_any_answer_means_connected(url):
    assert can_connect(url) is None


def test_the_default_is_to_give_up_after_five_seconds():
    from services.trainer.downloads import CONNECT_TIMEOUT_S

    assert CONNECT_TIMEOUT_S == 5
