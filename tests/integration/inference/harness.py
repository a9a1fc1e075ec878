"""A whole inference server inside the test's event loop, on free ports."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.client.aio import AsyncQuerentClient
from services.common.pb import model_registry_pb2_grpc, pool_scoring_pb2_grpc, prediction_pb2_grpc
from services.inference.service import InferenceServer
from services.inference.settings import Settings
from tests.tiny_models import Folders


class Served:
    """A running server, plain stubs for it and our own client."""

    def __init__(self, server: InferenceServer) -> None:
        self.server = server
        self.address = f"127.0.0.1:{server.grpc_port}"
        self.channel = grpc.aio.insecure_channel(
            self.address, options=[("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1)]
        )
        self.prediction = prediction_pb2_grpc.PredictionServiceStub(self.channel)
        self.pool = pool_scoring_pb2_grpc.PoolScoringServiceStub(self.channel)
        self.models = model_registry_pb2_grpc.ModelRegistryServiceStub(self.channel)
        self.client = AsyncQuerentClient(self.address, timeout_s=10)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series; 0 when it is not there."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0

    def has_series(self, name: str, **labels: str) -> bool:
        return self.server.metrics.registry.get_sample_value(name, labels) is not None


def settings(folders: Folders, **changes: object) -> Settings:
    given: dict[str, object] = {
        "registry_dir": folders.registry.root,
        "sources_dir": folders.sources_dir,
        "embeddings_dir": folders.embeddings_dir,
        "feedback_dir": folders.feedback_dir,
        "QUERENT_DATA_DIR": folders.data_dir,
        "grpc_port": 0,
        "metrics_port": 0,
        "poll_seconds": 0.02,
        "grace_seconds": 5,
        "threads": 2,
    }
    return Settings(**{**given, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def serving(folders: Folders, **changes: object) -> AsyncIterator[Served]:
    server = InferenceServer(settings(folders, **changes))
    await server.start()
    served = Served(server)
    try:
        yield served
    finally:
        await served.client.close()
        await served.channel.close()
        await server.stop()
