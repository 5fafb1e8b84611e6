"""What a daemon counts."""

from __future__ import annotations

import functools

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from neve.proto.neve.admin.protos import rpc_admin_pb2
from neve.proto.neve.castore.protos import rpc_batch_pb2
from neve.proto.tvix.castore.protos import rpc_blobstore_pb2, rpc_directory_pb2
from neve.proto.tvix.store.protos import rpc_pathinfo_pb2
from neve.rpc.methods import Method
from neve.serving.metrics import Family, Label, Layout, Row, label
from neve.serving.pools import Queued

SERVICES: tuple[ServiceDescriptor, ...] = (
    rpc_blobstore_pb2.DESCRIPTOR.services_by_name["BlobService"],
    rpc_directory_pb2.DESCRIPTOR.services_by_name["DirectoryService"],
    rpc_pathinfo_pb2.DESCRIPTOR.services_by_name["PathInfoService"],
    rpc_batch_pb2.DESCRIPTOR.services_by_name["BatchService"],
    rpc_admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
)
"""By the last part of their names, which is the same under both sets of them."""

METHODS = [(service.name, method.name) for service in SERVICES for method in service.methods]

POOLS = ("work", "ingest", "commit", "fetch")

_CODES = list(grpc.StatusCode)
_CODE_PLACES = {code: place for place, code in enumerate(_CODES)}

_METHOD = Label(("service", "method"), METHODS)

_CALLS = Family(
    "counter", "neve_grpc_requests", "Calls that ended.", _METHOD, label("code", [c.name for c in _CODES])
)
_SECONDS = Family("histogram", "neve_grpc_request_seconds", "How long they took.", _METHOD)
_ACTIVE = Family("gauge", "neve_grpc_active_requests", "Calls that are open.")
_RECEIVED = Family("counter", "neve_grpc_received_bytes", "Bytes of messages received.")
_SENT = Family("counter", "neve_grpc_sent_bytes", "Bytes of messages sent.")
_QUEUED = Family(
    "gauge", "neve_grpc_queued_work", "Pieces of work that wait for a thread.", label("pool", POOLS)
)
_HELD = Family("gauge", "neve_grpc_held_bytes", "Bytes of uploads that wait for a thread, or for the disk.")
_WAITING = Family("gauge", "neve_grpc_waiting_uploads", "Uploads that wait for room to be held.")

LAYOUT = Layout(_CALLS, _SECONDS, _ACTIVE, _RECEIVED, _SENT, _QUEUED, _HELD, _WAITING)


@functools.cache
def _place_of(path: str) -> int:
    service, _, name = path[1:].partition("/")
    return METHODS.index((service.rpartition(".")[2], name))


class Figures:
    """Counts in the row of a process; without one, nothing. Belongs to its event loop."""

    def __init__(self, row: Row | None = None) -> None:
        self._row = row

    @property
    def are_kept(self) -> bool:
        """Whether there is any use in counting."""
        return self._row is not None

    def began(self) -> None:
        """A call has come."""
        if self._row is not None:
            self._row.add(_ACTIVE.start)

    def ended(self, method: Method, code: grpc.StatusCode, seconds: float) -> None:
        """It has come to an end."""
        if self._row is not None:
            place = _place_of(method.path)
            self._row.add(_ACTIVE.start, -1)
            self._row.add(_CALLS.place(place, _CODE_PLACES[code]))
            self._row.observe(_SECONDS.place(place), seconds)

    def failed(self, kind: str) -> None:
        """It failed: one of ``serving.metrics.KINDS``."""
        if self._row is not None:
            self._row.error(kind)

    def received(self, size: int) -> None:
        """A message of so many bytes has come."""
        if self._row is not None:
            self._row.add(_RECEIVED.start, size)

    def sent(self, size: int) -> None:
        """A message of so many bytes goes."""
        if self._row is not None:
            self._row.add(_SENT.start, size)

    def queued(self, pool: str) -> Queued | None:
        """Is told how much waits for the threads of one of ``POOLS``."""
        if self._row is None:
            return None
        row, place = self._row, _QUEUED.place(POOLS.index(pool))
        return lambda count: row.set(place, count)

    def room(self, held: int, waiting: int) -> None:
        """So many bytes of uploads are held, and so many uploads wait until there is room."""
        if self._row is not None:
            self._row.set(_HELD.start, held)
            self._row.set(_WAITING.start, waiting)
