from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tritonclient.grpc.aio import InferenceServerClient

from tests.integration.inference.harness import Served, serving
from tests.integration.inference.open_inference import MODEL
from tests.tiny_models import Folders, publish


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture
async def served(folders: Folders) -> AsyncIterator[Served]:
    """`MODEL`, promoted."""
    publish(folders.registry, MODEL, promote=True)
    async with serving(folders, max_images=16, queue_limit=16, max_batch=8) as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[InferenceServerClient]:
    """Triton's own."""
    async with InferenceServerClient(served.address) as connected:
        yield connected
