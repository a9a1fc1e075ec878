"""A replica that ends by SIGTERM and comes back, again and again, under callers who know two addresses."""

import asyncio
import socket
import urllib.request

import pytest

from services.client.aio import AsyncQuerentClient
from services.common.errors import QuerentError
from tests.tiny_models import Folders, RunningInference, TinyModel, png, publish, running_inference

pytestmark = [pytest.mark.slow, pytest.mark.faults]

STOPS = 10
CALLERS = 8


async def test_a_replica_that_ends_again_and_again_loses_no_call(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    lost: list[QuerentError] = []
    answered = 0
    done = asyncio.Event()

    async def caller(client: AsyncQuerentClient) -> None:
        nonlocal answered
        while not done.is_set():
            try:
                await client.predict([png()])
                answered += 1
            except QuerentError as error:
                lost.append(error)

    with running_inference(folders) as staying:
        target = f"ipv4:{staying.address},127.0.0.1:{port}"
        async with AsyncQuerentClient(target, timeout_s=20) as client:
            callers = [asyncio.create_task(caller(client)) for _ in range(CALLERS)]
            for _ in range(STOPS):
                await stop_one(folders, port)
            before = answered
            async with asyncio.timeout(20):
                while answered < before + 50:
                    await asyncio.sleep(0.01)
            done.set()
            await asyncio.gather(*callers)
    assert lost == []


async def stop_one(folders: Folders, port: str) -> None:
    """Start a replica, wait until the callers use it, and end it."""
    running = running_inference(folders, INFERENCE_GRPC_PORT=port, INFERENCE_LAME_DUCK_SECONDS="0.5")
    server = await asyncio.to_thread(running.__enter__)
    try:
        async with asyncio.timeout(30):
            while await asyncio.to_thread(images_of, server) < 20:
                await asyncio.sleep(0.05)
        server.process.terminate()
        assert await asyncio.to_thread(server.process.wait, 20) == 0
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)


def images_of(server: RunningInference) -> float:
    """How many images it has predicted."""
    page = urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith("inference_images_total{")
    )
