"""Reflection, with a client that knows nothing but reflection: none of our messages, no stubs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from blake3 import blake3
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from neve.testing.servers import RunningDaemon, running_daemon

VERSIONS = ("v1", "v1alpha")

SERVICES = {
    "tvix.castore.v1.BlobService",
    "tvix.castore.v1.DirectoryService",
    "tvix.store.v1.PathInfoService",
    "snix.castore.v1.BlobService",
    "snix.castore.v1.DirectoryService",
    "snix.store.v1.PathInfoService",
    "neve.castore.v1.BatchService",
    "neve.admin.v1.AdminService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}

Field = descriptor_pb2.FieldDescriptorProto


def reflection_messages() -> tuple[type[Any], type[Any]]:
    """Request and response of reflection, as far as a client needs them, from the published protocol."""
    file = descriptor_pb2.FileDescriptorProto(name="client.proto", package="client", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str | None, bool]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind, type_name, repeated in fields:
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            full_name = f".client.{type_name}" if type_name else None
            made.field.add(name=field, number=number, type=kind, type_name=full_name, label=label)

    text, data, nested, number = Field.TYPE_STRING, Field.TYPE_BYTES, Field.TYPE_MESSAGE, Field.TYPE_INT32
    message("Service", ("name", 1, text, None, False))
    message("Services", ("service", 1, nested, "Service", True))
    message("Files", ("file_descriptor_proto", 1, data, None, True))
    message("Error", ("error_code", 1, number, None, False), ("error_message", 2, text, None, False))
    message(
        "Request",
        ("file_by_filename", 3, text, None, False),
        ("file_containing_symbol", 4, text, None, False),
        ("list_services", 7, text, None, False),
    )
    message(
        "Response",
        ("file_descriptor_response", 4, nested, "Files", False),
        ("list_services_response", 6, nested, "Services", False),
        ("error_response", 7, nested, "Error", False),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    request, response = (pool.FindMessageTypeByName(f"client.{name}") for name in ("Request", "Response"))
    return message_factory.GetMessageClass(request), message_factory.GetMessageClass(response)


class GenericClient:
    """Calls any method of a server that describes itself."""

    def __init__(self, channel: grpc.Channel, version: str) -> None:
        self._channel = channel
        self._pool = descriptor_pool.DescriptorPool()
        self._known: set[str] = set()
        self._request, response = reflection_messages()
        self._info: Any = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=self._request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def ask(self, **question: str) -> Any:
        (answer,) = self._info(iter([self._request(**question)]), timeout=20)
        return answer

    def services(self) -> list[str]:
        return [one.name for one in self.ask(list_services="*").list_services_response.service]

    def methods(self, service: str) -> Mapping[str, MethodDescriptor]:
        answer = self.ask(file_containing_symbol=service)
        assert not answer.error_response.error_code, answer
        files = {}
        for encoded in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(encoded)
            files[file.name] = file
        while files:
            ready = [f for f in files.values() if all(name not in files for name in f.dependency)]
            assert ready
            for file in ready:
                del files[file.name]
                if file.name not in self._known:
                    self._known.add(file.name)
                    self._pool.AddSerializedFile(file.SerializeToString())
        return self._pool.FindServiceByName(service).methods_by_name

    def call(self, service: str, name: str, *requests: dict[str, Any]) -> Any:
        """The answer to requests given as plain values; a list if they are a stream."""
        method = self.methods(service)[name]
        make: Any = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
            (True, True): self._channel.stream_stream,
        }[method.client_streaming, method.server_streaming]
        request = message_factory.GetMessageClass(method.input_type)
        stub = make(
            f"/{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        made = [request(**values) for values in requests]
        answer = stub(iter(made) if method.client_streaming else made[0], timeout=20)
        return list(answer) if method.server_streaming else answer


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon("memory://", folder=tmp_path) as daemon:
        yield daemon


@pytest.fixture(params=VERSIONS)
def client(request: pytest.FixtureRequest, daemon: RunningDaemon) -> Iterator[GenericClient]:
    with daemon.channel() as channel:
        yield GenericClient(channel, request.param)


def test_all_services_are_listed(daemon: RunningDaemon, client: GenericClient) -> None:
    assert sorted(client.services()) == sorted(SERVICES)
    with daemon.channel(admin=True) as channel:
        for version in VERSIONS:
            assert sorted(GenericClient(channel, version).services()) == sorted(SERVICES)


def test_all_services_are_described(client: GenericClient) -> None:
    for service in SERVICES:
        assert client.methods(service)
    standard = {"Get", "Put", "CalculateNAR", "List"}
    for name in ("tvix", "snix"):
        assert set(client.methods(f"{name}.store.v1.PathInfoService")) == standard
    described = client.methods("grpc.reflection.v1.ServerReflection")["ServerReflectionInfo"]
    assert described.input_type.full_name == "grpc.reflection.v1.ServerReflectionRequest"
    assert described.output_type.file.package == "grpc.reflection.v1"


def test_files_and_what_is_not_there(client: GenericClient) -> None:
    for name in ("tvix/store/protos/pathinfo.proto", "grpc/reflection/v1/reflection.proto"):
        answer = client.ask(file_by_filename=name)
        encoded = answer.file_descriptor_response.file_descriptor_proto
        assert name in {descriptor_pb2.FileDescriptorProto.FromString(file).name for file in encoded}
    for question in ({"file_by_filename": "x.proto"}, {"file_containing_symbol": "no.Such"}):
        assert client.ask(**question).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_health_of_every_service(client: GenericClient) -> None:
    administration = "neve.admin.v1.AdminService"
    for service in ("", *SERVICES - {administration}):
        answer = client.call("grpc.health.v1.Health", "Check", {"service": service})
        assert answer.status == 1  # SERVING
    # It is there, but does not serve anybody on this address.
    with pytest.raises(grpc.RpcError) as failure:
        client.call("grpc.health.v1.Health", "Check", {"service": administration})
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("names", ["tvix", "snix"])
def test_the_tour(client: GenericClient, names: str) -> None:
    """A blob, a folder around it, a store path around that: in, and out again."""
    castore, store = f"{names}.castore.v1", f"{names}.store.v1"
    node = "node" if names == "tvix" else "entry"
    contents = b"contents of a file"
    digest = blake3(contents).digest()

    put = client.call(f"{castore}.BlobService", "Put", {"data": contents[:5]}, {"data": contents[5:]})
    assert put.digest == digest
    pieces = client.call(f"{castore}.BlobService", "Read", {"digest": digest})
    assert b"".join(piece.data for piece in pieces) == contents

    directory = {
        "files": [{"name": b"file", "digest": digest, "size": len(contents)}],
        "symlinks": [{"name": b"link", "target": b"file"}],
    }
    root = client.call(f"{castore}.DirectoryService", "Put", directory).root_digest
    (found,) = client.call(f"{castore}.DirectoryService", "Get", {"digest": root})
    assert blake3(found.SerializeToString(deterministic=True)).digest() == root
    assert found.symlinks[0].target == b"file"

    tree = {"directory": {"digest": root, "size": 2}}
    nar = client.call(f"{store}.PathInfoService", "CalculateNAR", tree)
    name = b"0" * 32 + b"-name"
    path_info = {
        node: {"directory": {**tree["directory"], "name": name}},
        "narinfo": {"nar_size": nar.nar_size, "nar_sha256": nar.nar_sha256},
    }
    stored = client.call(f"{store}.PathInfoService", "Put", path_info)
    assert getattr(stored, node).directory.name == name
    assert client.call(f"{store}.PathInfoService", "Get", {"by_output_hash": bytes(20)}) == stored
    assert client.call(f"{store}.PathInfoService", "List", {}) == [stored]


def test_the_librarys_own_client(daemon: RunningDaemon) -> None:
    with daemon.channel() as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert sorted(database.get_services()) == sorted(SERVICES)
        pool = descriptor_pool.DescriptorPool(database)
        service = pool.FindServiceByName("snix.castore.v1.BlobService")
        assert set(service.methods_by_name) == {"Stat", "Read", "Put"}
