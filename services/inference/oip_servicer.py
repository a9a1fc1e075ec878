"""The Open Inference Protocol's service: messages to values and back, and nothing else."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from services.common.errors import BadRequest, DamagedArtefact, NotFound, Unavailable, shown
from services.common.pb import open_inference_pb2 as pb
from services.inference.batcher import NORMAL
from services.inference.oip_metadata import Catalogue
from services.inference.oip_tensors import (
    infer_response,
    input_tensor,
    request_id,
    version_number,
    wanted_outputs,
    whole_number,
)
from services.inference.oip_wire import parse
from services.inference.predicting import Predictor
from services.inference.store import ModelStore

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICE_NAME = _SERVICE.full_name
_Context = grpc.aio.ServicerContext[Any, Any]
_Behaviour = Callable[[Any, _Context], Awaitable[Any]]


class OpenInferenceServicer:
    """`ready` says whether this replica is."""

    def __init__(
        self, store: ModelStore, predictor: Predictor, catalogue: Catalogue, ready: Callable[[], bool]
    ) -> None:
        self._store = store
        self._predictor = predictor
        self._catalogue = catalogue
        self._ready = ready

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        """For `add_generic_rpc_handlers`: grpc's generated registration needs stubs in protobuf's default pool."""
        methods = {method.name: self._method(method) for method in _SERVICE.methods}
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def _method(self, method: MethodDescriptor) -> "grpc.RpcMethodHandler[Any, Any]":
        behaviour: _Behaviour = getattr(self, method.name)
        if method.name != "ModelInfer":  # that one parses by itself
            behaviour = _parsing(behaviour, GetMessageClass(method.input_type))
        return grpc.unary_unary_rpc_method_handler(
            behaviour, response_serializer=GetMessageClass(method.output_type).SerializeToString
        )

    # ---- the core ------------------------------------------------------------------------------------

    async def ServerLive(self, _request: pb.ServerLiveRequest, _context: _Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: pb.ServerReadyRequest, _context: _Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, _context: _Context) -> pb.ModelReadyResponse:
        version = version_number(request.version)
        return pb.ModelReadyResponse(ready=self._ready() and await self._answers(request.name, version))

    async def ServerMetadata(self, _request: pb.ServerMetadataRequest, _context: _Context) -> pb.ServerMetadataResponse:
        return self._catalogue.server()

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, _context: _Context) -> pb.ModelMetadataResponse:
        return await self._catalogue.model_metadata(request.name, version_number(request.version))

    async def ModelInfer(self, data: bytes, context: _Context) -> pb.ModelInferResponse:
        request = parse(data)
        message = request.message
        async with self._store.lease(message.model_name, version_number(message.model_version)) as model:
            identity, wanted = request_id(message), wanted_outputs(message, model)
            given = request, model, self._predictor.check_count
            # Typed contents are a Python number for each value, 0.2 s of a request of 10 MB: not on the event loop.
            images = input_tensor(*given) if request.raw else await asyncio.to_thread(input_tensor, *given)
            priority = whole_number(message.parameters, "priority") or NORMAL
            outputs = await self._predictor.infer(model, images, _deadline(message, context), priority)
            return infer_response(model, outputs, wanted, identity)

    # ---- Triton's extensions -------------------------------------------------------------------------

    async def ModelConfig(self, request: pb.ModelConfigRequest, _context: _Context) -> pb.ModelConfigResponse:
        config = await self._catalogue.model_config(request.name, version_number(request.version))
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, _context: _Context
    ) -> pb.ModelStatisticsResponse:
        statistics = await self._catalogue.statistics(request.name, version_number(request.version))
        return pb.ModelStatisticsResponse(model_stats=statistics)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, _context: _Context
    ) -> pb.RepositoryIndexResponse:
        _refuse_options(request.repository_name)
        return pb.RepositoryIndexResponse(models=await self._catalogue.index(request.ready))

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, _context: _Context
    ) -> pb.RepositoryModelLoadResponse:
        _refuse_options(request.repository_name, *request.parameters)
        await self._catalogue.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, _context: _Context
    ) -> pb.RepositoryModelUnloadResponse:
        # Triton's `unload_dependents` says nothing here: no model has any.
        _refuse_options(request.repository_name)
        await self._catalogue.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _answers(self, name: str, version: int) -> bool:
        """Whether ModelInfer would be answered; to know that, a version that is not in memory is loaded."""
        if not version and self._store.answering.get(name):
            return True
        try:
            async with self._store.lease(name, version):
                return True
        except (BadRequest, NotFound, Unavailable, DamagedArtefact):
            return False


def _parsing(behaviour: _Behaviour, request_type: Any) -> _Behaviour:
    """Parsed inside the call, so that bytes which are no message are the caller's error and not an unknown one."""

    async def call(data: bytes, context: _Context) -> Any:
        try:
            request = request_type.FromString(data)
        except DecodeError as error:
            raise BadRequest(f"the message is not a {request_type.DESCRIPTOR.name}") from error
        return await behaviour(request, context)

    return call


def _deadline(message: pb.ModelInferRequest, context: _Context) -> float:
    """On the loop's clock: the call's own, or the end of the parameter `timeout` (microseconds) if that is earlier."""
    remaining = context.time_remaining()
    timeout_us = whole_number(message.parameters, "timeout")
    seconds = min(math.inf if remaining is None else remaining, timeout_us / 1e6 if timeout_us else math.inf)
    return asyncio.get_running_loop().time() + seconds


def _refuse_options(repository: str, *parameters: str) -> None:
    if repository:
        raise BadRequest(f"no repository {shown(repository)}; there is one, leave repository_name empty")
    if parameters:
        raise BadRequest(f"parameter {shown(parameters[0])} is not supported: a model is served as it was published")
