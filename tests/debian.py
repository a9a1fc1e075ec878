"""Programs of Debian packages: used where they are, installed by root, else the tests that need them are skipped."""

import os
import shutil
import subprocess

import pytest


def program(name: str, *packages: str, path: str | None = None) -> str:
    """The program's path. `path`: folders to look in, where those of $PATH are not the ones."""
    found = shutil.which(name, path=path)
    if found is None:
        _install(packages)
        found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not here after installing {' and '.join(packages)}")
    return found


def _install(packages: tuple[str, ...]) -> None:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        pytest.skip(f"needs the Debian packages {' and '.join(packages)}; install them, or run the tests as root")
    # RUNLEVEL: the packages' services must not be started by an installation for tests.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run([apt, "-q", *arguments], env=environment, capture_output=True, text=True, timeout=250)
        if done.returncode:
            pytest.skip(f"apt-get {arguments[0]} failed: {done.stderr.strip()[-200:]}")
