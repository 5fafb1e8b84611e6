"""Blobs and Directories near and far: the contracts, what stays near, and that near may fail."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from neve.castore.absences import Absences
from neve.castore.blobs.base import BlobBatch, BlobReader, BlobService, BlobWriter
from neve.castore.blobs.combined import CachedBlobService, CombinedBlobService
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, format_digest
from neve.castore.directories.base import DirectoryPutter, DirectoryService
from neve.castore.directories.cached import CachedDirectoryService
from neve.castore.directories.memory import MemoryDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import Directory
from neve.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from neve.testing.ages import BlobAgesContract, DirectoryAgesContract
from neve.testing.blob_reading import KIB, MIB, incompressible, put, read_fully, reader_of
from neve.testing.blobs import BlobServiceContract
from neve.testing.directories import DirectoryServiceContract, leaf, parent, put_closure, tree
from tests.castore.damage import damage_blob, damage_directory
from tests.logged import logged


def nested(scheme: str, near: str, far: str, more: str = "") -> str:
    return f"{scheme}://?near={quote(near, safe='')}&far={quote(far, safe='')}{more}"


# The contracts.


class TestCombinedBlobs(BlobServiceContract):
    finds_damage = False

    @pytest.fixture
    def service(self) -> Iterator[BlobService]:
        service = BLOB_SERVICES.open(nested("combined", "memory://", "memory://"))
        yield service
        service.close()


class TestCachedBlobs(BlobServiceContract, BlobAgesContract):
    finds_damage = False

    @pytest.fixture
    def service(self) -> Iterator[BlobService]:
        service = BLOB_SERVICES.open(nested("cache", "memory://", "memory://", "&negative-ttl=60"))
        yield service
        service.close()

    def make_older(self, service: Any, seconds: float) -> None:
        service._far._uses.make_older(seconds)


class TestCachedBlobsOnDisk(BlobServiceContract):
    """Near is there for writing only: what is read has to come from far."""

    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[BlobService]:
        self.far = BLOB_SERVICES.open(f"local://{tmp_path / 'far'}")
        service = CachedBlobService(Forgetful(), self.far)
        yield service
        service.close()

    def damage(self, service: BlobService, digest: Digest) -> None:
        damage_blob(self.far, digest)


class TestCachedDirectories(DirectoryServiceContract, DirectoryAgesContract):
    finds_damage = False

    @pytest.fixture
    def service(self) -> Iterator[DirectoryService]:
        service = DIRECTORY_SERVICES.open(nested("cache", "memory://", "memory://", "&negative-ttl=60"))
        yield service
        service.close()

    def make_older(self, service: Any, seconds: float) -> None:
        service._far._uses.make_older(seconds)


class TestCachedDirectoriesOnDisk(DirectoryServiceContract):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[DirectoryService]:
        self.stores = [DIRECTORY_SERVICES.open(f"local://{tmp_path / name}") for name in ("near", "far")]
        service = CachedDirectoryService(*self.stores)
        yield service
        service.close()

    def damage(self, service: DirectoryService, digest: Digest) -> None:
        for store in self.stores:
            damage_directory(store, digest)


# Services that do not do their part.


class Forgetful(MemoryBlobService):
    """Takes everything and has nothing."""

    def add(self, contents: bytes) -> Digest:
        return b3_digest(contents)


class CountingFar(MemoryBlobService):
    """Notes what it is asked. Like a server, it tells no ages."""

    tells_ages = False

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Digest] = []
        self.read_digests: list[Digest] = []

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        self.asked += digests
        return super().missing(digests)

    def open_read(self, digest: Digest) -> BlobReader | None:
        self.read_digests.append(digest)
        return super().open_read(digest)


class Failing(MemoryBlobService):
    """A store that is gone or, unless it ``reads`` too, full."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self._reads = reads

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        if self._reads:
            raise Unavailable("near is gone")
        return super().missing(digests)

    def open_read(self, digest: Digest) -> BlobReader | None:
        if self._reads:
            raise Unavailable("near is gone")
        return super().open_read(digest)

    def open_write(self) -> BlobWriter:
        raise Unavailable("near is full")

    def batch(self) -> BlobBatch:
        raise Unavailable("near is full")


class Worn(MemoryBlobService):
    """Finds out that blobs are damaged, but only when it reads them."""

    def open_read(self, digest: Digest) -> BlobReader | None:
        if digest in self._put:
            raise Corrupt(f"blob {format_digest(digest)} is damaged")
        return super().open_read(digest)


class BreakingWriter(BlobWriter):
    """Fails in the middle."""

    def write(self, data: bytes) -> int:
        raise Unavailable("near is full now")

    def close(self) -> Digest:
        raise AssertionError("it has failed")

    def abandon(self) -> None:
        return


class Breaking(MemoryBlobService):
    def open_write(self) -> BlobWriter:
        return BreakingWriter()


BOTH = [CombinedBlobService, CachedBlobService]
SMALL, LARGE = b"small", incompressible(3 * MIB)


# Blobs: reading.


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("contents", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "read",
    [
        lambda service, digest: service.read(digest),
        lambda service, digest: b"".join(service.read_many([digest])),
        lambda service, digest: b"".join(service.stream(digest)),
        lambda service, digest: read_fully(reader_of(service, digest), -1),
    ],
    ids=["read", "read_many", "stream", "reader"],
)
def test_what_was_read_is_near(
    kind: type[CombinedBlobService], contents: bytes, read: Callable[[BlobService, Digest], bytes]
) -> None:
    near, far = MemoryBlobService(), CountingFar()
    service = kind(near, far)
    digest = put(far, contents)
    assert read(service, digest) == contents
    assert near.read(digest) == contents
    far.asked.clear()
    far.read_digests.clear()
    assert read(service, digest) == contents
    assert service.has(digest)
    assert (far.asked, far.read_digests) == ([], [])


def test_of_a_large_blob_that_is_not_read_through_nothing_stays() -> None:
    near, far = MemoryBlobService(), MemoryBlobService()
    service = CachedBlobService(near, far)
    digest = put(far, LARGE)
    with reader_of(service, digest) as reader:
        assert reader.read(1000) == LARGE[:1000]
    with reader_of(service, digest) as reader:
        reader.seek(MIB)
        assert read_fully(reader, -1) == LARGE[MIB:]
        reader.seek(0)
        assert read_fully(reader, -1) == LARGE
    assert near.list() == []
    # Going back is no harm as long as nothing is left out.
    with reader_of(service, digest) as reader:
        assert reader.read(1000) == LARGE[:1000]
        reader.seek(500)
        assert read_fully(reader, -1) == LARGE[500:]
    assert near.list() == [digest]


def test_a_large_blob_goes_through_in_pieces() -> None:
    """Neither near nor far nor the reader between them is asked for more than a piece."""
    sizes: list[int] = []

    class Near(MemoryBlobService):
        def open_write(self) -> BlobWriter:
            writer = super().open_write()
            write = writer.write
            writer.write = lambda data: sizes.append(len(data)) or write(data)  # type: ignore[method-assign,func-returns-value]
            return writer

    near, far = Near(), MemoryBlobService()
    digest = put(far, LARGE)
    assert max(map(len, CachedBlobService(near, far).stream(digest, 100 * KIB))) == 100 * KIB
    assert max(sizes) == 100 * KIB
    assert near.has(digest)


def test_many_are_looked_for_near_and_the_rest_far() -> None:
    near, far = MemoryBlobService(), CountingFar()
    service = CachedBlobService(near, far)
    blobs = [b"%d" % number for number in range(3000)]
    digests = far.put_many(blobs)
    near.put_many(blobs[::2])
    assert list(service.read_many(digests)) == blobs
    assert far.read_digests == digests[1::2]
    assert near.missing(digests) == []
    far.asked.clear()
    assert service.missing([*digests, b3_digest(b"absent")]) == [b3_digest(b"absent")]
    assert far.asked == [b3_digest(b"absent")]


def test_who_tells_ages_far_hears_what_is_counted_on() -> None:
    """Else a collection far would take what near has told to be there."""

    class Far(CountingFar):
        tells_ages = True

    near, far, now = MemoryBlobService(), Far(), [0.0]
    service = CachedBlobService(near, far, absences=Absences(60, clock=lambda: now[0]))
    (there,) = service.put_many([b"there"])
    absent = b3_digest(b"absent")
    far._uses.make_older(1000)
    assert service.read(there) == b"there"
    assert far.list_with_ages()[0].age >= 1000
    far.asked.clear()
    for _ in range(2):
        assert service.missing([there, absent]) == [absent]
    assert far.asked == [there, absent, there]
    assert far.list_with_ages()[0].age < 1000
    far.delete_many([there])
    assert not service.has(there)


def test_what_came_before_somebody_lost_interest_is_near() -> None:
    near, far = MemoryBlobService(), MemoryBlobService()
    digests = far.put_many([b"%d" % number for number in range(100)])
    reading = CachedBlobService(near, far).read_many(digests)
    for _ in range(10):
        next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert near.missing(digests) == digests[10:]


@pytest.mark.parametrize("kind", BOTH)
def test_what_is_not_there_is_asked_for_again_and_again(kind: type[CombinedBlobService]) -> None:
    far = CountingFar()
    service = kind(MemoryBlobService(), far)
    absent = b3_digest(b"absent")
    for _ in range(3):
        assert service.missing([absent]) == [absent]
    assert far.asked == [absent] * 3
    far.put_many([b"absent"])
    assert service.has(absent)


def test_unless_that_is_to_be_remembered() -> None:
    now, far = [0.0], CountingFar()
    service = CachedBlobService(MemoryBlobService(), far, absences=Absences(60, clock=lambda: now[0]))
    absent = b3_digest(b"absent")
    assert service.open_read(absent) is None
    for _ in range(3):
        assert service.missing([absent, EMPTY_BLOB]) == [absent]
        assert service.open_read(absent) is None
        assert service.chunks(absent) is None
    assert (far.asked, far.read_digests) == ([], [absent])
    far.add(b"absent")
    now[0] = 61
    assert service.has(absent)
    # What is put is there at once.
    other = b3_digest(b"other")
    assert not service.has(other)
    assert service.put_many([b"other"]) == [other]
    assert service.has(other)


def test_what_was_asked_for_while_it_was_put(tmp_path: Path) -> None:
    """It is not there before it is durable, which must not be remembered beyond that."""
    far = BLOB_SERVICES.open(f"local://{tmp_path / 'far'}")
    service = CachedBlobService(Failing(reads=False), far, absences=Absences(60))
    with logged(logging.WARNING), service.batch() as batch:
        (small,) = batch.put_many([b"small"])
        with batch.open_write() as writer:
            writer.write(b"written")
            written = writer.close()
        assert service.missing([small, written]) == [small, written]
        batch.commit()
        assert service.missing([small, written]) == []
    service.close()


# Blobs: near fails.


@pytest.mark.parametrize("scheme", ["cache", "combined"])
@pytest.mark.parametrize("by_pieces", [False, True])
def test_a_large_blob_of_which_near_has_a_part_damaged_comes_from_far(
    scheme: str, by_pieces: bool, tmp_path: Path
) -> None:
    """What is before the damage has been given out by then."""
    contents = incompressible(3 * MIB)
    far = f"objectstore+file://{tmp_path}/far"
    with contextlib.closing(BLOB_SERVICES.open(far)) as service:
        digest = put(service, contents)
    with contextlib.closing(BLOB_SERVICES.open(f"local://{tmp_path}/near")) as service:
        put(service, contents)
        chunks = service.chunks(digest)
        assert chunks is not None
        damage_blob(service, chunks[4].digest)
    with (
        contextlib.closing(BLOB_SERVICES.open(nested(scheme, f"local://{tmp_path}/near", far))) as service,
        logged(logging.WARNING) as lines,
        reader_of(service, digest) as reader,
    ):
        if by_pieces:
            assert b"".join(iter(lambda: reader.read_piece(KIB), b"")) == contents
        else:
            assert (reader.read(10), reader.read()) == (contents[:10], contents[10:])
        assert (reader.size, reader.tell()) == (len(contents), len(contents))
        reader.seek(MIB)
        assert reader.read(KIB) == contents[MIB : MIB + KIB]
    assert "asking far" in lines[0]


def test_a_large_blob_that_is_damaged_near_and_not_far_is_an_error(tmp_path: Path) -> None:
    with contextlib.closing(BLOB_SERVICES.open(f"local://{tmp_path}/near")) as service:
        digest = put(service, incompressible(3 * MIB))
        chunks = service.chunks(digest)
        assert chunks is not None
        damage_blob(service, chunks[4].digest)
    url = nested("cache", f"local://{tmp_path}/near", "memory://")
    with contextlib.closing(BLOB_SERVICES.open(url)) as service, reader_of(service, digest) as reader:
        for _ in range(2):
            with pytest.raises(Corrupt, match=re.escape(format_digest(chunks[4].digest))):
                reader.read()


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("near", [Failing(reads=True), Failing(reads=False), Breaking()])
@pytest.mark.parametrize("contents", [SMALL, LARGE], ids=["small", "large"])
def test_reading_does_not_need_near(
    kind: type[CombinedBlobService], near: BlobService, contents: bytes
) -> None:
    far = MemoryBlobService()
    digest = put(far, contents)
    service = kind(near, far)
    with logged(logging.WARNING) as lines:
        assert service.read(digest) == contents
        assert list(service.read_many([digest] * 3)) == [contents] * 3
        assert b"".join(service.stream(digest)) == contents
        assert service.missing([digest, b3_digest(b"absent")]) == [b3_digest(b"absent")]
        assert service.chunks(digest) == far.chunks(digest)
    if not (isinstance(near, Breaking) and contents is SMALL):
        assert any("near is" in line for line in lines)


@pytest.mark.parametrize("kind", BOTH)
def test_what_near_has_damaged_comes_from_far(kind: type[CombinedBlobService]) -> None:
    near, far = Worn(), MemoryBlobService()
    blobs = [b"%d" % number for number in range(20)]
    digests = far.put_many(blobs)
    near.put_many(blobs[::2])
    service = kind(near, far)
    with logged(logging.WARNING) as lines:
        assert list(service.read_many(digests)) == blobs
        assert service.read(digests[0]) == blobs[0]
    assert format_digest(digests[0]) in lines[0]
    assert "asking far" in lines[0]


@pytest.mark.parametrize("near", [Failing(reads=False), Breaking()])
def test_putting_to_a_cache_does_not_need_near(near: BlobService) -> None:
    far = MemoryBlobService()
    service = CachedBlobService(near, far)
    with logged(logging.WARNING) as lines:
        digests = [*service.put_many([b"one"]), put(service, LARGE)]
        with service.batch() as batch:
            digests += [put(batch, b"two"), *batch.put_many([b"three"])]
            batch.commit()
    assert far.missing(digests) == []
    assert any("not kept near: near is full" in line for line in lines)


def test_putting_to_a_cache_needs_far() -> None:
    near = MemoryBlobService()
    service = CachedBlobService(near, Failing(reads=False))
    with pytest.raises(Unavailable, match="is full"):
        service.put_many([b"x"])
    with pytest.raises(Unavailable, match="is full"):
        service.open_write()
    assert near.list() == []


def test_who_combines_puts_near_and_lists_both() -> None:
    near, far = MemoryBlobService(), MemoryBlobService()
    service = CombinedBlobService(near, far)
    digests = [*far.put_many([b"far", b"both"]), *service.put_many([b"near", b"both"])]
    assert far.list() == sorted(digests[:2])
    assert near.list() == sorted(digests[2:])
    assert service.list() == sorted(set(digests))
    assert service.list(limit=2) == sorted(set(digests))[:2]
    with service.batch() as batch:
        absent = b3_digest(b"absent")
        assert batch.keep_many([*digests, absent]) == [absent]
    assert service.delete_many([*digests, absent]) == 3
    assert near.list() == far.list() == []


# Directories.


class CountingDirectories(MemoryDirectoryService):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Digest] = []
        self.closures: list[Digest] = []

    def get(self, digest: Digest) -> Directory | None:
        self.asked.append(digest)
        return super().get(digest)

    def get_recursive(self, digest: Digest) -> Iterator[Directory]:
        self.closures.append(digest)
        return super().get_recursive(digest)


class FailingDirectories(MemoryDirectoryService):
    def get(self, digest: Digest) -> Directory | None:
        raise Unavailable("near is gone")

    def put_many(self, directories: Sequence[Directory]) -> None:
        raise Unavailable("near is full")

    def put(self, directory: Directory) -> Digest:
        raise Unavailable("near is full")

    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        raise Unavailable("near is full")


def digests_of(directories: Iterable[Directory]) -> list[Digest]:
    return [directory.digest for directory in directories]


def test_a_closure_that_was_read_is_near() -> None:
    near, far = MemoryDirectoryService(), CountingDirectories()
    service = CachedDirectoryService(near, far)
    # "middle" comes early from far, root to leaves, but must be put before what refers to it.
    middle = parent(leaf("leaf"), name="middle")
    upper = parent(middle, name="upper")
    closure = [leaf("leaf"), middle, upper, parent(parent(upper, name="left"), middle)]
    closure.insert(3, parent(upper, name="left"))
    root = put_closure(far, closure)
    assert list(service.get_recursive(root)) == list(far.get_recursive(root))
    assert sorted(near.list()) == sorted(digests_of(closure))
    far.closures.clear()
    far.asked.clear()
    assert set(digests_of(service.get_recursive(root))) == set(digests_of(closure))
    assert service.get(middle.digest) == middle
    assert (far.closures, far.asked) == ([], [])


def test_a_closure_that_was_not_read_to_its_end_is_not_kept() -> None:
    near, far = MemoryDirectoryService(), MemoryDirectoryService()
    root = put_closure(far, tree())
    reading = CachedDirectoryService(near, far).get_recursive(root)
    assert next(reading) == tree()[-1]
    del reading
    assert near.list() == []


def test_single_directories_that_were_read_are_near() -> None:
    near, far = MemoryDirectoryService(), CountingDirectories()
    service = CachedDirectoryService(near, far)
    closure = tree()
    root = put_closure(far, closure)
    assert service.get(root) == closure[-1]
    assert service.get_many(digests_of(closure[2:4])) == {one.digest: one for one in closure[2:4]}
    assert sorted(near.list()) == sorted([root, *digests_of(closure[2:4])])
    # Of a closure of which near has a part, the rest comes from far, nothing twice, parents first.
    found = list(service.get_recursive(root))
    assert sorted(digests_of(found)) == sorted(digests_of(closure))
    assert len(near.list()) == len(closure)
    seen = {root}
    for directory in found:
        assert directory.digest in seen
        seen.update(child.digest for _, child in directory.directories())


def test_absent_directories_are_remembered_if_wanted() -> None:
    now, far = [0.0], CountingDirectories()
    absent = tree()[-1].digest
    service = CachedDirectoryService(
        MemoryDirectoryService(), far, absences=Absences(60, clock=lambda: now[0])
    )
    for _ in range(3):
        assert service.get(absent) is None
        assert list(service.get_recursive(absent)) == []
    assert (far.asked, far.closures) == ([absent], [])
    put_closure(service, tree())
    assert service.get(absent) == tree()[-1]
    other = leaf("other")
    assert list(service.get_recursive(other.digest)) == []
    assert list(service.get_recursive(other.digest)) == []
    assert far.closures == [other.digest]
    far.put(other)
    assert service.get(other.digest) is None
    now[0] = 61
    assert service.get(other.digest) == other


def test_directories_do_not_need_near() -> None:
    far = MemoryDirectoryService()
    service = CachedDirectoryService(FailingDirectories(), far)
    with logged(logging.WARNING) as lines:
        root = put_closure(service, tree())
        service.put(leaf("one"))
        service.put_many([leaf("two")])
        assert service.get(root) == tree()[-1]
        assert len(list(service.get_recursive(root))) == len(tree())
        service.read_ahead(root)
    assert far.get(leaf("two").digest) == leaf("two")
    assert any("asking far" in line for line in lines)
    assert any("not kept near: near is full" in line for line in lines)


def test_a_closure_that_far_has_not_whole_is_an_error() -> None:
    near, far = MemoryDirectoryService(), MemoryDirectoryService()
    closure = tree()
    root = put_closure(far, closure)
    far.delete_many([closure[1].digest])
    with pytest.raises(NotFound):
        list(CachedDirectoryService(near, far).get_recursive(root))
    assert near.list() == []


def test_a_closure_of_which_only_near_has_a_part_is_an_error_too() -> None:
    near = MemoryDirectoryService()
    closure = tree()
    near.put_many([closure[-1], closure[-2]])
    reading = CachedDirectoryService(near, MemoryDirectoryService()).get_recursive(closure[-1].digest)
    with pytest.raises(NotFound, match="is not in the store"):
        list(reading)


# Addresses.


@pytest.mark.parametrize("schemes", [BLOB_SERVICES, DIRECTORY_SERVICES], ids=["blobs", "directories"])
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("cache://", r"'cache://': parameter 'near' is missing; write near=URL, percent-encoded"),
        ("cache://?near=memory://", "parameter 'far' is missing"),
        (
            "cache://?near=memory://&far=nothing",
            r"far of address 'cache://.*': address 'nothing' has no scheme",
        ),
        (
            nested("cache", "memory://?x=1", "memory://"),
            r"near of address .*: address 'memory://\?x=1': unknown",
        ),
        ("cache://host?near=memory://&far=memory://", "neither host nor path"),
        ("cache:///path?near=memory://&far=memory://", "neither host nor path"),
        ("cache://?near=memory://&far=memory://&ttl=1", "unknown parameter 'ttl'"),
        (
            "cache://?near=memory://&far=memory://&negative-ttl=0",
            "'negative-ttl' is '0', must be a number of",
        ),
        ("cache://?near=memory://&far=memory://&negative-ttl=soon", "'negative-ttl' is 'soon'"),
        (
            nested("cache", "memory://", nested("cache", "memory://", "sled:///x")),
            "far of address .*: far of address .*: .* 'sled'.*is an engine of another implementation",
        ),
    ],
)
def test_bad_addresses(schemes: object, url: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        schemes.open(url)  # type: ignore[attr-defined]


def test_combining_does_not_remember_what_is_absent() -> None:
    with pytest.raises(InvalidRequest, match=r"unknown parameter 'negative-ttl' \(known: near, far\)"):
        BLOB_SERVICES.open(nested("combined", "memory://", "memory://", "&negative-ttl=1"))


def test_closing_closes_both(tmp_path: Path) -> None:
    from neve.packstore.store import PackStore

    url = nested("cache", f"local://{tmp_path / 'near'}", f"local://{tmp_path / 'far'}")
    for schemes in (BLOB_SERVICES, DIRECTORY_SERVICES):
        service = schemes.open(url)
        assert len(PackStore._opened) == 2
        service.close()
        service.close()
        assert PackStore._opened == {}
        with pytest.raises(InvalidRequest):
            schemes.open(nested("cache", f"local://{tmp_path / 'near'}", "nonsense://"))
        assert PackStore._opened == {}


# Absences.


def test_absences_are_bounded() -> None:
    absences = Absences(60, capacity=3)
    absences.add([b"1", b"2", b"3"])
    absences.add([b"1", b"4"])
    assert [digest in absences for digest in (b"1", b"2", b"3", b"4")] == [True, False, True, True]
    absences.discard([b"1", b"5"])
    assert b"1" not in absences


def test_absences_end() -> None:
    now = [100.0]
    absences = Absences(10, clock=lambda: now[0])
    absences.add([b"1"])
    now[0] = 109
    assert b"1" in absences
    absences.add([b"1"])
    now[0] = 118
    assert b"1" in absences
    now[0] = 119
    assert b"1" not in absences
