import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.trainer.heartbeat import Heartbeat, trouble
from tests.e2e.stack import wait_for


def test_a_beating_worker_is_well_and_one_that_stopped_is_not(tmp_path: Path) -> None:
    file = tmp_path / "run" / "heartbeat"
    assert "has not begun" in trouble(file, 60)
    heartbeat = Heartbeat(file, every_s=0.01)
    heartbeat.start()
    os.utime(file, (0, 0))
    wait_for(lambda: not trouble(file, 60), "another beat")
    heartbeat.stop()
    os.utime(file, (0, 0))
    assert "limit is 60 s" in trouble(file, 60)


def test_a_full_disk_does_not_end_the_beating(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    heartbeat = Heartbeat(folder / "heartbeat", every_s=0.01)
    heartbeat.start()
    (folder / "heartbeat").unlink()
    folder.rmdir()
    folder.mkdir()
    wait_for(lambda: not trouble(folder / "heartbeat", 60), "another beat")
    heartbeat.stop()


@pytest.mark.parametrize(("age", "code"), [("60", 0), ("-1", 1)])
def test_the_check_ends_with_what_a_probe_reads_and_imports_nothing_heavy(tmp_path: Path, age: str, code: int) -> None:
    file = tmp_path / "heartbeat"
    file.touch()
    program = (
        "import sys; from services.trainer.heartbeat import main; code = main();"
        "assert not {'torch', 'celery', 'sqlalchemy', 'pydantic', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, str(file), f"--max-age={age}"]
    assert subprocess.run(command, check=False).returncode == code
