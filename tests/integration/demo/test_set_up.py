"""The scripts behind the Makefile say clearly what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def find_python(python: str, path: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHON": python, "PATH": path}
    command = ["/bin/bash", str(ROOT / "scripts" / "find_python.sh")]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_the_python_that_is_named_is_taken() -> None:
    answer = find_python(sys.executable, os.environ["PATH"])
    assert answer.stdout.strip() == sys.executable


def test_without_a_fitting_python_the_way_out_is_named(tmp_path: Path) -> None:
    answer = find_python("", str(tmp_path))
    assert answer.returncode == 1
    assert "Python 3.11 or 3.12" in answer.stderr
    assert "PYTHON=" in answer.stderr


def test_a_name_that_only_prints_an_error_is_passed_over(tmp_path: Path) -> None:
    for name in ("python3.11", "python3.12"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'not installed' >&2\nexit 127\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python3").symlink_to(sys.executable)
    assert find_python("", str(tmp_path)).stdout.strip() == str(tmp_path / "python3")


def test_every_target_of_the_makefile_is_explained() -> None:
    answer = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True)
    for target in ("demo", "serve", "test", "check", "protos", "lock", "clean"):
        assert f"make {target} " in answer.stdout


def test_pins_fit_the_ranges_and_name_no_local_build() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line for line in pins)
    assert "torch==2.13.0" in pins
    assert not [line for line in pins if line.startswith(("nvidia-", "triton=="))]
