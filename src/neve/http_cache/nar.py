"""NARs, to be read: by the node of their tree, or by their hash.

Both kinds of addresses name contents that never change, so an answer may be kept for ever. It is made from
the tree whenever it is asked for; its length is computed, and a range begins where it begins.

By hash, a NAR is known if it was uploaded or computed here (``NarNodes``); so is the file that it was
uploaded as, which is made again in its compression. An address that also names a store path
(``?hash=<nix32 digest>``) is what a narinfo gives of a path whose contents may be somewhere else yet: those
are fetched when such an address is asked for, and not before.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from neve.castore.digest import b3_digest
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.castore.traverse import is_whole
from neve.errors import InvalidRequest, NotFound
from neve.http_cache.bodies import Ahead, Body, NarBody, PackedBody, ZstdBody
from neve.http_cache.exchange import Exchange, query_parameter
from neve.http_cache.negotiation import IDENTITY, ZSTD, chosen_encoding, is_known, is_wanted, range_applies
from neve.http_cache.packing import COMPRESSORS
from neve.http_cache.ranges import Multipart, Range, parse_ranges
from neve.http_cache.routes import parse_nar_name, parse_node
from neve.http_cache.settings import Settings
from neve.http_cache.statuses import Header, Refused, far_errors
from neve.http_cache.threads import Threads, settled
from neve.http_cache.zstd_frames import ZstdFrames
from neve.nix import base32
from neve.nix.compression import SUFFIXES
from neve.store.nar_nodes import known_nar, known_node
from neve.store.path_info import PathDescription, PathInfo
from neve.store.pathinfos.base import check_path_digest
from neve.store.services import Services
from neve.store.wire import encode_node

T = TypeVar("T")

Check = Callable[[Services, Node], bool]
"""``is_here`` or ``is_present``."""

MEDIA_TYPE = b"application/x-nix-nar"

_TYPE: Header = (b"content-type", MEDIA_TYPE)
_PACKED_MEDIA_TYPES = {"zstd": b"application/zstd"}
_PACKED_MEDIA_TYPE = b"application/octet-stream"
_KEEP = b"max-age=31536000, immutable"


class _Nar(NamedTuple):
    """A NAR that can be sent."""

    node: Node
    size: int
    tag: str
    """What tells it from others."""


class Nars:
    """Sends NARs. To be closed when it sends no more."""

    def __init__(self, services: Services, settings: Settings, threads: Threads) -> None:
        self._services = services
        self._threads = threads
        self._ahead = Ahead(settings.limits.max_open_nars)
        self._frames = ZstdFrames(services.blobs)
        self._fetching: dict[bytes, asyncio.Future[PathInfo | None]] = {}
        self._cache_control: Header = (
            b"cache-control",
            (b"private, " if settings.private else b"public, ") + _KEEP,
        )

    def close(self) -> None:
        """Waits for what is being made."""
        self._frames.close()

    async def by_node(self, exchange: Exchange, text: str) -> None:
        """``/nar/tvix-castore/<node>?narsize=N``. Raises ``InvalidRequest``, ``NotFound``."""
        node = parse_node(text)
        given = query_parameter(exchange.query, "narsize")
        nar = await self._look(exchange, self._asked_for, node)
        if given is not None and given != str(nar.size):
            raise InvalidRequest(f"the NAR has {nar.size} bytes, and narsize says something else")
        await self._answer(exchange, nar)

    async def by_hash(self, exchange: Exchange, name: str) -> None:
        """``/nar/<nix32>.nar`` and ``.nar.zst``, and files as they were uploaded. Raises ``NotFound``."""
        parsed = parse_nar_name(name)
        if parsed is None:
            raise NotFound("there is no such NAR")
        nar = None
        # Who asks for the head wants to know whether he has to upload it, which must not be said of a part.
        is_there = is_here if exchange.is_head else is_present
        if parsed.compression in ("none", "zstd"):
            nar = await self._look(exchange, partial(self._known, is_there), parsed.sha256)
            if nar is None:
                found = await self._hinted(exchange, parsed.sha256)
                if isinstance(found, PathDescription):
                    # Whoever asks only whether it is there, does not have it fetched.
                    headers = [] if parsed.compression == "zstd" else [_length(found.nar.size)]
                    await exchange.answer_head(200, [_TYPE, *headers])
                    return
                nar = None if found is None else await self._look(exchange, self._present, found.node)
        if nar is not None:
            await self._answer(exchange, nar, "zstd" if parsed.compression == "zstd" else None)
            return
        # Nix names a file that it has compressed with gzip like one that is not compressed.
        compression = "gzip" if parsed.compression == "none" else parsed.compression
        nar = await self._look(exchange, partial(self._uploaded, is_there), parsed.sha256)
        if nar is None:
            raise NotFound(f"there is no NAR {base32.encode(parsed.sha256)}{SUFFIXES[parsed.compression]}")
        await self._answer(exchange, nar, compression)

    # Which NAR; in threads.

    async def _look(self, exchange: Exchange, function: Callable[..., T], argument: object) -> T:
        with exchange.working():
            return await self._threads.render(function, argument)

    def _asked_for(self, node: Node) -> _Nar:
        """``_present``, of a node that somebody wrote into an address. Raises ``InvalidRequest`` if it says
        another size of a file than that has."""
        if isinstance(node, FileNode) and (reader := self._services.blobs.open_read(node.digest)) is not None:
            with reader:
                size = reader.size
            if size != node.size:
                raise InvalidRequest(
                    f"the file in the address has {size} bytes, and its node says {node.size}"
                )
        return self._present(node)

    def _present(self, node: Node) -> _Nar:
        """Raises ``NotFound`` if the contents are not here, as far as that shows without reading them."""
        if isinstance(node, FileNode) and not self._services.blobs.has(node.digest):
            raise NotFound("the contents of this NAR are not in the store")
        size = self._services.renderer.size(node)
        tag = base64.urlsafe_b64encode(b3_digest(encode_node(node))[:18]).decode()
        return _Nar(node, size, tag)

    def _known(self, is_there: Check, sha256: bytes) -> _Nar | None:
        """The NAR with this hash, if it is known and here. (The hash of a compressed file is none.)"""
        found = known_node(self._services.nar_nodes, sha256)
        if found is None:
            return None
        nar = known_nar(self._services.nar_nodes, found[0])
        return None if nar is None or nar.sha256 != sha256 else self._if_there(is_there, found[0])

    def _uploaded(self, is_there: Check, sha256: bytes) -> _Nar | None:
        """The NAR in the file with this hash, if such a one was uploaded and the NAR is here."""
        found = known_node(self._services.nar_nodes, sha256)
        return None if found is None else self._if_there(is_there, found[0])

    def _if_there(self, is_there: Check, node: Node) -> _Nar | None:
        if not is_there(self._services, node):
            return None
        try:
            return self._present(node)
        except NotFound:
            return None  # Deleted since.

    async def _hinted(self, exchange: Exchange, sha256: bytes) -> PathInfo | PathDescription | None:
        """The store path that the address names too, if that has this NAR; fetches it for GET."""
        hint = query_parameter(exchange.query, "hash")
        if hint is None:
            return None
        digest = check_path_digest(base32.decode(hint))
        with exchange.working(), far_errors():
            if exchange.is_head:
                found = await self._threads.ask(self._services.path_infos.describe, digest)
            else:
                found = await self._fetched(digest)
        return found if found is not None and found.nar is not None and found.nar.sha256 == sha256 else None

    async def _fetched(self, digest: bytes) -> PathInfo | None:
        """The path info, with its contents here. However many ask, they take one thread; who leaves does
        not end it for the others."""
        fetching = self._fetching.get(digest)
        if fetching is None:
            get = self._threads.fetch(self._services.path_infos.get, digest)
            fetching = self._fetching[digest] = asyncio.ensure_future(get)
            fetching.add_done_callback(lambda _: self._fetching.pop(digest))
        return await asyncio.shield(fetching)

    # Answers.

    async def _answer(self, exchange: Exchange, nar: _Nar, packed: str | None = None) -> None:
        """Sends a NAR as the client wants it; ``packed``: as a file in this compression."""
        wanted_range = None if packed else exchange.header(b"range")
        encoding = packed or IDENTITY
        if not packed and wanted_range is None and exchange.scope["http_version"] != "1.0":
            encoding = chosen_encoding(exchange.header(b"accept-encoding"))
        tag = _entity_tag(nar, encoding)
        headers: list[Header] = [
            self._cache_control,
            (b"etag", tag.encode()),
            (b"vary", b"accept-encoding"),
        ]
        if not is_wanted(exchange.header(b"if-match"), tag):
            raise Refused(412, "this is not what If-Match names")
        if is_known(exchange.header(b"if-none-match"), tag):
            await exchange.answer_head(304, headers)
        elif encoding != IDENTITY:
            media_type = _PACKED_MEDIA_TYPES.get(encoding, _PACKED_MEDIA_TYPE) if packed else MEDIA_TYPE
            headers.append((b"content-type", media_type))
            if not packed:
                headers.append((b"content-encoding", encoding.encode()))
            await self._compressed(exchange, nar, encoding, headers)
        else:
            ranges = None
            if exchange.method == "GET" and range_applies(exchange.header(b"if-range"), tag):
                ranges = parse_ranges(wanted_range, nar.size)
            await self._plain(exchange, nar, ranges, [*headers, (b"accept-ranges", b"bytes")])

    async def _compressed(self, exchange: Exchange, nar: _Nar, encoding: str, headers: list[Header]) -> None:
        if exchange.is_head:
            await exchange.answer_head(200, headers)
            return
        body: Body
        if encoding == ZSTD:
            body = ZstdBody(self._services.renderer, nar.node, nar.size, self._ahead, self._frames)
        else:
            body = PackedBody(self._part(nar, 0, nar.size), COMPRESSORS[encoding]())
        await self._stream(exchange, 200, headers, [(b"", body)])

    async def _plain(
        self, exchange: Exchange, nar: _Nar, ranges: list[Range] | None, headers: list[Header]
    ) -> None:
        if ranges is None:
            parts: list[tuple[bytes, Body]] = [(b"", self._part(nar, 0, nar.size))]
            headers += [_TYPE, _length(nar.size)]
            if exchange.is_head:
                await exchange.answer_head(200, headers)
            else:
                await self._stream(exchange, 200, headers, parts)
        elif len(ranges) == 1:
            only = ranges[0]
            parts = [(b"", self._part(nar, *only))]
            headers += [_TYPE, _length(only.stop - only.start), (b"content-range", only.header(nar.size))]
            await self._stream(exchange, 206, headers, parts)
        else:
            several = Multipart(ranges, nar.size, MEDIA_TYPE, secrets.token_hex(16).encode())
            parts = [(head, self._part(nar, *each)) for head, each in zip(several.heads, ranges, strict=True)]
            headers += [several.content_type, _length(several.length)]
            await self._stream(exchange, 206, headers, parts, several.tail)

    def _part(self, nar: _Nar, start: int, stop: int) -> NarBody:
        return NarBody(self._services.renderer, nar.node, start, stop, self._ahead)

    async def _stream(
        self,
        exchange: Exchange,
        status: int,
        headers: Sequence[Header],
        parts: Sequence[tuple[bytes, Body]],
        tail: bytes = b"",
    ) -> None:
        """Sends bodies, each with what stands before it, one after the other."""
        started = False
        for head, body in parts:
            reading = Reading(self._threads, exchange, body)
            try:
                data = await reading.next()
                if not started:
                    # Only now: what is wrong with the NAR mostly shows at its beginning.
                    await exchange.start(status, headers)
                    started = True
                if head:
                    await exchange.send(head, more=True)
                while data:
                    await exchange.send(data, more=True)
                    if not body.is_ahead:
                        await exchange.drained()  # Before anything more is made for a slow client.
                    data = await reading.next()
            finally:
                await reading.close()
        await exchange.send(tail, more=False)


class Reading:
    """A body that is being read: if it reads ahead, the next piece is made while one is being sent."""

    def __init__(self, threads: Threads, exchange: Exchange, body: Body) -> None:
        self._threads = threads
        self._exchange = exchange
        self._body = body
        self._coming: asyncio.Future[bytes] | None = None

    async def next(self) -> bytes:
        """The next piece; empty at the end."""
        coming, self._coming = self._coming or self._threads.ahead(self._body.read), None
        with self._exchange.working():
            data = await settled(coming)
        if data and self._body.is_ahead:
            self._coming = self._threads.ahead(self._body.read)
        return data

    async def close(self) -> None:
        """Waits until nobody is at work on it, and has it let go."""
        if self._coming is not None:
            with contextlib.suppress(Exception):
                await settled(self._coming)
        await self._threads.render(self._body.close)


def is_here(services: Services, node: Node) -> bool:
    """Whether all of a tree is in the store. Reads all its Directories."""
    return is_whole(services.blobs, services.directories, node)


def is_present(services: Services, node: Node) -> bool:
    """Whether the root of a tree is in the store (what is below it came before it)."""
    if isinstance(node, FileNode):
        return services.blobs.has(node.digest)
    return not isinstance(node, DirectoryNode) or services.directories.get(node.digest) is not None


def _entity_tag(nar: _Nar, encoding: str) -> str:
    """Of an encoding. The same NAR need not be compressed to the same bytes the next time."""
    return f'"{nar.tag}"' if encoding == IDENTITY else f'W/"{nar.tag}-{encoding}"'


def _length(size: int) -> Header:
    return b"content-length", b"%d" % size
