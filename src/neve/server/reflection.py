"""Server reflection, which lets generic clients use every service without our ``.proto`` files.

The library has ``v1alpha`` only. ``v1`` is the same in all but the package's name: the messages have the
same bytes, so one servicer answers both, and the descriptor of the second is made from the first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2

# Imported for their descriptors, which whoever asks for the second set of names gets.
from neve.proto.snix.castore.protos import rpc_blobstore_pb2, rpc_directory_pb2
from neve.proto.snix.store.protos import rpc_pathinfo_pb2
from neve.server.calls import Calls, Context

__all__ = ["SERVICE_NAMES", "add_reflection"]

_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_SERVICE = f"{_V1}.ServerReflection"

SERVICE_NAMES = (reflection.SERVICE_NAME, _SERVICE)

_DESCRIBED = (rpc_blobstore_pb2.DESCRIPTOR, rpc_directory_pb2.DESCRIPTOR, rpc_pathinfo_pb2.DESCRIPTOR)


Answers = Callable[
    [AsyncIterator[reflection_pb2.ServerReflectionRequest], Context],
    AsyncIterator[reflection_pb2.ServerReflectionResponse],
]


class _Handlers:
    """The method of the service, by its name in the protocol."""

    def __init__(self, calls: Calls, names: Sequence[str]) -> None:
        self._calls = calls
        servicer: Any = reflection.aio.ReflectionServicer(names)
        self._answers: Answers = servicer.ServerReflectionInfo

    async def ServerReflectionInfo(  # noqa: N802
        self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], context: Context
    ) -> None:
        async for answer in self._answers(requests, context):
            await context.write(answer)
            self._calls.moved(answer.ByteSize())


def add_reflection(server: grpc.aio.Server, calls: Calls, names: Sequence[str]) -> None:
    """Adds both versions; they list the services ``names``, the health service and themselves."""
    handlers = _Handlers(calls, [*names, health.SERVICE_NAME, *SERVICE_NAMES])
    service: Any = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    server.add_generic_rpc_handlers(calls.handler(service, handlers, SERVICE_NAMES, aside=True))


def _describe_v1(pool: descriptor_pool.DescriptorPool) -> None:
    """Adds the descriptor of ``v1`` to ``pool``, unless it has one."""
    try:
        pool.FindServiceByName(_SERVICE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        file.name = "grpc/reflection/v1/reflection.proto"
        file.package = _V1
        file.ClearField("options")  # They are about code in other languages, and say "deprecated".
        for message in file.message_type:
            for field in message.field:
                if field.HasField("type_name"):
                    field.type_name = _renamed(field.type_name)
        for method in file.service[0].method:
            method.input_type, method.output_type = _renamed(method.input_type), _renamed(method.output_type)
        pool.AddSerializedFile(file.SerializeToString())


def _renamed(name: str) -> str:
    return name.replace(f".{_V1ALPHA}.", f".{_V1}.")


_describe_v1(descriptor_pool.Default())
