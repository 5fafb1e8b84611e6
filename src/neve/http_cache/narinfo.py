"""``/<digest>.narinfo``, to be read: by far the most frequent request.

A rendered narinfo is kept together with the version of the path info it was made from, and given out
only while that is still the version in the store (``PathInfoService.version``): one look-up in a mapped
file. So whoever signs, replaces or deletes a path, in whichever process, needs to tell nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from neve.castore.node import Node
from neve.errors import (
    Corrupt,
    InvalidRequest,
    LimitExceeded,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.http_cache.exchange import Exchange
from neve.http_cache.routes import encoded_node
from neve.http_cache.settings import Settings
from neve.http_cache.statuses import far_errors
from neve.http_cache.threads import Threads
from neve.nix import base32
from neve.nix.hashes import HashAlgorithm, NixHash
from neve.nix.narinfo import NarInfo
from neve.nix.signing import SecretKey
from neve.store.nar_nodes import known_nar
from neve.store.path_info import NarDetails, PathDescription, PathInfo
from neve.store.services import Services
from neve.store.signing import sign_path_info, with_own_nar
from neve.store.wire import encode_node
from neve.telemetry import LOGGER, count

KEPT_BYTES = 64 * 1024 * 1024
"""Rendered narinfos that are kept, in bytes: some 60,000 of them."""

_ENTRY_BYTES = 512
"""What an entry takes beside the text."""


class _Kept:
    """The rendered ones, the least recently used of which go first. Belongs to the event loop."""

    def __init__(self, capacity: int) -> None:
        self._left = capacity
        self._items: OrderedDict[str, tuple[bytes, object, bytes]] = OrderedDict()

    def get(self, name: str) -> tuple[bytes, object, bytes] | None:
        """Digest, version and text."""
        item = self._items.get(name)
        if item is not None:
            self._items.move_to_end(name)
        return item

    def put(self, name: str, digest: bytes, version: object, text: bytes) -> None:
        self.drop(name)
        self._items[name] = (digest, version, text)
        self._left -= len(text) + _ENTRY_BYTES
        while self._left < 0:
            self.drop(next(iter(self._items)))

    def drop(self, name: str) -> None:
        item = self._items.pop(name, None)
        if item is not None:
            self._left += len(item[2]) + _ENTRY_BYTES


class NarInfos:
    """Gives out narinfos. Belongs to the event loop."""

    def __init__(
        self, services: Services, settings: Settings, threads: Threads, *, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._path_infos = services.path_infos
        self._threads = threads
        self._kept = _Kept(kept_bytes)
        self._make = partial(_make, settings.narinfo_compression)
        self._filler = partial(_filled, services, settings, settings.signing_key())

    async def get(self, exchange: Exchange, name: str) -> bytes | None:
        """The narinfo of the path whose digest, in nixbase32, is ``name``. Raises ``InvalidRequest`` if it
        is none, and what the services raise."""
        if not self._path_infos.looks_up_at_once:
            digest = base32.decode(name)
            with exchange.working(), far_errors():
                path_info = await self._threads.ask(self._path_infos.describe, digest)
                return None if path_info is None else await self._text(path_info)
        kept = self._kept.get(name)
        digest = base32.decode(name) if kept is None else kept[0]
        version = self._path_infos.version(digest)
        if kept is not None and kept[1] == version:
            count("narinfos_hit")
            return kept[2]
        count("narinfos_missed")
        self._kept.drop(name)
        if version is None:
            return None
        with exchange.working():
            path_info = await self._threads.work(self._path_infos.describe, digest)
            if path_info is None:
                return None
            text = await self._text(path_info)
        # Made from this version or a later one; if a later one, then it does not match when it is looked at.
        self._kept.put(name, digest, version, text)
        return text

    async def _text(self, path_info: PathInfo | PathDescription) -> bytes:
        if path_info.nar is None:
            path_info = await self._threads.hash(self._filler, path_info)
        return await self._threads.work(self._make, path_info)


def nar_url(node: Node, size: int) -> str:
    """Where the NAR of a tree is: all that is needed to make it is in the address."""
    return f"nar/tvix-castore/{encoded_node(encode_node(node))}?narsize={size}"


def _url(path_info: PathInfo | PathDescription, nar: NarDetails, compression: str) -> str:
    if compression == "none" and isinstance(path_info, PathInfo):
        return nar_url(path_info.node, nar.size)
    suffix = "" if compression == "none" else ".zst"
    digest = base32.encode(path_info.store_path.digest)
    return f"nar/{base32.encode(nar.sha256)}.nar{suffix}?hash={digest}"


def _make(compression: str, path_info: PathInfo | PathDescription) -> bytes:
    nar = path_info.nar
    assert nar is not None
    plain = compression == "none"
    try:
        return (
            NarInfo(
                store_path=path_info.store_path,
                url=_url(path_info, nar, compression),
                compression=compression,
                # What it is when it is compressed is known once it is; it may be left out, and must be right.
                file_hash=NixHash(HashAlgorithm.SHA256, nar.sha256) if plain else None,
                file_size=nar.size if plain else None,
                nar_sha256=nar.sha256,
                nar_size=nar.size,
                references=nar.reference_names,
                deriver=nar.deriver,
                signatures=nar.signatures,
                ca=nar.ca,
            )
            .render()
            .encode()
        )
    except InvalidRequest as error:
        raise Corrupt(f"the path info of {path_info.store_path} makes no narinfo: {error}") from error


def _filled(services: Services, settings: Settings, key: SecretKey | None, path_info: PathInfo) -> PathInfo:
    """``path_info`` with what a narinfo needs, which we compute, and therefore may sign; stored for the
    next time, if that is possible."""
    if known_nar(services.nar_nodes, path_info.node) is None:
        # A small tree can have a NAR of which no one will ever see the end.
        size, limit = services.renderer.size(path_info.node), settings.limits.max_nar_bytes
        if size > limit:
            raise LimitExceeded(f"the NAR has {size} bytes, over the limit of {limit} (max_nar_bytes)")
    filled = with_own_nar(services, path_info)
    if key is not None:
        filled = sign_path_info(filled, key)
    try:
        return services.path_infos.put(filled)
    except (PermissionDenied, Unavailable, Unsupported) as error:
        LOGGER.debug("the narinfo of %s cannot be stored: %s", path_info.store_path, error)
        return filled
