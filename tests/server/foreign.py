"""A server that is not ours: the standard services alone, written with the library's plain server.

It has no batches and no administration. Tests derive servers from it that misbehave.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from neve.castore.closure import LeavesToRoot
from neve.castore.digest import b3_digest
from neve.castore.directory import Directory
from neve.proto.tvix.castore.protos import castore_pb2, rpc_blobstore_pb2, rpc_directory_pb2
from neve.proto.tvix.store.protos import pathinfo_pb2, rpc_pathinfo_pb2
from neve.rpc.methods import methods_of, snix_name

BLOBS = rpc_blobstore_pb2.DESCRIPTOR.services_by_name["BlobService"]
DIRECTORIES = rpc_directory_pb2.DESCRIPTOR.services_by_name["DirectoryService"]
PATH_INFOS = rpc_pathinfo_pb2.DESCRIPTOR.services_by_name["PathInfoService"]


class ForeignBlobs:
    """Whole blobs in a dict; no chunks, like a small server of somebody else's."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {b3_digest(b""): b""}

    def Stat(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if request.digest not in self.stored:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        return rpc_blobstore_pb2.StatBlobResponse()

    def Read(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        blob = self.stored.get(request.digest)
        if blob is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        for start in range(0, len(blob), 300_000):
            yield rpc_blobstore_pb2.BlobChunk(data=blob[start : start + 300_000])

    def Put(self, requests: Iterator[Any], _: grpc.ServicerContext) -> Any:  # noqa: N802
        blob = b"".join(request.data for request in requests)
        digest = b3_digest(blob)
        self.stored[digest] = blob
        return rpc_blobstore_pb2.PutBlobResponse(digest=digest)


class ForeignDirectories:
    """Directories in a dict."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}

    def Get(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        if not request.recursive and request.digest not in self.stored:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such Directory")
        wanted, seen = [request.digest], {request.digest}
        while wanted:
            encoded = self.stored.get(wanted.pop(0))
            if encoded is None:
                if len(seen) > 1:
                    context.abort(grpc.StatusCode.NOT_FOUND, "a child is missing")
                return
            yield castore_pb2.Directory.FromString(encoded)
            if not request.recursive:
                return
            for child in castore_pb2.Directory.FromString(encoded).directories:
                if child.digest not in seen:
                    seen.add(child.digest)
                    wanted.append(child.digest)

    def Put(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: N802
        closure = LeavesToRoot()
        received = {}
        try:
            for request in requests:
                directory = Directory.decode(request.SerializeToString())
                closure.add(directory)
                received[directory.digest] = directory.encode()
            root = closure.close()
        except Exception as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self.stored |= received
        return rpc_directory_pb2.PutDirectoryResponse(root_digest=root)


class ForeignPathInfos:
    """Path infos in a dict; computes no NAR."""

    def __init__(self) -> None:
        self.stored: dict[bytes, Any] = {}

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if request.by_output_hash not in self.stored:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such path")
        return self.stored[request.by_output_hash]

    def Put(self, request: Any, _: grpc.ServicerContext) -> Any:  # noqa: N802
        from neve.store.wire import path_info_from_message

        self.stored[path_info_from_message(request).digest] = request
        return request

    def CalculateNAR(self, _: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    def List(self, _: Any, __: grpc.ServicerContext) -> Iterator[pathinfo_pb2.PathInfo]:  # noqa: N802
        yield from self.stored.values()


def handlers(service: ServiceDescriptor, implementation: object, name: str) -> grpc.GenericRpcHandler:
    """Handlers of the methods that ``implementation`` has, with the messages of ``tvix``."""
    made = {}
    for method in methods_of(service).values():
        behaviour = getattr(implementation, method.name, None)
        if behaviour is None:
            continue
        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        made[method.name] = make(
            behaviour,
            request_deserializer=method.request.FromString,
            # What is bytes already goes out as it is, for answers that are no messages.
            response_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        )
    return grpc.method_handlers_generic_handler(name, made)


@contextlib.contextmanager
def foreign_server(
    *,
    blobs: object | None = None,
    directories: object | None = None,
    path_infos: object | None = None,
    others: tuple[tuple[ServiceDescriptor, object], ...] = (),
    snix: bool = False,
) -> Iterator[str]:
    """Serves what is given (default: each of the above) on a socket; the address as a store's."""
    services = (
        (BLOBS, blobs or ForeignBlobs()),
        (DIRECTORIES, directories or ForeignDirectories()),
        (PATH_INFOS, path_infos or ForeignPathInfos()),
        *others,
    )
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", 64 << 20)])
    for descriptor, implementation in services:
        name = snix_name(descriptor.full_name) if snix else descriptor.full_name
        server.add_generic_rpc_handlers((handlers(descriptor, implementation, name),))
    with tempfile.TemporaryDirectory(prefix="neve-") as folder:
        server.add_insecure_port(f"unix:{folder}/socket")
        server.start()
        try:
            yield f"grpc+unix://{folder}/socket" + ("?flavor=snix" if snix else "")
        finally:
            server.stop(0.2).wait()
