"""Directories in an object store, as tvix and snix keep them: one object for each closure.

Only the roots that were stored can be asked for. Whatever walks a tree begins with its root, which brings
all of the closure: that is held (``closures``), and asked for again if it was let go of.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import IO

from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import Digest, check_digest, format_digest
from neve.castore.directories.base import DirectoryPutter, DirectoryService
from neve.castore.directories.closures import Closure, HeldClosures
from neve.castore.directories.spool import SpoolingPutter
from neve.castore.directory import Directory, child_digests
from neve.castore.objectstore.bucket import Bucket, repeated
from neve.castore.objectstore.layout import DIRECTORIES, key_of, pack_closure, unpack_closure
from neve.errors import Unsupported
from neve.packstore.layout import temporary_errors
from neve.registry import Address

_PART_BYTES = 5 * 1024 * 1024
"""A closure that is longer is sent in parts, and waits for that on the disk."""


class ObjectDirectoryService(DirectoryService):
    """Directories of one store. Owns ``bucket``."""

    looks_up_children = False

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._held = HeldClosures()
        self._fetching: dict[Digest, Future[Closure | None]] = {}
        self._lock = threading.Lock()

    # Getting.

    def get(self, digest: Digest) -> Directory | None:
        return self.get_many([digest]).get(digest)

    def get_many(self, digests: Sequence[Digest]) -> dict[Digest, Directory]:
        found: dict[Digest, Directory] = {}
        wanted = list(dict.fromkeys(check_digest(digest) for digest in digests))
        # As many at once as there are requests; nothing but the Directories is kept of closures let go of.
        at_once = self._bucket.settings.parallel
        for start in range(0, len(wanted), at_once):
            asked = [(digest, self._asked(digest)) for digest in wanted[start : start + at_once]]
            for digest, answer in asked:
                encoded = answer()
                if encoded is not None:
                    found[digest] = Directory.decode(encoded, digest=digest, validated=True)
        return found

    def _asked(self, digest: Digest) -> Callable[[], bytes | None]:
        """Asks for what is not at hand; the answer is the encoding, once it is there."""
        closure = self._held.containing(digest)
        if closure is not None:
            held = closure
            return lambda: held.encoded(digest)
        root = self._held.root_of(digest)
        futures = [self._fetched(digest if root is None else root)]

        def answer() -> bytes | None:
            found = _encoded(futures[0].result(), digest)
            if found is None and root is not None:
                # The closure that it came with is gone; it may be the root of another.
                found = _encoded(self._fetched(digest).result(), digest)
            return found

        return answer

    def _fetched(self, root: Digest) -> Future[Closure | None]:
        """The closure of a root, held; fetched once for all who want it now."""
        with self._lock:
            held = self._held.of_root(root)
            if held is not None:
                future: Future[Closure | None] = Future()
                future.set_result(held)
                return future
            under_way = self._fetching.get(root)
            if under_way is None:
                under_way = self._fetching[root] = self._bucket.calls.submit(self._fetch, root)
            return under_way

    def _fetch(self, root: Digest) -> Closure | None:
        """Runs in the bucket's threads."""
        try:
            closure = repeated(lambda: self._received(root))
            if closure is not None:
                self._held.add(closure)
            return closure
        finally:
            with self._lock:
                self._fetching.pop(root, None)

    def _received(self, root: Digest) -> Closure | None:
        pieces = self._bucket.pieces(key_of(DIRECTORIES, root))
        if pieces is None:
            return None
        closure = Closure(root)
        for directory in unpack_closure(root, pieces, DEFAULT_LIMITS):
            closure.add(directory)
        return closure

    def read_ahead(self, digest: Digest) -> None:
        if self._held.containing(check_digest(digest)) is None:
            self._fetched(digest).result()

    def get_recursive(self, digest: Digest) -> Iterator[Directory]:
        for encoded in self.get_recursive_encoded(digest):
            yield Directory.decode(encoded, validated=True)

    def get_recursive_encoded(self, digest: Digest) -> Iterator[bytes]:
        check_digest(digest)
        closure = self._held.of_root(digest)
        if closure is None and self._held.containing(digest) is None:
            closure = self._fetched(self._held.root_of(digest) or digest).result()
        if closure is not None and closure.root == digest:
            yield from closure.all_encoded()
        else:
            # Below the root of another closure; or of none that is there.
            yield from self._breadth_first(digest, self._get_encoded, child_digests)

    def _get_encoded(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        found = ((digest, self._asked(digest)()) for digest in digests)
        return {digest: encoded for digest, encoded in found if encoded is not None}

    # Putting.

    def put(self, directory: Directory) -> Digest:
        self.put_many([directory])
        return directory.digest

    def put_many(self, directories: Sequence[Directory]) -> None:
        for directory in directories:
            if next(directory.directories(), None) is not None:
                raise Unsupported(
                    f"{self._bucket.settings.url} keeps whole closures: Directory "
                    f"{format_digest(directory.digest)} has child directories, put it together with them"
                )
        distinct = {directory.digest: directory.encode() for directory in directories}
        for _ in self._bucket.map(self._put_one, distinct.items()):
            pass

    def _put_one(self, one: tuple[Digest, bytes]) -> None:
        digest, encoded = one
        self._bucket.put(key_of(DIRECTORIES, digest), b"".join(pack_closure([encoded])))

    def put_multiple(self, limits: ClosureLimits = DEFAULT_LIMITS) -> DirectoryPutter:
        return _Putter(self._bucket, limits)

    # Care.

    def list_with_ages(self, after: Digest = b"", limit: int = 1000) -> list[tuple[Digest, float]]:
        """Roots only, as ``list``."""
        return [(one.digest, one.age) for one in self._bucket.page(DIRECTORIES, after, limit)]

    def freshen(self, digests: Sequence[Digest]) -> list[Digest]:
        """Makes closures count as new, by their roots; gives those that are not there."""
        keys = [key_of(DIRECTORIES, check_digest(digest)) for digest in digests]
        there = zip(digests, self._bucket.map(self._bucket.is_kept, keys), strict=True)
        return [digest for digest, is_there in there if not is_there]

    def remove_leftovers(self, unused_for: float) -> int:
        return self._bucket.remove_leftovers(DIRECTORIES, unused_for)

    def list(self, after: Digest = b"", limit: int = 1000) -> list[Digest]:
        return [one.digest for one in self._bucket.page(DIRECTORIES, after, limit)]

    def delete_many(self, digests: Sequence[Digest], *, unused_for: float | None = None) -> int:
        keys = [(digest, key_of(DIRECTORIES, digest)) for digest in {check_digest(each) for each in digests}]
        found = self._bucket.map(lambda each: self._bucket.head(each[1]), keys)
        gone = [
            each
            for each, meta in zip(keys, found, strict=True)
            if meta is not None and (unused_for is None or meta.age >= unused_for)
        ]
        self._bucket.delete([key for _, key in gone])
        self._held.forget(digest for digest, _ in gone)
        return len(gone)

    def close(self) -> None:
        self._held.clear()
        self._bucket.close()


def _encoded(closure: Closure | None, digest: Digest) -> bytes | None:
    return None if closure is None else closure.encoded(digest)


class _Putter(SpoolingPutter):
    """Stores a closure once it is known to be valid, in the other order than it comes in."""

    def __init__(self, bucket: Bucket, limits: ClosureLimits) -> None:
        super().__init__(limits)
        self._bucket = bucket
        self._last: Digest = b""

    def _keep(self, encoded: bytes, digest: Digest) -> None:
        self._last = digest
        super()._keep(encoded, digest)

    def _commit(self) -> None:
        self._bucket.call(self._send, self._last)

    def _send(self, root: Digest) -> None:
        key = key_of(DIRECTORIES, root)
        with tempfile.SpooledTemporaryFile(_PART_BYTES, dir=self._folder) as packed:
            for piece in pack_closure(self._root_to_leaves(root)):
                with self._errors():
                    packed.write(piece)
            size = packed.tell()
            packed.seek(0)
            if size <= _PART_BYTES:
                self._bucket.put(key, packed.read())
            else:
                self._bucket.put_pieces(key, _parts(packed))

    def _root_to_leaves(self, root: Digest) -> Iterator[bytes]:
        """Breadth first, each once."""
        places: dict[Digest, tuple[int, int]] = {}
        position = 0
        for digest, encoded in self._spooled():
            places[digest] = position + 36, len(encoded)
            position += 36 + len(encoded)
        level, known = [root], {root}
        while level:
            below: list[Digest] = []
            for digest in level:
                encoded = self._at(*places[digest])
                for child in child_digests(encoded):
                    if child not in known:
                        known.add(child)
                        below.append(child)
                yield encoded
            level = below

    def _at(self, start: int, length: int) -> bytes:
        with self._errors():
            self._spool.seek(start)
            return self._spool.read(length)


def _parts(file: IO[bytes]) -> Iterator[bytes]:
    while True:
        with temporary_errors("cannot read Directories"):
            part = file.read(_PART_BYTES)
        if not part:
            return
        yield part


def open_objectstore(address: Address) -> ObjectDirectoryService:
    """``objectstore+s3://bucket/prefix``, and so on with ``file``, ``memory``, ``gs``, ``az``, ``http(s)``"""
    return ObjectDirectoryService(Bucket.open(address))
