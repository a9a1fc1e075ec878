import errno
import os
import threading
from pathlib import Path

import pytest

from services.common.errors import Unavailable
from services.common.feedback import Feedback, journals, read_journal
from services.inference.journal import Journal


def entry(number: int) -> Feedback:
    return Feedback(f"id-{number}", "pets", 3, 2, "", "cat", "dog", "", 1.0, 2.0)


def everything(folder: Path) -> list[str]:
    return [e.prediction_id for path in journals([folder]) for e in read_journal(path)]


def test_entries_are_in_the_file_before_it_is_made_durable_and_durable_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    fsync = os.fsync

    def spying_fsync(handle: int) -> None:
        seen.append(everything(tmp_path))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spying_fsync)
    journal = Journal(tmp_path)
    journal.append([entry(1), entry(2)])
    # First the folder, so that the new file's name survives, then what was written.
    assert seen == [[], ["id-1", "id-2"]]
    journal.append([entry(3)])
    assert seen[-1] == ["id-1", "id-2", "id-3"]
    journal.close()


def test_nothing_is_made_on_disk_before_the_first_entry(tmp_path: Path) -> None:
    Journal(tmp_path / "feedback").close()
    assert not (tmp_path / "feedback").exists()


def test_a_full_file_is_followed_by_another(tmp_path: Path) -> None:
    journal = Journal(tmp_path, rotate_bytes=300)
    for number in range(6):
        journal.append([entry(number)])
    journal.close()
    assert len(journals([tmp_path])) == 3
    assert everything(tmp_path) == [f"id-{n}" for n in range(6)]


def test_two_journals_in_one_folder_never_share_a_file(tmp_path: Path) -> None:
    one = Journal(tmp_path)
    one.append([entry(1)])
    other = Journal(tmp_path)
    other.append([entry(2)])
    assert len(journals([tmp_path])) == 2


def test_a_disk_that_fills_up_keeps_nothing_of_the_request_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.append([entry(1)])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match=r"No space left on device.*INFERENCE_FEEDBACK_DIR"):
            journal.append([entry(2)])
    journal.append([entry(3)])
    journal.close()
    assert everything(tmp_path) == ["id-1", "id-3"]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    threads = [
        threading.Thread(target=journal.append, args=([entry(10 * t + i) for i in range(10)],)) for t in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert sorted(everything(tmp_path)) == sorted(f"id-{n}" for n in range(80))
