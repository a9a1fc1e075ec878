"""Prometheus as Debian packages it: used where it is, installed by root, else the tests that need it are skipped."""

import os
import shutil
import subprocess

import pytest

PACKAGES = ("prometheus", "prometheus-alertmanager")


@pytest.fixture(scope="session")
def debian():
    """Gives a program of the packages by name."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            _install()
            found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not here after installing {' and '.join(PACKAGES)}")
        return found

    return find


def _install() -> None:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        pytest.skip(f"needs the Debian packages {' and '.join(PACKAGES)}; install them, or run the tests as root")
    # RUNLEVEL: the packages' services must not be started by an installation for tests.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run([apt, "-q", *arguments], env=environment, capture_output=True, text=True, timeout=250)
        if done.returncode:
            pytest.skip(f"apt-get {arguments[0]} failed: {done.stderr.strip()[-200:]}")
