"""The contract of ages (``neve.castore.ages``). A service that tells them passes it beside its own: its tests
subclass both, and supply ``make_older``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from neve.castore.ages import FRESH_FOR, MIN_GRACE, Aged
from neve.castore.blobs.base import BlobService
from neve.castore.digest import Digest, b3_digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directory import Directory
from neve.castore.node import SymlinkNode

_CLOCKS = 3600.0
"""Seconds by which the clock of a service may differ from ours."""


def is_fresh(stamp: float) -> bool:
    """Whether something was stored or freshened just now, by clocks that are not quite right."""
    return abs(time.time() - stamp) < _CLOCKS


def all_aged(list_page: Callable[[bytes, int], Sequence[Aged]], limit: int = 3) -> dict[bytes, Aged]:
    """A whole listing, page by page; it must be in order."""
    found: list[Aged] = []
    while page := list_page(found[-1].digest if found else b"", limit):
        assert len(page) <= limit
        found += page
    digests = [one.digest for one in found]
    assert digests == sorted(set(digests))
    return {one.digest: one for one in found}


class BlobAgesContract:
    """Of a ``BlobService``."""

    def make_older(self, service: Any, seconds: float) -> None:
        """Makes all objects so much older, behind the back of ``service``."""
        raise NotImplementedError

    def blobs_aged(self, service: BlobService) -> dict[bytes, Aged]:
        return all_aged(service.list_aged)

    def chunks_aged(self, service: BlobService) -> dict[bytes, Aged]:
        return all_aged(lambda after, limit: service.list_aged(after, limit, chunks=True), 100)

    def test_ages(self, service: BlobService) -> None:
        assert service.tells_ages
        put = service.put_many([b"one", b"two", b"three", bytes(300_000), b""])
        with service.open_write() as writer:
            writer.write(_large())
            put.append(writer.close())
        aged = self.blobs_aged(service)
        assert set(aged) == set(service.list())
        assert set(aged) == {*put} - {b3_digest(b"")}
        assert all(is_fresh(one.stamp) and not one.is_chunk for one in aged.values())
        chunks = self.chunks_aged(service)
        assert all(is_fresh(one.stamp) and one.is_chunk for one in chunks.values())
        for digest, one in aged.items():
            stored = {chunk.digest for chunk in service.stored_chunks(digest)}
            assert stored <= chunks.keys()
            assert bool(stored) == one.is_list
        self.make_older(service, MIN_GRACE)
        old = [*self.blobs_aged(service).values(), *self.chunks_aged(service).values()]
        assert not any(is_fresh(one.stamp) for one in old)

    @pytest.mark.parametrize(
        "asked", ["missing", "missing_blobs", "has", "keep", "freshen", "put_many", "put_in_a_batch", "write"]
    )
    def test_what_is_asked_for_or_put_again_is_fresh(self, service: BlobService, asked: str) -> None:
        assert service.tells_ages
        contents = [b"asked", _large()]
        digests = [_write(service, one) for one in contents]
        (other,) = service.put_many([b"other"])
        self.make_older(service, MIN_GRACE)
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
        aged, chunks = self.blobs_aged(service), self.chunks_aged(service)
        for digest in digests:
            assert is_fresh(aged[digest].stamp)
            assert all(is_fresh(chunks[chunk.digest].stamp) for chunk in service.stored_chunks(digest))
        assert not is_fresh(aged[other].stamp)

    def test_reading_for_a_collection_freshens_nothing(self, service: BlobService) -> None:
        assert service.tells_ages
        digest = _write(service, _large())
        self.make_older(service, MIN_GRACE)
        service.stored_chunks(digest)
        service.list()
        assert not any(is_fresh(one.stamp) for one in self.blobs_aged(service).values())
        assert not any(is_fresh(one.stamp) for one in self.chunks_aged(service).values())

    def test_deleting_by_age(self, service: BlobService) -> None:
        assert service.tells_ages
        goes, stays, large = [*service.put_many([b"goes", b"stays"]), _write(service, _large())]
        self.make_older(service, FRESH_FOR + _CLOCKS)
        old, chunks = self.blobs_aged(service), self.chunks_aged(service)
        assert service.missing([stays]) == []
        absent = Aged(bytes(32), 0)
        assert service.delete_aged([old[goes], old[stays], old[large], absent]) == 2
        assert service.list() == [stays]
        # Chunks that lie apart are deleted apart; of a blob in one piece nothing is left before that.
        service.delete_aged([one for one in chunks.values() if one.digest != stays])
        assert service.missing([goes, stays, large]) == [goes, large]
        assert service.read(stays) == b"stays"
        assert service.delete_aged([old[goes]]) == 0
        assert service.delete_aged([]) == 0


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
        aged = all_aged(service.list_aged)
        assert set(aged) == put
        assert all(is_fresh(one.stamp) for one in aged.values())
        self.make_older(service, MIN_GRACE)
        assert not any(is_fresh(one.stamp) for one in all_aged(service.list_aged).values())

    def test_what_is_put_again_or_freshened_is_fresh(self, service: DirectoryService) -> None:
        assert service.tells_ages
        again, asked, read = (self.put_root(service, name) for name in ("again", "asked", "read"))
        self.make_older(service, MIN_GRACE)
        assert self.put_root(service, "again") == again
        assert service.freshen([asked, bytes(32)]) == [bytes(32)]
        assert len(list(service.get_recursive(read))) == 1
        aged = all_aged(service.list_aged)
        assert is_fresh(aged[again].stamp)
        assert is_fresh(aged[asked].stamp)
        assert not is_fresh(aged[read].stamp)

    def test_deleting_by_age(self, service: DirectoryService) -> None:
        assert service.tells_ages
        goes, stays = (self.put_root(service, name) for name in ("goes", "stays"))
        self.make_older(service, FRESH_FOR + _CLOCKS)
        old = all_aged(service.list_aged)
        assert service.freshen([stays]) == []
        assert service.delete_aged([old[goes], old[stays], Aged(bytes(32), 0)]) == 1
        assert list(all_aged(service.list_aged)) == [stays]
        assert list(service.get_recursive(goes)) == []
        assert len(list(service.get_recursive(stays))) == 1
        assert service.delete_aged([]) == 0


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
