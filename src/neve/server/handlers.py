"""Which services answer on which address."""

from __future__ import annotations

import grpc

from neve.proto.neve.admin.protos import rpc_admin_pb2
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2, rpc_directory_pb2
from neve.proto.tvix.store.protos import rpc_pathinfo_pb2
from neve.rpc.methods import snix_name
from neve.server.admin import AdminHandlers, NoAdministration
from neve.server.batches import BatchHandlers
from neve.server.blobs import BlobHandlers
from neve.server.calls import Calls
from neve.server.directories import DirectoryHandlers
from neve.server.pathinfos import PathInfoHandlers
from neve.store.services import Services

_ADMIN = rpc_admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
ADMIN_NAME: str = _ADMIN.full_name


class ServiceHandlers:
    """The handlers of all services over one store."""

    def __init__(self, services: Services, calls: Calls, *, read_only: bool = False) -> None:
        self._calls = calls
        self._standard = (
            (
                rpc_blobstore_pb2.DESCRIPTOR.services_by_name["BlobService"],
                BlobHandlers(services.blobs, calls, read_only=read_only),
            ),
            (
                rpc_directory_pb2.DESCRIPTOR.services_by_name["DirectoryService"],
                DirectoryHandlers(services.directories, calls, read_only=read_only),
            ),
            (
                rpc_pathinfo_pb2.DESCRIPTOR.services_by_name["PathInfoService"],
                PathInfoHandlers(services, calls, read_only=read_only),
            ),
        )
        self._batches = BatchHandlers(services, calls, read_only=read_only)
        self._admin = AdminHandlers(services, calls, read_only=read_only)

    def register(self, server: grpc.aio.Server, *, admin: bool) -> list[str]:
        """Adds the handlers to a server; returns the names of the services, for health and reflection."""
        names: list[str] = []
        for descriptor, implementation in self._standard:
            both = (descriptor.full_name, snix_name(descriptor.full_name))
            server.add_generic_rpc_handlers(self._calls.handler(descriptor, implementation, both))
            names += both
        for descriptor, handlers in (
            (rpc_batch_pb2.DESCRIPTOR.services_by_name["BatchService"], self._batches),
            (_ADMIN, self._admin if admin else NoAdministration()),
        ):
            server.add_generic_rpc_handlers(self._calls.handler(descriptor, handlers))
            names.append(descriptor.full_name)
        return names
