"""The Python client of querent.v1.

    with QuerentClient("127.0.0.1:8001") as querent:
        print(querent.predict(["cat.jpg"]).predictions[0].label)

Statuses become the errors of `services.common.errors`; every call has a deadline, except `watch_model`.
"""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from services.client.channel import open_channel
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
from services.common.errors import QuerentError
from services.common.pb import (
    model_registry_pb2,
    model_registry_pb2_grpc,
    pool_scoring_pb2,
    pool_scoring_pb2_grpc,
    prediction_pb2_grpc,
)


class QuerentClient:
    """Blocking calls. Safe to use from several threads; close it, or use it as a context manager.

    An address may be "host:port" or "dns:///name:port"; calls go round robin over what the name stands for.
    """

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
        self._channel = open_channel(address, access)
        self._prediction = prediction_pb2_grpc.PredictionServiceStub(self._channel)
        self._pool = pool_scoring_pb2_grpc.PoolScoringServiceStub(self._channel)
        self._models = model_registry_pb2_grpc.ModelRegistryServiceStub(self._channel)

    def predict(
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
        """Classes of images: paths, encoded bytes, or one uint8 array [N, H, W, 3].

        `priority`: 1 goes before the others, 3 after them; 0 and 2 are normal.
        """
        request = predict_request(images, model, version, top, acquisition, with_embedding, priority, with_feedback_id)
        try:
            return predictions_of(self._prediction.Predict(request, timeout=self.timeout_s, metadata=self._metadata()))
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error

    def feedback(self, items: Iterable[Feedback]) -> int:
        """Tell the true classes of earlier predictions; all are kept or none. Gives how many were new."""
        try:
            done = self._prediction.Feedback(feedback_request(items), timeout=self.timeout_s, metadata=self._metadata())
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error
        return done.recorded - done.repeats

    def score_pool(
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
        try:
            for response in self._pool.ScorePool(request, timeout=self.pool_timeout_s, metadata=self._metadata()):
                answered = response.version
                if response.HasField("progress"):
                    tell(on_progress, response.progress)
                ids.extend(response.scores.sample_ids)
                scores.extend(response.scores.scores)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error
        return pool_scores(answered, ids, scores)

    def embed(
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
        try:
            for response in self._pool.Embed(request, timeout=self.pool_timeout_s, metadata=self._metadata()):
                embedding_id = response.embedding_id
                tell(on_progress, response.progress)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error
        if not embedding_id:
            raise QuerentError(f"{self.address} ended the call without an answer")
        return embedding_id

    def get_model(self, model: str = "", version: int = 0) -> model_registry_pb2.Model:
        request = model_registry_pb2.GetModelRequest(model=model, version=version)
        try:
            return self._models.GetModel(request, timeout=self.timeout_s, metadata=self._metadata())
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error

    def list_models(self) -> list[model_registry_pb2.Model]:
        try:
            answer = self._models.ListModels(
                model_registry_pb2.ListModelsRequest(), timeout=self.timeout_s, metadata=self._metadata()
            )
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error
        return list(answer.models)

    def watch_model(self, model: str = "", timeout_s: float | None = None) -> Iterator[model_registry_pb2.Model]:
        """The model as it is, then again whenever another version answers; every campaign's with model "".

        Goes on until the caller leaves the loop, or for `timeout_s` and then raises DeadlineExpired. Raises NotFound
        when the campaign goes and Unavailable when the replica does: begin again then.
        """
        call = self._models.WatchModel(
            model_registry_pb2.WatchModelRequest(model=model), timeout=timeout_s, metadata=self._metadata()
        )
        try:
            yield from call
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Calls that still run in other threads end as Unavailable."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
