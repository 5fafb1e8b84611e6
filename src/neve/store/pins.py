"""Pins: names for store paths that no collection takes, with all that they refer to.

In the embedded store, a record for each name: the base names of its paths, one a line. ``neve gc`` reads
them in the same transaction in which it drops things.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NotFound, Unsupported
from neve.nix.store_path import StorePath
from neve.packstore.frames import Record
from neve.packstore.store import PackStore, Table, TableTransaction
from neve.store.pathinfos.local import PATH_INFOS
from neve.store.wire import decode_path_name

PINS = Table(7, "pins")

MAX_NAME_BYTES = 200
"""Longest name of a pin; a key of the index has at most 255 bytes with what else is in it."""

MAX_PATHS = 10_000
"""Most paths of one pin: some two megabytes."""

_TAG = 1
_PAGE = 1000


class Pin(NamedTuple):
    """A name, and the paths that it keeps."""

    name: str
    paths: tuple[StorePath, ...]


class Pins:
    """The pins of an embedded store, which the caller keeps open. Thread-safe, durable on return."""

    def __init__(self, packs: PackStore) -> None:
        self._packs = packs

    def add(self, name: str, paths: Iterable[StorePath]) -> Pin:
        """Adds paths to the pin ``name``, which is made if there is none; returns it.

        Raises ``NotFound`` if the store does not have one of them, ``LimitExceeded``.
        """
        key, paths = _key(name), list(dict.fromkeys(paths))
        if not paths:
            raise InvalidRequest("a pin needs a store path")
        # From here on no collection takes them.
        self._packs.promise(PATH_INFOS, [path.digest for path in paths])

        def change(transaction: TableTransaction) -> Pin:
            for path in paths:
                data = transaction.get(PATH_INFOS, path.digest)
                # Two store paths may differ in their names only by a slip.
                if data is None or decode_path_name(data) != path:
                    raise NotFound(f"{path} is not in the store; only what is there can be pinned")
            stored = transaction.get(PINS, key)
            before = () if stored is None else _decode(key, stored).paths
            pin = Pin(name, tuple(dict.fromkeys([*before, *paths])))
            if len(pin.paths) > MAX_PATHS:
                raise LimitExceeded(f"pin {name}: {len(pin.paths)} paths, the limit is {MAX_PATHS}")
            data = "\n".join(path.base_name for path in pin.paths).encode()
            transaction.put(PINS, Record(_TAG, key, data))
            return pin

        return self._packs.update(change)

    def remove(self, name: str) -> None:
        """Raises ``NotFound`` if there is no such pin."""
        key = _key(name)
        if not self._packs.delete_many(PINS, [key]):
            raise NotFound(f"there is no pin {name!r}")

    def list(self) -> Sequence[Pin]:
        """All of them, by name. Raises ``Corrupt`` if one is damaged: what it keeps is not known."""
        pins: list[Pin] = []
        after = b""
        while page := self._packs.page(PINS, after, _PAGE):
            after = page[-1][0]
            pins += [_decode(key, self._packs.read(PINS, key, location)) for key, location in page]
        return pins


def pins_of(packs: PackStore | None) -> Pins:
    """The pins of a store. Raises ``Unsupported`` where there is no embedded one."""
    if packs is None:
        raise Unsupported("only an embedded store (local:///folder) has pins; name the one behind the server")
    return Pins(packs)


def _key(name: str) -> bytes:
    try:
        key = name.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the name {name!r} is no UTF-8: {error}") from error
    if not 1 <= len(key) <= MAX_NAME_BYTES or not name.isprintable() or name != name.strip():
        raise InvalidRequest(
            f"the name {name!r} is no name for a pin: it must have 1 to {MAX_NAME_BYTES} bytes, "
            "all printable, no blanks at its ends"
        )
    return key


def _decode(key: bytes, data: bytes) -> Pin:
    try:
        paths = tuple(StorePath.parse_base_name(line) for line in data.decode().split("\n"))
        return Pin(key.decode(), paths)
    except (UnicodeDecodeError, InvalidRequest) as error:
        raise Corrupt(f"the stored pin {key!r} is invalid: {error}") from error
