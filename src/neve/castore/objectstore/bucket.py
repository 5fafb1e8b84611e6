"""One store of objects: requests of all kinds, errors translated, and many requests at once.

The library repeats what failed for a moment (connections, statuses 5xx and 429) with growing pauses and
jitter. What it cannot repeat is an answer that breaks off: that is asked for again here.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from neve.castore.ages import SLACK
from neve.castore.at_once import CallsAtOnce
from neve.castore.digest import Digest
from neve.castore.objectstore.failures import BrokenOff, is_no_bucket, is_of_library, translated
from neve.castore.objectstore.layout import digest_in, folder, is_folder, key_of
from neve.castore.objectstore.settings import Settings, settings_of
from neve.errors import Corrupt, InvalidRequest, Unavailable, Unsupported
from neve.packstore.layout import temporary_errors
from neve.registry import Address

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

    from neve.castore.objectstore.files import DurableFiles

T = TypeVar("T")
Item = TypeVar("Item")

_ATTEMPTS = 4
_FIRST_PAUSE = 0.1
"""For answers that break off. Seconds; each pause is twice the last, shortened at random by up to half."""

_PIECE_BYTES = 1024 * 1024
_PART_BYTES = 5 * 1024 * 1024
"""Of an upload in parts: the least that S3 takes."""

_WHOLE_BYTES = 5 * 1024 * 1024
"""What is longer is made new without being held."""

_DELETED_AT_ONCE = 1000
"""Keys in one request: the most that S3 takes."""

_FOLDERS_AT_ONCE = 64


class Meta(NamedTuple):
    """What is known of an object without reading it."""

    size: int
    """Bytes, as they are stored."""
    modified: float
    """Seconds since 1970, by the clock of the store."""

    @property
    def age(self) -> float:
        """Seconds since it was written, if our clock and that of the store agree."""
        return time.time() - self.modified


class Listed(NamedTuple):
    """An object in a listing."""

    digest: Digest
    modified: float
    """Seconds since 1970, by the clock of the store."""
    size: int
    """Bytes, as they are stored."""

    @property
    def age(self) -> float:
        """Seconds since it was written, if our clock and that of the store agree."""
        return time.time() - self.modified


class Bucket:
    """The objects at one address. Thread-safe."""

    def __init__(self, store: ObjectStore, settings: Settings, files: DurableFiles | None = None) -> None:
        """``files`` writes instead of ``store``."""
        self._store = store
        self.settings = settings
        self._files = files
        self._calls = CallsAtOnce(settings.parallel, "neve-objects")
        self._checked = not settings.has_bucket
        self._checking = threading.Lock()

    @classmethod
    def open(cls, address: Address) -> Bucket:
        """Connects when first used. Raises ``InvalidRequest``, ``Unsupported`` without the library."""
        settings = settings_of(address)
        try:
            from obstore.store import LocalStore, from_url
        except ImportError as error:
            raise Unsupported(
                f"{settings.url}: object stores need obstore; install it: pip install 'neve[objectstore]'"
            ) from error
        try:
            if settings.folder is not None:
                from neve.castore.objectstore.files import DurableFiles

                return cls(LocalStore(settings.folder, mkdir=True), settings, DurableFiles(settings.folder))
            return cls(from_url(settings.library_url, **settings.options), settings)
        except Exception as error:  # ValueError, TypeError and its own: all of them about what was given
            raise _refusal(address, error) from error

    # One object.

    def head(self, key: str) -> Meta | None:
        """What is known of an object, or None."""
        return repeated(lambda: self._head(key))

    def _head(self, key: str) -> Meta | None:
        with self._errors("ask for", key):
            try:
                return _meta(self._store.head(key))
            except FileNotFoundError:
                self._check_bucket()
                return None

    def get(self, key: str, most: int) -> bytes | None:
        """An object, or None. Raises ``Corrupt`` instead of reading more than ``most`` bytes."""

        def attempt() -> bytes | None:
            pieces = self.pieces(key, most)
            return None if pieces is None else b"".join(pieces)

        return repeated(attempt)

    def pieces(self, key: str, most: int | None = None) -> Iterator[bytes] | None:
        """An object in pieces of about 1 MiB, or None. Raises ``BrokenOff`` while iterating."""
        with self._errors("read", key):
            try:
                result = self._store.get(key)
            except FileNotFoundError:
                self._check_bucket()
                return None
        size = result.meta["size"]
        if most is not None and size > most:
            raise Corrupt(f"{self._named(key)} has {size} bytes, at most {most} make sense")
        return self._pieces(key, result, size)

    def _pieces(self, key: str, result: Any, size: int) -> Iterator[bytes]:
        pieces = iter(result.stream(_PIECE_BYTES))
        left = size
        while True:
            with self._errors("read", key, in_answer=True):
                piece = next(pieces, None)
            if piece is None:
                break
            left -= len(piece)
            if left < 0:
                raise Unavailable(f"{self._named(key)}: more than the {size} bytes come that were announced")
            yield bytes(piece)
        if left:
            raise BrokenOff(f"{self._named(key)}: {size - left} bytes came instead of {size}")

    def put(self, key: str, data: bytes) -> None:
        """Writes an object whole, in place of what was there; durable on return."""
        if self._files is not None:
            self._files.put(key, [data])
            return
        repeated(lambda: self._put(key, data))

    def _put(self, key: str, data: bytes) -> None:
        with self._errors("write", key):
            self._store.put(key, data, use_multipart=False)

    def put_pieces(self, key: str, pieces: Iterable[bytes]) -> None:
        """The same for a long one, in parts."""
        if self._files is not None:
            self._files.put(key, pieces)
            return
        with self._errors("write", key):
            self._store.put(key, pieces, chunk_size=_PART_BYTES)

    def freshen(self, key: str, meta: Meta) -> bool:
        """Writes what is there anew, so that it counts as new; false if it is gone since ``meta``."""
        if meta.size > _WHOLE_BYTES:
            return repeated(lambda: self._freshen_long(key))
        data = self.get(key, 2 * _WHOLE_BYTES) if meta.size else b""
        if data is not None:
            self.put(key, data)
        return data is not None

    def _freshen_long(self, key: str) -> bool:
        pieces = self.pieces(key)
        if pieces is None:
            return False
        # The library cannot send what it is still receiving.
        with temporary_errors("cannot hold an object"), tempfile.TemporaryFile() as file:
            file.writelines(pieces)
            file.seek(0)
            self.put_pieces(key, iter(lambda: file.read(_PIECE_BYTES), b""))
        return True

    def is_kept(self, key: str) -> bool:
        """Whether an object is there; then it is made to stay."""
        meta = self.head(key)
        return meta is not None and (meta.age <= SLACK or self.freshen(key, meta))

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; those that are not there too."""
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            part = keys[start : start + _DELETED_AT_ONCE]
            repeated(lambda part=part: self._delete(part))  # type: ignore[misc]

    def _delete(self, keys: Sequence[str]) -> None:
        with self._errors("delete", keys[0]):
            try:
                self._store.delete(keys)
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise
                # Somebody else has deleted one, and some stores do not go on with the others then.
                for key in keys if len(keys) > 1 else ():
                    self._delete([key])

    # Many at once.

    def map(self, function: Callable[[Item], T], items: Iterable[Item]) -> Generator[T, None, None]:
        """What ``function`` makes of each item, in order, several at once. None of them may call this."""
        return self._calls.map(function, items)

    def call(self, function: Callable[[Item], T], item: Item) -> T:
        """The same for one: so that who waits can be interrupted, and the bound on requests holds."""
        return self._calls.submit(function, item).result()

    @property
    def calls(self) -> CallsAtOnce:
        """The threads that make requests."""
        return self._calls

    # Listing.

    def page(self, table: str, after: Digest, limit: int) -> list[Listed]:
        """Up to ``limit`` objects of a table whose digests are greater than ``after``, ascending."""
        return repeated(lambda: self._page(table, after, limit)) if limit > 0 else []

    def _page(self, table: str, after: Digest, limit: int) -> list[Listed]:
        in_order = self._in_order if self.settings.lists_in_order else self._by_folder
        page: list[Listed] = []
        for one in in_order(table, after, limit):
            if one.digest > after:
                if page and one.digest <= page[-1].digest:
                    # Pages would leave out some, and a collection what those need.
                    raise Unsupported(f"{self.settings.url} does not list objects in order")
                page.append(one)
                if len(page) == limit:
                    break
        return page

    def _in_order(self, table: str, after: Digest, limit: int) -> Iterator[Listed]:
        offset = key_of(table, after) if after else None
        yield from self._listed(table, folder(table), offset, limit)

    def _by_folder(self, table: str, after: Digest, limit: int) -> Iterator[Listed]:
        """For stores that list in any order, or always from the start: each folder holds few enough."""
        with self._errors("list", folder(table)):
            found = self._store.list_with_delimiter(folder(table))["common_prefixes"]
        # By their own names: WebDAV has the path of the address before them, and has what was asked for, too.
        names = sorted(name for path in found if is_folder(name := path.rpartition("/")[2]))
        folders = [f"{folder(table)}/{name}" for name in names if name >= after[:2].hex()]
        # Not more at once than a page may need: each is at hand as a whole.
        for start in range(0, len(folders), at_once := min(_FOLDERS_AT_ONCE, limit)):
            part = folders[start : start + at_once]
            for listed in self.map(lambda name: sorted(self._listed(table, name, None, 1000)), part):
                yield from listed

    def _listed(self, table: str, prefix: str, offset: str | None, limit: int) -> Iterator[Listed]:
        with self._errors("list", prefix):
            stream = iter(self._store.list(prefix, offset=offset, chunk_size=min(limit, 1000)))
        while True:
            with self._errors("list", prefix):
                objects = next(stream, None)
            if objects is None:
                return
            for meta in objects:
                digest = digest_in(table, meta["path"])
                if digest is not None:  # Else it is somebody else's.
                    yield Listed(digest, meta["last_modified"].timestamp(), meta["size"])

    def remove_leftovers(self, table: str, unused_for: float) -> int:
        """Removes files that were never finished; of what is no folder the store itself cleans up."""
        return 0 if self._files is None else self._files.remove_leftovers(folder(table), unused_for)

    # Failures.

    def _named(self, key: str) -> str:
        return f"{self.settings.url}: {key}"

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str, *, in_answer: bool = False) -> Iterator[None]:
        """Translates what the library raises; ``in_answer``: what might pass is ``BrokenOff``."""
        try:
            yield
        except Exception as error:
            if not is_of_library(error):
                raise
            ours = translated(error, f"{self.settings.url}: cannot {verb} {key}")
            if in_answer and type(ours) is Unavailable:
                ours = BrokenOff(str(ours))
            raise ours from error

    def _check_bucket(self) -> None:
        """Raises the library's error if there is no bucket: then nothing at all is found. Looks once."""
        if not self._checked:
            with self._checking:
                self._look_for_bucket()

    def _look_for_bucket(self) -> None:
        if self._checked:
            return
        try:
            next(iter(self._store.list(chunk_size=1)), None)
        except Exception as error:  # Who may not list, or asks in a bad moment, goes on without.
            if is_no_bucket(error):
                raise
        self._checked = True

    def close(self) -> None:
        """Requests under way come to their end by themselves. Can be called again."""
        self._calls.close(wait=False)


def repeated(attempt: Callable[[], T]) -> T:
    """What ``attempt`` gives, which is called again, after a pause, when an answer breaks off."""
    for number in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except BrokenOff:
            time.sleep(_FIRST_PAUSE * 2**number * random.uniform(0.5, 1))
    return attempt()


def _meta(meta: ObjectMeta) -> Meta:
    return Meta(meta["size"], meta["last_modified"].timestamp())


def _refusal(address: Address, error: Exception) -> InvalidRequest:
    # Not the library's words, in which values might be.
    reason = " ".join(str(error).split())
    values = (" ".join(value.split()) for value in address.parameters.values())
    if any(value and value in reason for value in values):
        reason = "a parameter has a value that cannot be used"
    return address.refuse(reason)
