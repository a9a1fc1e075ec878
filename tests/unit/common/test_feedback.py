from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.common.errors import NotFound
from services.common.feedback import Feedback, journals, read_journal, to_line

ENTRY = Feedback("id", "pets", 3, 2, "0" * 32, "cat", "dög\n", "ann", 1.5, 2.25)


def test_a_journal_reads_back_as_it_was_written(tmp_path: Path) -> None:
    other = replace(ENTRY, label="cat", sample_id="")
    (tmp_path / "a.jsonl").write_bytes(to_line(ENTRY) + to_line(other))
    assert list(read_journal(tmp_path / "a.jsonl")) == [ENTRY, other]
    assert (ENTRY.correct, other.correct) == (False, True)


@pytest.mark.parametrize("kept_bytes", [1, 20, len(to_line(ENTRY)) - 1])
def test_a_torn_last_line_is_skipped_with_a_warning(tmp_path: Path, kept_bytes: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(to_line(ENTRY) + to_line(ENTRY)[:kept_bytes].rstrip(b"}\n"))
    with capture_logs() as logs:
        assert list(read_journal(tmp_path / "a.jsonl")) == [ENTRY]
    assert [(log["event"], log["line"]) for log in logs] == [("feedback_line_skipped", 2)]
    assert "torn" in logs[0]["why"]


@pytest.mark.parametrize(
    "damaged",
    [
        to_line(ENTRY).replace(b'"version":3', b'"version":4'),
        b"[]\n",
        b"17\n",
        b"\xff\xfe\n",
        b'{"crc":"00000000"}\n',
        to_line(ENTRY).replace(b'"crc"', b'"cRc"'),
    ],
)
def test_a_damaged_line_is_skipped_and_those_around_it_are_read(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(to_line(ENTRY) + damaged + to_line(ENTRY))
    with capture_logs() as logs:
        assert list(read_journal(tmp_path / "a.jsonl")) == [ENTRY, ENTRY]
    assert "checksum" in logs[0]["why"]


def test_a_folder_stands_for_its_journals_and_each_file_is_named_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    found = journals([tmp_path, tmp_path / "b.jsonl"])
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(NotFound, match=r"nowhere\.jsonl"):
        journals([tmp_path / "nowhere.jsonl"])
