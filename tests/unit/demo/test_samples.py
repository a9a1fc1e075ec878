"""The images that the demo saves are the campaign's own test images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.demo.samples import save_test_images
from services.demo.state import State
from services.trainer.config import SourceConfig
from services.trainer.datasets import ensure_dataset
from services.trainer.sources import make_source


@pytest.fixture
def state_with_digits(tmp_path: Path) -> tuple[State, Path]:
    state, data_dir = State(tmp_path / ".querent"), tmp_path / "data"
    ensure_dataset("digits", None, data_dir, print)
    config = SourceConfig.model_validate({"kind": "digits", "size": 32, "pool": {"split": "train", "limit": 20}})
    source = make_source(config, data_dir, state.sources, lambda phase, done, total: None)
    report = state.reports / "digits-1"
    report.mkdir(parents=True)
    (report / "report.json").write_text(json.dumps({"source_id": source.source_id}))
    return state, data_dir


def test_they_show_different_classes_and_say_which(state_with_digits: tuple[State, Path]) -> None:
    state, data_dir = state_with_digits
    images = save_test_images(state, "digits-1", data_dir, 10)
    assert sorted(image.true_class or "" for image in images) == [str(d) for d in range(10)]
    with Image.open(images[0].path) as first:
        assert first.size == (32, 32)
        assert np.asarray(first).std() > 10


def test_those_of_an_earlier_campaign_go(state_with_digits: tuple[State, Path]) -> None:
    state, data_dir = state_with_digits
    save_test_images(state, "digits-1", data_dir, 10)
    save_test_images(state, "digits-1", data_dir, 3)
    assert len(list(state.samples.iterdir())) == 3
