"""Reflection over two protobuf pools: the default one, and that of the Open Inference Protocol's messages."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import Default, DescriptorPool

from services.common.pb import open_inference_pb2

_Found = TypeVar("_Found")


class BothPools:
    """What grpc_reflection asks a pool for. The protocol's own answers first: the default one may hold another's."""

    def __init__(self) -> None:
        self._pools: tuple[DescriptorPool, ...] = (open_inference_pb2.DESCRIPTOR.pool, Default())

    def FindFileByName(self, name: str) -> FileDescriptor:
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Descriptor:
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> Any:
        return message.file.pool.FindAllExtensions(message)

    def _first(self, find: Callable[[DescriptorPool], _Found]) -> _Found:
        """Raises KeyError when neither knows."""
        own, default = self._pools
        try:
            return find(own)
        except KeyError:
            return find(default)
