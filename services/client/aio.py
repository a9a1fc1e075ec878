"""The asyncio client of querent.v1: the same calls as `services.client.client`, awaited.

async with AsyncQuerentClient("127.0.0.1:8001") as querent:
    print((await querent.predict(["cat.jpg"])).predictions[0].label)
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from services.client.channel import open_aio_channel
from services.client.messages import (
    DEFAULT_ADDRESS,
    Feedback,
    Image,
    OnProgress,
    PoolScores,
    Predictions,
    error_of,
    feedback_request,
    pool_scores,
    predict_request,
    predictions_of,
    score_pool_request,
    tell,
)
from services.common.access import Access
from services.common.errors import QuerentError, Unavailable
from services.common.pb import (
    model_registry_pb2,
    model_registry_pb2_grpc,
    pool_scoring_pb2,
    pool_scoring_pb2_grpc,
    prediction_pb2_grpc,
)


class AsyncQuerentClient:
    """Make it inside the event loop that uses it; close it, or use it as an async context manager."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        timeout_s: float = 30.0,
        pool_timeout_s: float = 3600.0,
        access: Access = Access(),  # noqa: B008  # frozen
    ) -> None:
        self.address = address
        self.timeout_s = timeout_s
        # For score_pool and embed, which may have to run the network over the whole pool.
        self.pool_timeout_s = pool_timeout_s
        # Here, so that a token file that cannot be read is told before the first call.
        self._metadata = access.bearer().metadata
        self._channel = open_aio_channel(address, access)
        self._prediction = prediction_pb2_grpc.PredictionServiceStub(self._channel)
        self._pool = pool_scoring_pb2_grpc.PoolScoringServiceStub(self._channel)
        self._models = model_registry_pb2_grpc.ModelRegistryServiceStub(self._channel)

    async def predict(
        self,
        images: Sequence[Image] | np.ndarray,
        model: str = "",
        version: int = 0,
        top: int = 0,
        acquisition: str = "",
        with_embedding: bool = False,
        priority: int = 0,
        with_feedback_id: bool = False,
    ) -> Predictions:
        """Classes of images: paths, encoded bytes, or one uint8 array [N, H, W, 3]."""
        # Reading files blocks: in a thread.
        request = await asyncio.to_thread(
            predict_request, images, model, version, top, acquisition, with_embedding, priority, with_feedback_id
        )
        with self._translated():
            return predictions_of(
                await self._prediction.Predict(request, timeout=self.timeout_s, metadata=self._metadata())
            )

    async def feedback(self, items: Iterable[Feedback]) -> int:
        """Tell the true classes of earlier predictions; all are kept or none. Gives how many were new."""
        with self._translated():
            done = await self._prediction.Feedback(
                feedback_request(items), timeout=self.timeout_s, metadata=self._metadata()
            )
        return done.recorded - done.repeats

    async def score_pool(
        self,
        source_id: str,
        acquisition: str,
        model: str = "",
        version: int = 0,
        sample_ids: Sequence[str] = (),
        split: str = "",
        top: int = 0,
        on_progress: OnProgress | None = None,
    ) -> PoolScores:
        """Scores of samples of a source; what has no stored embedding is embedded first."""
        request = score_pool_request(source_id, acquisition, model, version, sample_ids, split, top)
        answered, ids, scores = 0, list[str](), list[float]()
        with self._translated():
            async for response in self._pool.ScorePool(request, timeout=self.pool_timeout_s, metadata=self._metadata()):
                answered = response.version
                if response.HasField("progress"):
                    tell(on_progress, response.progress)
                ids.extend(response.scores.sample_ids)
                scores.extend(response.scores.scores)
        return pool_scores(answered, ids, scores)

    async def embed(
        self,
        source_id: str,
        sample_ids: Sequence[str],
        model: str = "",
        version: int = 0,
        on_progress: OnProgress | None = None,
    ) -> str:
        """Make sure that the samples' embeddings are stored. Gives the embedding id."""
        request = pool_scoring_pb2.EmbedRequest(
            model=model, version=version, source_id=source_id, sample_ids=sample_ids
        )
        embedding_id = ""
        with self._translated():
            async for response in self._pool.Embed(request, timeout=self.pool_timeout_s, metadata=self._metadata()):
                embedding_id = response.embedding_id
                tell(on_progress, response.progress)
        if not embedding_id:
            raise QuerentError(f"{self.address} ended the call without an answer")
        return embedding_id

    async def get_model(self, model: str = "", version: int = 0) -> model_registry_pb2.Model:
        request = model_registry_pb2.GetModelRequest(model=model, version=version)
        with self._translated():
            return await self._models.GetModel(request, timeout=self.timeout_s, metadata=self._metadata())

    async def list_models(self) -> list[model_registry_pb2.Model]:
        with self._translated():
            answer = await self._models.ListModels(
                model_registry_pb2.ListModelsRequest(), timeout=self.timeout_s, metadata=self._metadata()
            )
        return list(answer.models)

    async def watch_model(
        self, model: str = "", timeout_s: float | None = None
    ) -> AsyncIterator[model_registry_pb2.Model]:
        """The model as it is, then again whenever another version answers; every campaign's with model "".

        Goes on until the caller leaves the loop, or for `timeout_s` and then raises DeadlineExpired. Raises NotFound
        when the campaign goes and Unavailable when the replica does: begin again then.
        """
        call = self._models.WatchModel(
            model_registry_pb2.WatchModelRequest(model=model), timeout=timeout_s, metadata=self._metadata()
        )
        try:
            with self._translated():
                async for seen in call:
                    yield seen
        finally:
            call.cancel()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Statuses as our errors; so too what a call ends with when this client is closed under it."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self.address) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the caller's own cancellation
            raise Unavailable(f"the client of {self.address} was closed before the answer came") from error

    async def close(self) -> None:
        """Calls that still run end as Unavailable."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
