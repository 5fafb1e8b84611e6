"""The device as the front-end sets it up: features, memory, rings.

The order of things is the front-end's, within these rules (all else ends the connection):

=====================  ==========================================================================
size and base          of a ring that is stopped
addresses              at any time; a running ring goes on there
memory table           at any time; running rings go on in it
kick                   starts a ring, which must have a size, addresses and memory
GET_VRING_BASE         stops it: when it is answered, nothing is in flight
RESET_DEVICE           stops all; what is in flight is forgotten
enable                 from then on requests are taken; without PROTOCOL_FEATURES always
=====================  ==========================================================================

A guest that reboots is a front-end that stops its rings and sets them up anew; the memory stays.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from neve.fs.vhost.events import Event
from neve.fs.vhost.mapping import map_memory
from neve.fs.vhost.memory import GuestMemory
from neve.fs.vhost.messages import (
    BadMessage,
    ConfigSpace,
    Feature,
    Header,
    MemoryTable,
    Number,
    ProtocolFeature,
    Request,
    VringAddress,
    VringFile,
    VringState,
    parse_payload,
    reply_config,
    reply_number,
    reply_state,
)
from neve.fs.vhost.ring import Handler, Ring
from neve.fs.vhost.virtqueue import QueueAddresses

TAG_BYTES = 36
"""Longest name of a file system: ``virtio_fs_config.tag``."""
MAX_REQUEST_QUEUES = 8
"""How many queues of requests a guest may have, beside the one for what is urgent. Linux uses one of them,
newer kernels one for each processor; one thread serves them all."""

DRAIN_SECONDS = 2.0
"""How long requests in flight may take when rings are stopped, all of them one after the other; the whole
guest waits meanwhile."""

_FEATURES = Feature.VERSION_1 | Feature.RING_INDIRECT_DESC | Feature.PROTOCOL_FEATURES
_PROTOCOL_FEATURES = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.RESET_DEVICE
_CONFIG = struct.Struct(f"<{TAG_BYTES}sI")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """What a device is like."""

    tag: bytes | None = None
    """The name of the file system, for a front-end that does not have one itself (QEMU's has)."""
    unsealed_memory: bool = False
    """Whether to take memory that may shrink; this process ends if it does."""


class Device:
    """A device while a front-end is connected. Used by one thread."""

    def __init__(self, handler: Handler, options: DeviceOptions) -> None:
        self._options = options
        unanswered: set[Any] = set()
        self.rings = [Ring(index, handler, unanswered) for index in range(1 + MAX_REQUEST_QUEUES)]
        self._patience = DRAIN_SECONDS
        self._memory: GuestMemory | None = None
        self._features = Feature(0)
        self._protocol = ProtocolFeature(0)
        self._offered = _PROTOCOL_FEATURES
        if options.tag is not None:
            self._offered |= ProtocolFeature.CONFIG

    def handle(self, header: Header, payload: bytes, files: list[int]) -> bytes | None:
        """Does what a message asks for; the reply, if it gets one. ``files`` are the descriptors that came
        with it; those that are still in the list afterwards are the caller's to close.

        Raises ``InvalidRequest``, and the connection is of no use any more.
        """
        parsed = parse_payload(header.request, payload, len(files))
        request = Request(header.request)
        act: Callable[[Device, Request, Any, list[int]], bytes | None] = _ACTIONS[request]
        answer = act(self, request, parsed, files)
        return self.acknowledgement(header, 0) if answer is None else answer

    def acknowledgement(self, header: Header, result: int) -> bytes | None:
        """The reply to a message that has none of its own, if the front-end wants one: 0 for success."""
        if header.need_reply and self._protocol & ProtocolFeature.REPLY_ACK:
            return reply_number(header.request, result)
        return None

    def close(self) -> None:
        """Stops everything at once; the guest's memory is not touched any more."""
        for ring in self.rings:
            ring.drop()
        self._memory = None

    def _get_features(self, request: Request, _payload: object, _files: object) -> bytes:
        return reply_number(request, _FEATURES)

    def _set_features(self, _request: Request, payload: Number, _files: object) -> None:
        self._features = Feature(_subset("features", payload.value, _FEATURES))
        if not self._features & Feature.PROTOCOL_FEATURES:
            self._enable(self.rings)

    def _get_protocol_features(self, request: Request, _payload: object, _files: object) -> bytes:
        return reply_number(request, self._offered)

    def _set_protocol_features(self, _request: Request, payload: Number, _files: object) -> None:
        self._protocol = ProtocolFeature(_subset("protocol features", payload.value, self._offered))

    def _set_owner(self, _request: Request, _payload: object, _files: object) -> None:
        return

    def _reset_owner(self, _request: Request, _payload: object, _files: object) -> None:
        # What it means was never agreed upon; the protocol recommends this.
        for ring in self.rings:
            ring.enabled = False

    def _reset_device(self, _request: Request, _payload: object, _files: object) -> None:
        for ring in self.rings:
            ring.reset()
        self._features = Feature(0)

    def _set_mem_table(self, _request: Request, payload: MemoryTable, files: list[int]) -> None:
        self._memory = map_memory(payload.regions, files, unsealed=self._options.unsealed_memory)
        for ring in self.rings:
            if ring.running:
                ring.start(self._memory)

    def _set_vring_num(self, request: Request, payload: VringState, _files: object) -> None:
        self._stopped_ring(request, payload.index).size = payload.number

    def _set_vring_base(self, request: Request, payload: VringState, _files: object) -> None:
        self._stopped_ring(request, payload.index).base = payload.number

    def _set_vring_addr(self, request: Request, payload: VringAddress, _files: object) -> None:
        ring = self._ring(request, payload.index)
        ring.addresses = QueueAddresses(payload.descriptors, payload.available, payload.used)
        if ring.running and self._memory is not None:
            ring.start(self._memory)

    def _get_vring_base(self, request: Request, payload: VringState, _files: object) -> bytes:
        ring = self._ring(request, payload.index)
        begun = time.monotonic()
        base = ring.stop(self._patience)
        self._patience = max(self._patience - (time.monotonic() - begun), 0)
        return reply_state(request, VringState(payload.index, base))

    def _set_vring_kick(self, request: Request, payload: VringFile, files: list[int]) -> None:
        ring = self._ring(request, payload.index)
        event = _event(files)
        if event is None:
            raise BadMessage(f"{request.name} without a descriptor: rings are not polled here")
        ring.set_kick(event)
        if self._memory is None:
            raise BadMessage(f"{request.name} before there is memory")
        ring.start(self._memory)
        self._patience = DRAIN_SECONDS

    def _set_vring_call(self, request: Request, payload: VringFile, files: list[int]) -> None:
        self._ring(request, payload.index).set_call(_event(files))

    def _set_vring_err(self, request: Request, payload: VringFile, files: list[int]) -> None:
        self._ring(request, payload.index).set_error(_event(files))

    def _set_vring_enable(self, request: Request, payload: VringState, _files: object) -> None:
        ring = self._ring(request, payload.index)
        if payload.number:
            self._enable([ring])
        else:
            ring.enabled = False

    def _get_queue_num(self, request: Request, _payload: object, _files: object) -> bytes:
        return reply_number(request, len(self.rings))

    def _get_config(self, _request: Request, payload: ConfigSpace, _files: object) -> bytes:
        if self._options.tag is None:
            raise BadMessage("GET_CONFIG, which was not offered")
        space = _CONFIG.pack(self._options.tag, MAX_REQUEST_QUEUES)
        size = len(payload.data)
        # A front-end may ask for all of its union of spaces: what is behind ours is zero.
        known = space[payload.offset : payload.offset + size]
        return reply_config(payload, known.ljust(size, b"\0") if payload.offset <= len(space) else b"")

    def _set_config(self, request: Request, _payload: object, _files: object) -> None:
        raise BadMessage(f"{request.name}: nothing of the configuration can be written")

    def _enable(self, rings: Iterable[Ring]) -> None:
        for ring in rings:
            ring.enabled = True
            ring.restless = ring.running

    def _ring(self, request: Request, index: int) -> Ring:
        if index >= len(self.rings):
            raise BadMessage(f"{request.name} for queue {index}, the last one is {len(self.rings) - 1}")
        return self.rings[index]

    def _stopped_ring(self, request: Request, index: int) -> Ring:
        ring = self._ring(request, index)
        if ring.running:
            raise BadMessage(f"{request.name} for queue {index}, which is running")
        return ring


def _subset(what: str, value: int, offered: int) -> int:
    unknown = value & ~int(offered)  # Of a flag, ~ would only be what else is known.
    if unknown:
        raise BadMessage(f"{what} {unknown:#x}, which were not offered")
    return value


def _event(files: list[int]) -> Event | None:
    """The event that came with a message; it owns the descriptor."""
    return Event(files.pop()) if files else None


_ACTIONS: dict[Request, Callable[[Device, Request, Any, list[int]], bytes | None]] = {
    Request.GET_FEATURES: Device._get_features,
    Request.SET_FEATURES: Device._set_features,
    Request.GET_PROTOCOL_FEATURES: Device._get_protocol_features,
    Request.SET_PROTOCOL_FEATURES: Device._set_protocol_features,
    Request.SET_OWNER: Device._set_owner,
    Request.RESET_OWNER: Device._reset_owner,
    Request.RESET_DEVICE: Device._reset_device,
    Request.SET_MEM_TABLE: Device._set_mem_table,
    Request.SET_VRING_NUM: Device._set_vring_num,
    Request.SET_VRING_ADDR: Device._set_vring_addr,
    Request.SET_VRING_BASE: Device._set_vring_base,
    Request.GET_VRING_BASE: Device._get_vring_base,
    Request.SET_VRING_KICK: Device._set_vring_kick,
    Request.SET_VRING_CALL: Device._set_vring_call,
    Request.SET_VRING_ERR: Device._set_vring_err,
    Request.SET_VRING_ENABLE: Device._set_vring_enable,
    Request.GET_QUEUE_NUM: Device._get_queue_num,
    Request.GET_CONFIG: Device._get_config,
    Request.SET_CONFIG: Device._set_config,
}
