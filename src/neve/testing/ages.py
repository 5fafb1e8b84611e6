"""The contract of ages (``neve.castore.ages``). A service that tells them passes it beside its own: its tests
subclass both, and supply ``make_older``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from neve.castore.ages import SLACK
from neve.castore.blobs.base import BlobService
from neve.castore.digest import Digest, b3_digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directory import Directory
from neve.castore.node import SymlinkNode


def is_fresh(age: float) -> bool:
    """Whether that may be the age of something that was used just now."""
    return age < 2 * SLACK


def all_ages(
    list_page: Callable[[bytes, int], Sequence[tuple[Any, ...]]], limit: int = 3
) -> dict[bytes, float]:
    """A whole listing, page by page; it must be in order."""
    found: list[tuple[Any, ...]] = []
    while page := list_page(found[-1][0] if found else b"", limit):
        assert len(page) <= limit
        found += page
    digests = [one[0] for one in found]
    assert digests == sorted(set(digests))
    return {one[0]: one[1] for one in found}


class BlobAgesContract:
    """Of a ``BlobService``."""

    def make_older(self, service: Any, seconds: float) -> None:
        """Makes all objects so much older, behind the back of ``service``."""
        raise NotImplementedError

    def blobs_ages(self, service: BlobService) -> dict[bytes, float]:
        return all_ages(service.list_with_ages)

    def chunks_ages(self, service: BlobService) -> dict[bytes, float]:
        return all_ages(service.list_chunks_with_ages, 100)

    def test_ages(self, service: BlobService) -> None:
        assert service.tells_ages
        put = service.put_many([b"one", b"two", b"three", bytes(300_000), b""])
        with service.open_write() as writer:
            writer.write(_large())
            put.append(writer.close())
        ages, chunks = self.blobs_ages(service), self.chunks_ages(service)
        assert set(ages) == set(service.list())
        assert set(ages) == {*put} - {b3_digest(b"")}
        assert all(is_fresh(age) for age in [*ages.values(), *chunks.values()])
        for one in service.list_with_ages():
            stored = {chunk.digest for chunk in service.stored_chunks(one.digest)}
            assert not (stored and one.is_one_piece)
            assert not chunks or stored <= chunks.keys()
        self.make_older(service, 4 * SLACK)
        old = [*self.blobs_ages(service).values(), *self.chunks_ages(service).values()]
        assert not any(is_fresh(age) for age in old)

    @pytest.mark.parametrize(
        "asked", ["missing", "missing_blobs", "has", "keep", "freshen", "put_many", "put_in_a_batch", "write"]
    )
    def test_what_is_asked_for_or_put_again_is_fresh(self, service: BlobService, asked: str) -> None:
        assert service.tells_ages
        contents = [b"asked", _large()]
        digests = [_write(service, one) for one in contents]
        (other,) = service.put_many([b"other"])
        self.make_older(service, 4 * SLACK)
        asking: dict[str, Callable[[], object]] = {
            "missing": lambda: service.missing([*digests, bytes(32)]) == [bytes(32)],
            "missing_blobs": lambda: service.missing_blobs([*digests, bytes(32)]) == [bytes(32)],
            "has": lambda: all(service.has(digest) for digest in digests),
            "keep": lambda: _in_a_batch(service, lambda batch: batch.keep_many(digests) == []),
            "freshen": lambda: service.freshen([*digests, bytes(32)]) == [bytes(32)],
            "put_many": lambda: service.put_many(contents) == digests,
            "put_in_a_batch": lambda: _in_a_batch(service, lambda b: b.put_many(contents) == digests),
            "write": lambda: [_write(service, one) for one in contents] == digests,
        }
        assert asking[asked]()
        ages, chunks = self.blobs_ages(service), self.chunks_ages(service)
        for digest in digests:
            assert is_fresh(ages[digest])
            stored = [chunk.digest for chunk in service.stored_chunks(digest) if chunks]
            assert all(is_fresh(chunks[chunk]) for chunk in stored)
        assert not is_fresh(ages[other])

    def test_reading_for_a_collection_freshens_nothing(self, service: BlobService) -> None:
        assert service.tells_ages
        digest = _write(service, _large())
        self.make_older(service, 4 * SLACK)
        service.stored_chunks(digest)
        service.list()
        assert not any(is_fresh(age) for age in self.blobs_ages(service).values())
        assert not any(is_fresh(age) for age in self.chunks_ages(service).values())

    def test_deleting_by_age(self, service: BlobService) -> None:
        assert service.tells_ages
        goes, stays, large = [*service.put_many([b"goes", b"stays"]), _write(service, _large())]
        self.make_older(service, 4 * SLACK)
        chunks = list(self.chunks_ages(service))
        assert service.missing([stays]) == []
        assert service.delete_many([goes, stays, large], unused_for=6 * SLACK) == 0
        assert service.delete_many([goes, stays, large, bytes(32)], unused_for=3 * SLACK) == 2
        assert service.list() == [stays]
        assert {*chunks} == {*self.chunks_ages(service)}  # Others may have them.
        service.delete_chunks([chunk for chunk in chunks if chunk != stays], unused_for=3 * SLACK)
        assert service.missing([goes, stays, large]) == [goes, large]
        assert service.read(stays) == b"stays"
        assert set(self.chunks_ages(service)) <= {stays}
        assert service.delete_many([], unused_for=0) == service.delete_chunks([], unused_for=0) == 0


class DirectoryAgesContract:
    """Of a ``DirectoryService``."""

    def make_older(self, service: Any, seconds: float) -> None:
        """Makes all objects so much older, behind the back of ``service``."""
        raise NotImplementedError

    def put_root(self, service: DirectoryService, name: str) -> Digest:
        """A Directory without children, put as a closure."""
        with service.put_multiple() as putter:
            putter.put(Directory({name.encode(): SymlinkNode(b"x")}))
            return putter.close()

    def test_ages(self, service: DirectoryService) -> None:
        assert service.tells_ages
        put = {self.put_root(service, f"root {number}") for number in range(7)}
        ages = all_ages(service.list_with_ages)
        assert set(ages) == put
        assert all(is_fresh(age) for age in ages.values())
        self.make_older(service, 4 * SLACK)
        assert not any(is_fresh(age) for age in all_ages(service.list_with_ages).values())

    def test_what_is_put_again_or_freshened_is_fresh(self, service: DirectoryService) -> None:
        assert service.tells_ages
        again, asked, other = (self.put_root(service, name) for name in ("again", "asked", "other"))
        self.make_older(service, 4 * SLACK)
        assert self.put_root(service, "again") == again
        assert service.freshen([asked, bytes(32)]) == [bytes(32)]
        ages = all_ages(service.list_with_ages)
        assert is_fresh(ages[again])
        assert is_fresh(ages[asked])
        assert not is_fresh(ages[other])

    def test_deleting_by_age(self, service: DirectoryService) -> None:
        assert service.tells_ages
        goes, stays = (self.put_root(service, name) for name in ("goes", "stays"))
        self.make_older(service, 4 * SLACK)
        assert service.freshen([stays]) == []
        assert service.delete_many([goes, stays], unused_for=6 * SLACK) == 0
        assert service.delete_many([goes, stays, bytes(32)], unused_for=3 * SLACK) == 1
        assert list(all_ages(service.list_with_ages)) == [stays]
        assert list(service.get_recursive(goes)) == []
        assert len(list(service.get_recursive(stays))) == 1
        assert service.delete_many([], unused_for=0) == 0


def _large() -> bytes:
    """As much as is stored in several chunks, none of them twice."""
    return b"".join(b3_digest(number.to_bytes(4, "big")) for number in range(60_000))


def _write(service: BlobService, contents: bytes) -> Digest:
    with service.open_write() as writer:
        writer.write(contents)
        return writer.close()


def _in_a_batch(service: BlobService, act: Callable[[Any], bool]) -> bool:
    with service.batch() as batch:
        done = act(batch)
        batch.commit()
    return done
