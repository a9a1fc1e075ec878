"""The shim declares operators only when torchvision's own import asks for them."""

import importlib
import subprocess
import sys

import pytest

from services.trainer import torchvision_shim


@pytest.mark.slow
def test_torchvision_imports_whatever_build_is_installed():
    program = "from services.trainer.torchvision_shim import torchvision; import timm; print(torchvision.models.vgg16)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "function vgg16" in found.stdout, found.stderr


def test_an_install_that_matches_is_left_alone(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda name: sys)
    declared = list(torchvision_shim._declared)
    assert torchvision_shim.import_torchvision() is sys
    assert torchvision_shim._declared == declared


def test_any_other_failure_is_not_hidden(monkeypatch):
    def fail(name):
        raise RuntimeError("CUDA driver is too old")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="too old"):
        torchvision_shim.import_torchvision()
