import os
from pathlib import Path

import numpy as np
import pytest

from services.trainer.config import CampaignConfig, parse_config
from services.trainer.learning import SilentWatch


@pytest.fixture
def watch() -> SilentWatch:
    return SilentWatch()


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Where the real ImageNet weights lie; they are no part of the repository."""
    beside = Path(__file__).parents[3] / ".." / "shared" / "weights"
    folder = Path(os.environ.get("QUERENT_WEIGHTS_DIR") or beside)
    if not (folder / "vgg16_imagenet_features.safetensors").is_file():
        pytest.skip("the real weights are not here: set QUERENT_WEIGHTS_DIR")
    return folder.resolve()


def campaign(backbone: dict, learner: dict | None = None, size: int = 32) -> CampaignConfig:
    raw = {
        "name": "test",
        "source": {"kind": "digits", "size": size},
        "backbone": backbone,
        "learner": learner or {},
        "initial": {"labels": 10},
        "rounds": {"count": 1, "batch": 10},
    }
    return parse_config(raw, "test")


def noise_images(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
