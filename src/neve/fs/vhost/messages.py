"""The messages of vhost-user, without I/O: bytes in, typed messages out, and replies as bytes.

The reference is QEMU's document ``docs/interop/vhost-user``; names are as there. A message is a head of three
numbers (request, flags, length of what follows) and a payload whose form the request tells. File descriptors
travel beside the first byte. All numbers are in the order of this machine, for both ends are on it.

A front-end is a stranger: the length of a payload, the number of descriptors and every field that has a
range are checked here; ``BadMessage`` says what is wrong.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from neve.errors import InvalidRequest

HEADER_BYTES = 12
MAX_PAYLOAD_BYTES = 4096
"""Far beyond the longest message that is known here (a configuration space, 268 bytes)."""
MAX_REGIONS = 8
"""As many regions (and descriptors) as a memory table may have; the protocol's own number."""
MAX_QUEUE_SIZE = 1024
"""The largest that QEMU makes, a power of two as each size of a queue. It bounds what can be in flight."""
VERSION = 1

_VERSION_MASK, _REPLY, _NEED_REPLY = 0x3, 1 << 2, 1 << 3
_INDEX_MASK, _NO_FILE = 0xFF, 1 << 8

_HEADER = struct.Struct("=III")
_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_ADDRESS = struct.Struct("=IIQQQQ")
_TABLE = struct.Struct("=II")
_REGION = struct.Struct("=QQQQ")
_CONFIG = struct.Struct("=III")


class BadMessage(InvalidRequest):
    """The front-end sent what the protocol does not allow, or what was not offered to it."""


class Feature(enum.IntFlag):
    """Features of the device, those of virtio and of vhost."""

    RING_INDIRECT_DESC = 1 << 28
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


class ProtocolFeature(enum.IntFlag):
    """Features of the protocol between front-end and back-end."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9
    RESET_DEVICE = 1 << 13


class Request(enum.IntEnum):
    """The requests that a device of ours knows. All others belong to features that it does not offer."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34


class Header(NamedTuple):
    """What a message begins with."""

    request: int
    need_reply: bool
    size: int
    """Length of the payload."""


@dataclass(frozen=True)
class Nothing:
    """The payload of a request that says it all."""


@dataclass(frozen=True)
class Number:
    """A 64-bit number: features, mostly."""

    value: int


@dataclass(frozen=True)
class VringState:
    """A ring and a number: its size, its base, whether it is enabled."""

    index: int
    number: int


@dataclass(frozen=True)
class VringAddress:
    """Where the three parts of a ring are, as *user* addresses (of the front-end's process)."""

    index: int
    descriptors: int
    used: int
    available: int


@dataclass(frozen=True)
class VringFile:
    """A ring and whether a descriptor comes with it."""

    index: int
    has_file: bool


@dataclass(frozen=True)
class RegionDescription:
    """A stretch of guest memory: its address for the guest and for the front-end, and where it is in its
    file."""

    guest_address: int
    size: int
    user_address: int
    offset: int


@dataclass(frozen=True)
class MemoryTable:
    """All memory of the guest; a descriptor for each region, in the same order."""

    regions: tuple[RegionDescription, ...]


@dataclass(frozen=True)
class ConfigSpace:
    """A part of the device's configuration space."""

    offset: int
    flags: int
    data: bytes


Payload = Nothing | Number | VringState | VringAddress | VringFile | MemoryTable | ConfigSpace


def parse_header(raw: bytes) -> Header:
    """The head of a message, of ``HEADER_BYTES`` bytes. Raises ``BadMessage``."""
    request, flags, size = _HEADER.unpack(raw)
    if flags & _VERSION_MASK != VERSION:
        raise BadMessage(f"a message of version {flags & _VERSION_MASK}, known is {VERSION}")
    if flags & _REPLY:
        raise BadMessage(f"a reply to {_name(request)}, but nothing was asked")
    if size > MAX_PAYLOAD_BYTES:
        raise BadMessage(f"{_name(request)} with {size} bytes, at most are {MAX_PAYLOAD_BYTES}")
    return Header(request, bool(flags & _NEED_REPLY), size)


def parse_payload(request: int, payload: bytes, descriptors: int) -> Payload:
    """What a request says that came with so many descriptors. Raises ``BadMessage``."""
    parse = _PAYLOADS.get(request)
    if parse is None:
        raise BadMessage(f"{_name(request)} is not supported here")
    parsed, wanted = parse(_Raw(_name(request), payload))
    if descriptors != wanted:
        raise BadMessage(f"{_name(request)} with {descriptors} descriptors instead of {wanted}")
    return parsed


def reply(request: Request, payload: bytes) -> bytes:
    """The reply to a request."""
    return _HEADER.pack(request, VERSION | _REPLY, len(payload)) + payload


def reply_number(request: int, number: int) -> bytes:
    """The reply of a number; also that to a request that wants to know whether it succeeded (0 if so)."""
    return _HEADER.pack(request, VERSION | _REPLY, _U64.size) + _U64.pack(number)


def reply_state(request: Request, state: VringState) -> bytes:
    """The reply of a ring and a number."""
    return reply(request, _STATE.pack(state.index, state.number))


def reply_config(asked: ConfigSpace, data: bytes) -> bytes:
    """The reply to GET_CONFIG; no ``data`` says that there is nothing at that place."""
    payload = _CONFIG.pack(asked.offset, len(data), asked.flags) + data
    return reply(Request.GET_CONFIG, payload)


def _name(request: int) -> str:
    return Request(request).name if request in Request.__members__.values() else f"request {request}"


class _Raw(NamedTuple):
    """A payload, and whose it is."""

    name: str
    payload: bytes

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        """The fields, if the length is right to the byte."""
        if len(self.payload) != form.size:
            raise BadMessage(f"{self.name} with {len(self.payload)} bytes instead of {form.size}")
        return form.unpack(self.payload)


_Parsed = tuple[Payload, int]
"""The payload, and the number of descriptors that belong to it."""


def _nothing(raw: _Raw) -> _Parsed:
    if raw.payload:
        raise BadMessage(f"{raw.name} with {len(raw.payload)} bytes instead of none")
    return Nothing(), 0


def _number(raw: _Raw) -> _Parsed:
    (value,) = raw.unpack(_U64)
    return Number(value), 0


def _state(raw: _Raw) -> _Parsed:
    return VringState(*raw.unpack(_STATE)), 0


def _queue_size(raw: _Raw) -> _Parsed:
    index, size = raw.unpack(_STATE)
    if not 1 <= size <= MAX_QUEUE_SIZE or size & (size - 1):
        raise BadMessage(f"{raw.name}: {size} is no size of a queue")
    return VringState(index, size), 0


def _base(raw: _Raw) -> _Parsed:
    index, base = raw.unpack(_STATE)
    if base > 0xFFFF:
        raise BadMessage(f"{raw.name}: {base} is no index of a split ring")
    return VringState(index, base), 0


def _switch(raw: _Raw) -> _Parsed:
    index, on = raw.unpack(_STATE)
    if on not in (0, 1):
        raise BadMessage(f"{raw.name}: {on} is neither on nor off")
    return VringState(index, on), 0


def _address(raw: _Raw) -> _Parsed:
    index, flags, descriptors, used, available, _log = raw.unpack(_ADDRESS)
    if flags:
        raise BadMessage(f"{raw.name}: flags {flags:#x}, but logging was not offered")
    return VringAddress(index, descriptors, used, available), 0


def _file(raw: _Raw) -> _Parsed:
    (value,) = raw.unpack(_U64)
    if value & ~(_INDEX_MASK | _NO_FILE):
        raise BadMessage(f"{raw.name}: {value:#x} is no index of a ring")
    has_file = not value & _NO_FILE
    return VringFile(value & _INDEX_MASK, has_file), int(has_file)


def _memory_table(raw: _Raw) -> _Parsed:
    if len(raw.payload) < _TABLE.size:
        raise BadMessage(f"{raw.name} with {len(raw.payload)} bytes")
    count, _ = _TABLE.unpack_from(raw.payload)
    if not 1 <= count <= MAX_REGIONS:
        raise BadMessage(f"{raw.name} with {count} regions, at most are {MAX_REGIONS}")
    rest = raw.payload[_TABLE.size :]
    if len(rest) != count * _REGION.size:
        raise BadMessage(f"{raw.name} with {len(rest)} bytes for {count} regions of {_REGION.size}")
    regions = tuple(RegionDescription(*fields) for fields in _REGION.iter_unpack(rest))
    return MemoryTable(regions), count


def _config(raw: _Raw) -> _Parsed:
    if len(raw.payload) < _CONFIG.size:
        raise BadMessage(f"{raw.name} with {len(raw.payload)} bytes")
    offset, size, flags = _CONFIG.unpack_from(raw.payload)
    data = raw.payload[_CONFIG.size :]
    if len(data) != size:
        raise BadMessage(f"{raw.name} for {size} bytes has {len(data)}")
    return ConfigSpace(offset, flags, data), 0


_PAYLOADS: dict[int, Callable[[_Raw], _Parsed]] = {
    Request.GET_FEATURES: _nothing,
    Request.SET_FEATURES: _number,
    Request.SET_OWNER: _nothing,
    Request.RESET_OWNER: _nothing,
    Request.SET_MEM_TABLE: _memory_table,
    Request.SET_VRING_NUM: _queue_size,
    Request.SET_VRING_ADDR: _address,
    Request.SET_VRING_BASE: _base,
    Request.GET_VRING_BASE: _state,
    Request.SET_VRING_KICK: _file,
    Request.SET_VRING_CALL: _file,
    Request.SET_VRING_ERR: _file,
    Request.GET_PROTOCOL_FEATURES: _nothing,
    Request.SET_PROTOCOL_FEATURES: _number,
    Request.GET_QUEUE_NUM: _nothing,
    Request.SET_VRING_ENABLE: _switch,
    Request.GET_CONFIG: _config,
    Request.SET_CONFIG: _config,
    Request.RESET_DEVICE: _nothing,
}
