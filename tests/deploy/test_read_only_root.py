"""A whole campaign where nothing but the mounts of the containers can be written, and a clean end of everything."""

import os
import time
from pathlib import Path

import pytest

from tests.deploy.manifests import image_environment
from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_campaign_writes_to_its_mounts_alone_and_everything_ends_with_zero(tmp_path: Path) -> None:
    root = tmp_path / "volumes"
    root.mkdir()
    stack = Stack(root)
    temporary, refused = tmp_path / "tmp", tmp_path / "refused"
    temporary.mkdir()
    campaign = stack.start_digits()
    images = {**image_environment("inference"), **image_environment("trainer")}
    # As the images set them, below this test's folder.
    placed = {name: images[name] for name in ("PYTHONDONTWRITEBYTECODE",)}
    placed |= {name: str(temporary) for name in ("HOME", "TMPDIR", "MPLCONFIGDIR")}
    placed |= {name: f"{root}/cache/{name}" for name in ("TORCH_HOME", "HF_HOME")}
    here = Path(__file__).parent / "read_only_root"
    # torch tells its children where it keeps compiled code; a container begins without that.
    stack.environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    stack.environment |= placed | {
        "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]),
        "WRITABLE": os.pathsep.join([str(root), str(temporary)]),
        "REFUSED": str(refused),
        "TRAINER_HEARTBEAT_FILE": str(temporary / "heartbeat"),
    }
    try:
        stack.start_redis()
        inference = stack.start_inference()
        worker = stack.start_worker()
        wait_for((temporary / "heartbeat").exists, "the worker's heartbeat")
        ended = stack.wait_until_at_rest(campaign.name, 400)
        assert ended.state == "finished", ended.reason
        assert not refused.exists(), refused.read_text()
        for process in (worker, inference):
            asked = time.monotonic()
            assert stack.end(process) == 0
            # What `make down` gives each; tests/e2e has busy ones.
            assert time.monotonic() - asked < 10
    finally:
        stack.end_all()
