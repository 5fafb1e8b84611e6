"""Binary caches to test with, honest or not, and services that substitute from them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from neve.errors import NeveError
from neve.nix import base32
from neve.nix.compression import SUFFIXES
from neve.nix.hashes import HashAlgorithm, NixHash
from neve.nix.narinfo import NarInfo
from neve.nix.signing import PublicKey, SecretKey
from neve.nix.store_path import StorePath
from neve.store.pathinfos.context import PathInfoContext
from neve.store.pathinfos.nix_cache import NixCachePathInfoService
from neve.store.services import Services
from neve.store.substitute.credentials import Credentials, no_credentials
from neve.store.substitute.files import InvalidAnswer
from neve.store.substitute.http import HttpCache, HttpOptions
from neve.testing.pathinfos import store_path
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File, Symlink
from tests.logged import logged
from tests.nix.compressing import COMPRESSORS
from tests.store.helpers import encoded, everything, leaving_nothing_open
from tests.store.substitute.server import Server

KEY = SecretKey("cache.example-1", bytes(range(32)))
OTHER_KEY = SecretKey("other.example-1", bytes(32))
CACHE_INFO = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"


def events(name: str, size: int = 200_000) -> list[Event]:
    """A small tree, as different from others as its name."""
    contents = hashlib.shake_128(name.encode()).digest(size)
    return [
        EnterDirectory(b""),
        EnterDirectory(b"bin"),
        File(b"tool", True, b"#!/bin/sh\n" + name.encode()),
        LEAVE_DIRECTORY,
        File(b"data", False, contents),
        Symlink(b"link", b"bin/tool"),
        LEAVE_DIRECTORY,
    ]


def sha256(data: bytes) -> NixHash:
    return NixHash(HashAlgorithm.SHA256, hashlib.sha256(data).digest())


def narinfo_name(path: StorePath) -> str:
    return f"{base32.encode(path.digest)}.narinfo"


@dataclass
class Cache:
    """The files of a cache, by name."""

    files: dict[str, bytes] = field(default_factory=lambda: {"nix-cache-info": CACHE_INFO})

    def add(
        self,
        name: str,
        *,
        nar: bytes | None = None,
        compression: str = "none",
        says: str | None = None,
        sign: Sequence[SecretKey] = (KEY,),
        **changes: Any,
    ) -> NarInfo:
        """Adds a path; ``changes`` are fields of its narinfo that are not as they should be, ``says`` is the
        compression that it names."""
        nar = encoded(events(name)) if nar is None else nar
        file = COMPRESSORS[compression](nar)
        narinfo = NarInfo(
            store_path=store_path(name),
            url=f"nar/{base32.encode(sha256(file).digest)}.nar{SUFFIXES[compression]}",
            compression=says or compression,
            file_hash=sha256(file),
            file_size=len(file),
            nar_sha256=sha256(nar).digest,
            nar_size=len(nar),
            references=(store_path("dependency"), store_path(name)),
        )
        self.files[narinfo.url] = file
        narinfo = replace(narinfo, **changes)
        signatures = tuple(key.sign(narinfo.fingerprint()) for key in sign)
        narinfo = replace(narinfo, signatures=signatures)
        self.files[narinfo_name(narinfo.store_path)] = narinfo.render().encode()
        return narinfo

    def edit(self, narinfo: NarInfo, old: str, new: str) -> None:
        """Changes the text of a narinfo."""
        name = narinfo_name(narinfo.store_path)
        text = self.files[name].decode()
        assert old in text
        self.files[name] = text.replace(old, new, 1).encode()


def context_of(services: Services) -> PathInfoContext:
    return PathInfoContext(services.blobs, services.directories, services.nar_nodes, services.size_rule)


def http_cache(
    url: str,
    services: Services,
    *,
    keys: Sequence[PublicKey] = (),
    credentials: Credentials = no_credentials,
    **options: Any,
) -> NixCachePathInfoService:
    """A service over a server, which is given no time between attempts."""
    chosen = HttpOptions(**{"backoff": 0.001, "timeout": 60, "attempts": 3, **options})
    files = HttpCache(url, credentials=credentials, options=chosen)
    return NixCachePathInfoService(files, context_of(services), trusted_keys=keys)


@contextlib.contextmanager
def substituting(
    server: Server, services: Services, *, others: Sequence[Server] = (), **options: Any
) -> Iterator[NixCachePathInfoService]:
    """A service over ``server``, which may lead to ``others``; afterwards nothing of it is left.

    Of an embedded store that is not asked: it opens files when it wants to.
    """
    with leaving_nothing_open() if services.packs is None else contextlib.nullcontext():
        service = http_cache(server.url, services, **options)
        try:
            yield service
        finally:
            service.close()
            for one in (server, *others):
                one.settle()


def assert_refused(
    server: Server,
    services: Services,
    narinfo: NarInfo,
    match: str,
    error: type[NeveError] = InvalidAnswer,
    **options: Any,
) -> str:
    """Getting the path fails with an error that names the address, and nothing of it can be seen."""
    with (
        logged(logging.WARNING),
        substituting(server, services, **options) as service,
        pytest.raises(error, match=match) as refused,
    ):
        service.get(narinfo.store_path.digest)
    message = str(refused.value)
    assert server.url in message
    assert everything(services)[1:] == ([], [])
    assert services.nar_nodes.node(narinfo.nar_sha256) is None
    return message


def assert_substituted(server: Server, services: Services, narinfo: NarInfo, **options: Any) -> None:
    """Getting the path gives what was served."""
    with logged(logging.WARNING), substituting(server, services, **options) as service:
        found = service.get(narinfo.store_path.digest)
    assert found is not None
    assert found.store_path == narinfo.store_path
    nar = b"".join(services.renderer.stream(found.node))
    assert (len(nar), sha256(nar).digest) == (narinfo.nar_size, narinfo.nar_sha256)
