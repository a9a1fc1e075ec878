from pathlib import Path

import pytest

from services.trainer.settings import Settings
from tests.faults.swapping import Versions, demo_versions, tiny_versions
from tests.tiny_models import Folders, TinyModel

SWAPS = 20


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture(scope="module", params=["tiny", "demo"])
def versions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """SWAPS + 1 of them: tiny networks with 14 MB of weights, and the demo's where its images are."""
    folders = Folders(tmp_path_factory.mktemp(request.param))
    if request.param == "tiny":
        return tiny_versions(folders, SWAPS + 1, TinyModel(work=2, ballast=14))
    if not (Settings().data_dir / "cifar10").is_dir():
        pytest.skip("CIFAR-10 is not here: set QUERENT_DATA_DIR")
    return demo_versions(folders, SWAPS + 1)
