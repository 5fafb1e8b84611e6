"""Substituting from caches that are as they should be: from a server, and from a folder."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from neve.castore.node import DirectoryNode, FileNode
from neve.castore.traverse import descend
from neve.errors import InvalidRequest, NotFound, Unsupported
from neve.nix.compression import COMPRESSIONS
from neve.nix.hashes import CAHash, CAMethod, HashAlgorithm, NixHash
from neve.nix.narinfo import NarInfo
from neve.nix.signing import PublicKey
from neve.nix.store_path import StorePath, content_addressed_path
from neve.store.path_info import PathDescription, PathInfo
from neve.store.pathinfos.nix_cache import NixCachePathInfoService
from neve.store.services import Services, open_services
from neve.store.substitute.folder import FolderCache
from neve.testing.pathinfos import path_info, signature, store_path
from neve.tree import File
from tests.nix.compressing import COMPRESSORS
from tests.store.helpers import encoded, everything, leaving_nothing_open, memory_services
from tests.store.substitute.caches import (
    KEY,
    OTHER_KEY,
    Cache,
    assert_substituted,
    context_of,
    events,
    http_cache,
    narinfo_name,
    sha256,
    substituting,
)
from tests.store.substitute.server import Answer, Exchange, Server, plain, running_server


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def services() -> Iterator[Services]:
    services = memory_services()
    yield services
    services.close()


def described(narinfo: NarInfo, found: PathInfo | PathDescription | None) -> None:
    """What was found tells what the narinfo tells."""
    assert found is not None
    assert found.store_path == narinfo.store_path
    nar = found.nar
    assert nar is not None
    assert (nar.size, nar.sha256) == (narinfo.nar_size, narinfo.nar_sha256)
    assert sorted(nar.reference_names) == sorted(narinfo.references)
    assert (nar.signatures, nar.deriver, nar.ca) == (narinfo.signatures, narinfo.deriver, narinfo.ca)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_compression(server: Server, services: Services, compression: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool-1.0", compression=compression)
    server.serve(cache.files)
    assert_substituted(server, services, narinfo, keys=[KEY.public_key()])
    assert server.paths() == ["/nix-cache-info", f"/{narinfo_name(narinfo.store_path)}", f"/{narinfo.url}"]


def test_a_narinfo_says_everything(server: Server, services: Services) -> None:
    cache = Cache()
    ca = CAHash.of(CAMethod.NAR, sha256(encoded(events("full"))))
    references = (store_path("dependency"),)
    path = content_addressed_path("full", ca, references)
    narinfo = cache.add(
        "full",
        store_path=path,
        references=references,
        deriver=store_path("deriver"),
        ca=ca,
        sign=[KEY, OTHER_KEY],
    )
    server.serve(cache.files)
    with substituting(server, services) as service:
        described(narinfo, service.describe(narinfo.store_path.digest))
        found = service.get(narinfo.store_path.digest)
        described(narinfo, found)
        assert found is not None
        assert set(found.references) == {one.digest for one in narinfo.references}


def test_a_narinfo_says_as_little_as_it_may(server: Server, services: Services) -> None:
    """No sizes and hashes of the file, no references, no signature, and bzip2 without being named."""
    cache = Cache()
    narinfo = cache.add("bare", compression="bzip2", file_hash=None, file_size=None, references=(), sign=())
    cache.edit(narinfo, "Compression: bzip2\n", "")
    cache.edit(narinfo, "References: \n", "")
    server.serve(cache.files)
    assert_substituted(server, services, narinfo)


def test_a_size_of_nothing_is_no_size(server: Server, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression="xz", file_size=0)
    server.serve(cache.files)
    assert_substituted(server, services, narinfo)


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_hashes_of_files(server: Server, services: Services, algorithm: HashAlgorithm) -> None:
    cache = Cache()
    nar = encoded([File(b"", False, b"contents")])
    hashed = NixHash(algorithm, hashlib.new(algorithm.value, COMPRESSORS["gzip"](nar)).digest())
    narinfo = cache.add("file", nar=nar, compression="gzip", file_hash=hashed)
    # The time is part of a gzip file.
    cache.files[narinfo.url] = COMPRESSORS["gzip"](nar)
    actual = NixHash(algorithm, hashlib.new(algorithm.value, cache.files[narinfo.url]).digest())
    cache.edit(narinfo, str(hashed), str(actual))
    server.serve(cache.files)
    assert_substituted(server, services, narinfo)


def test_what_is_not_there(server: Server, services: Services) -> None:
    cache = Cache()
    server.serve(cache.files)
    with substituting(server, services) as service:
        for code in (404, 403):
            server.otherwise = plain(b"", code)
            assert service.get(store_path("absent").digest) is None
            assert service.describe(store_path("absent").digest) is None
        for size in (0, 19, 32):
            for ask in (service.get, service.describe):
                with pytest.raises(InvalidRequest, match=f"has {size} bytes, must have 20"):
                    ask(bytes(size))
    # Only once whether it is a cache, and about the rest on the same connection.
    assert server.paths().count("/nix-cache-info") == 1


@pytest.mark.parametrize("missing", ["blob", "directory", "root"])
def test_a_known_nar_of_which_something_is_missing(server: Server, services: Services, missing: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    assert_substituted(server, services, narinfo)
    known = services.nar_nodes.node(narinfo.nar_sha256)
    assert known is not None
    below = descend(services.directories, known[0], [b"bin"])
    for node in (known[0], below):
        assert isinstance(node, DirectoryNode)
        if missing == ("root" if node is known[0] else "directory"):
            services.directories.delete_many([node.digest])
    if missing == "blob":
        services.blobs.delete_many(services.blobs.list()[:1])
    with substituting(server, services) as service:
        assert isinstance(service.describe(narinfo.store_path.digest), PathDescription)
    assert_substituted(server, services, narinfo)


def test_describing_fetches_nothing(server: Server, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    with substituting(server, services) as service:
        found = service.describe(narinfo.store_path.digest)
        assert isinstance(found, PathDescription)
        assert f"/{narinfo.url}" not in server.paths()
        assert everything(services)[1:] == ([], [])
        # But what is here already is told.
        assert service.get(narinfo.store_path.digest) == service.describe(narinfo.store_path.digest)


def test_what_only_a_store_can(server: Server, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    server.serve(cache.files)
    with substituting(server, services) as service:
        for attempt in (
            lambda: service.put(path_info("x")),
            lambda: service.put(path_info("x"), replace=True),
            lambda: list(service),
            service.list,
            lambda: service.delete_many([bytes(20)]),
            lambda: service.referrers(bytes(20)),
            lambda: service.add_signatures(narinfo.store_path.digest, [signature("key")]),
        ):
            with pytest.raises(Unsupported, match=f"{server.url} is a binary cache that is only read"):
                attempt()
    assert server.paths() == []


# A NAR is fetched once.


def test_the_same_nar_is_not_fetched_again(tmp_path: Path, server: Server) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression="zstd")
    server.serve(cache.files)
    for _ in range(2):
        services = open_services(f"local://{tmp_path / 'store'}")
        assert_substituted(server, services, narinfo)
        services.close()
    assert server.paths().count(f"/{narinfo.url}") == 1


def test_of_another_path_with_the_same_contents_neither(server: Server, services: Services) -> None:
    cache = Cache()
    nar = encoded([File(b"", False, b"contents")])
    one, two = cache.add("one", nar=nar), cache.add("two", nar=nar, compression="xz")
    server.serve(cache.files)
    assert_substituted(server, services, one)
    assert_substituted(server, services, two)
    assert f"/{two.url}" not in server.paths()


def test_unless_it_is_no_longer_there(server: Server, services: Services) -> None:
    cache = Cache()
    directory, file = cache.add("directory"), cache.add("file", nar=encoded([File(b"", False, b"contents")]))
    server.serve(cache.files)
    for narinfo in (directory, file):
        assert_substituted(server, services, narinfo)
        services.directories.delete_many(services.directories.list())
        services.blobs.delete_many(services.blobs.list())
        assert_substituted(server, services, narinfo)
        assert server.paths().count(f"/{narinfo.url}") == 2


def test_however_many_ask_it_is_fetched_once(server: Server, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool", compression="xz")
    server.serve(cache.files)
    server.held = threading.Semaphore(0)
    asking = threading.Barrier(9)

    def ask(service: NixCachePathInfoService) -> PathInfo | None:
        asking.wait()
        return service.get(narinfo.store_path.digest)

    with substituting(server, services) as service, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, service) for _ in range(8)]
        asking.wait()
        server.held.release(100)
        found = [answer.result() for answer in answers]
    assert found[0] is not None
    assert found == [found[0]] * 8
    assert server.paths().count(f"/{narinfo.url}") == 1


def _after(barrier: threading.Barrier, answer: Answer) -> Answer:
    def wait_and_answer(exchange: Exchange) -> bool:
        barrier.wait()
        return answer(exchange)

    return wait_and_answer


def test_different_paths_come_side_by_side(server: Server, services: Services) -> None:
    """All of them are on their way before the first is answered."""
    cache = Cache()
    narinfos = [cache.add(f"tool-{number}") for number in range(8)]
    server.serve(cache.files)
    with substituting(server, services) as service, ThreadPoolExecutor(8) as pool:
        assert service.get(store_path("absent").digest) is None
        together = threading.Barrier(8, timeout=60)
        for narinfo in narinfos:
            server.routes[f"/{narinfo.url}"] = [_after(together, server.routes[f"/{narinfo.url}"][0])]
        found = list(pool.map(lambda narinfo: service.get(narinfo.store_path.digest), narinfos))
    assert [one.store_path for one in found if one is not None] == [one.store_path for one in narinfos]


# Addresses of caches, and of NARs in them.


def test_a_cache_below_a_path(server: Server, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    absolute = cache.add("absolute")
    base = f"{server.url}/a%20b/cache"
    cache.edit(absolute, "URL: ", f"URL: {base}/")
    server.serve(cache.files, "/a%20b/cache")
    with leaving_nothing_open():
        service = http_cache(f"{base}/", services)
        described(narinfo, service.get(narinfo.store_path.digest))
        described(absolute, service.get(absolute.store_path.digest))
        service.close()
        server.settle()


def test_addresses_of_nars_that_want_quoting(server: Server, services: Services) -> None:
    cache = Cache()
    narinfos = []
    for name, url, asked in (
        ("blank", "nar/a b", "/nar/a%20b"),
        ("letter", "nar/ä", "/nar/%C3%A4"),
        ("quoted", "nar/%41", "/nar/%41"),
        ("query", "nar/tvix-castore/CgA?narsize=1&x=a/../b", "/nar/tvix-castore/CgA?narsize=1&x=a/../b"),
        ("plain", "nar/a+b~c=d", "/nar/a+b~c=d"),
    ):
        narinfo = cache.add(name)
        cache.edit(narinfo, narinfo.url, url)
        server.routes[asked] = [plain(cache.files[narinfo.url])]
        narinfos.append(narinfo)
    server.serve(cache.files)
    for narinfo in narinfos:
        assert_substituted(server, services, narinfo)


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "xz", "identity"])
def test_files_that_are_kept_encoded(server: Server, services: Services, encoding: str) -> None:
    """We ask for no encoding, but some caches keep narinfos so."""
    cache = Cache()
    narinfo = cache.add("tool", compression="bzip2")
    compress = COMPRESSORS.get(encoding, bytes)
    for name, contents in cache.files.items():
        server.routes[f"/{name}"] = [plain(compress(contents), Content_Encoding=encoding)]
    assert_substituted(server, services, narinfo)
    assert server.requests[0].headers["accept-encoding"] == "identity"


# Folders.


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_cache_in_a_folder(tmp_path: Path, services: Services, compression: str) -> None:
    cache = Cache()
    narinfo = cache.add("tool-1.0", compression=compression)
    written(cache, tmp_path / "cache")
    with leaving_nothing_open():
        service = folder_cache(tmp_path / "cache", services, KEY.public_key())
        assert service.get(store_path("absent").digest) is None
        described(narinfo, service.describe(narinfo.store_path.digest))
        found = service.get(narinfo.store_path.digest)
        described(narinfo, found)
        service.close()
    assert found is not None
    assert sha256(b"".join(services.renderer.stream(found.node))).digest == narinfo.nar_sha256


def written(cache: Cache, folder: Path) -> None:
    for name, contents in cache.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents)


def folder_cache(folder: Path, services: Services, *keys: PublicKey) -> NixCachePathInfoService:
    return NixCachePathInfoService(FolderCache(str(folder)), context_of(services), trusted_keys=keys)


def test_names_of_files_in_a_folder_are_taken_as_they_are(tmp_path: Path, services: Services) -> None:
    cache = Cache()
    narinfo = cache.add("tool")
    cache.edit(narinfo, narinfo.url, "nar/a%20b?c")
    cache.files["nar/a%20b?c"] = cache.files.pop(narinfo.url)
    written(cache, tmp_path)
    described(narinfo, folder_cache(tmp_path, services).get(narinfo.store_path.digest))


def test_a_large_file_comes_in_pieces(tmp_path: Path, server: Server) -> None:
    """Larger than what is put into a store at once."""
    cache = Cache()
    contents = hashlib.shake_128(b"large").digest(5 << 20)
    narinfo = cache.add("large", nar=encoded([File(b"", True, contents)]), compression="zstd")
    server.serve(cache.files)
    services = open_services(f"local://{tmp_path / 'store'}")
    with substituting(server, services) as service:
        found = service.get(narinfo.store_path.digest)
    assert found is not None
    assert isinstance(found.node, FileNode)
    assert services.blobs.read(found.node.digest) == contents
    services.close()


def test_a_path_of_another_name_is_the_same_path(server: Server, services: Services) -> None:
    """The digest is what is asked for; the name is told."""
    cache = Cache()
    narinfo = cache.add("tool")
    other = StorePath(narinfo.store_path.digest, "other-name")
    changed = replace(narinfo, store_path=other)
    cache.files[narinfo_name(other)] = changed.render().encode()
    server.serve(cache.files)
    with substituting(server, services) as service:
        found = service.get(narinfo.store_path.digest)
    assert found is not None
    assert found.store_path == other
    from neve.library import Store

    store = Store(replace_path_infos(services, http_cache(server.url, services)))
    with pytest.raises(NotFound, match="is not in the store"):
        store.path_info(narinfo.store_path)
    assert store.path_info(other) == found
    store.path_infos.close()


def replace_path_infos(services: Services, path_infos: NixCachePathInfoService) -> Services:
    return Services(services.blobs, services.directories, path_infos, services.nar_nodes)
