"""The methods of a service, from its descriptor: no generated stubs, and any set of names.

``tvix`` and ``snix`` differ in names only, so the messages of the first stand for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

Serializer = Callable[[Any], bytes]
Deserializer = Callable[[bytes], Any]


@dataclass(frozen=True)
class Method:
    """One method: its path on the wire, its messages, and which of them are streams."""

    path: str
    name: str
    request: type[Any]
    response: type[Any]
    client_streaming: bool
    server_streaming: bool

    @cached_property
    def attributes(self) -> dict[str, str]:
        """What spans of its calls tell of it."""
        service, _, name = self.path[1:].partition("/")
        return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


def methods_of(service: ServiceDescriptor, name: str | None = None) -> dict[str, Method]:
    """The methods by name; ``name`` replaces the service's full name in the paths."""
    return {m.name: _method(m, name or service.full_name) for m in service.methods}


def _method(method: MethodDescriptor, service: str) -> Method:
    return Method(
        path=f"/{service}/{method.name}",
        name=method.name,
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
    )


def snix_name(name: str) -> str:
    """The name of a ``tvix`` service in the second set of names."""
    return name.replace("tvix.", "snix.", 1)
