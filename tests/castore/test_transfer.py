"""Copying blobs between services that are ours, foreign, or wrong."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from neve.castore.blobs.base import BlobReader, BlobService, BlobWriter, Chunk
from neve.castore.blobs.bundle import Answer, Bundle
from neve.castore.blobs.memory import MemoryBlobService
from neve.castore.blobs.transfer import BlobCopies
from neve.castore.blobs.urls import BLOB_SERVICES
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest
from neve.errors import Corrupt, LimitExceeded, NeveError, NotFound, Unavailable
from neve.server.limits import Limits
from neve.testing.servers import running_daemon
from neve.tree import WHOLE_FILE_LIMIT
from tests.server.foreign import foreign_server

from .damage import damage_blob

KINDS = ("memory", "local", "daemon", "foreign")


@contextlib.contextmanager
def service(kind: str, folder: Path) -> Iterator[BlobService]:
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        url = f"local://{folder}/store" if kind == "local" else "memory://"
        if kind == "daemon":
            url = stack.enter_context(running_daemon(f"local://{folder}/store", folder=folder)).url
        elif kind == "foreign":
            url = stack.enter_context(foreign_server())
        opened = BLOB_SERVICES.open(url)
        stack.callback(opened.close)
        yield opened


def blobs(count: int = 60) -> list[bytes]:
    numbers = random.Random(count)
    small = [numbers.randbytes(numbers.randrange(1, 5000)) for _ in range(count)]
    text = [b"line %d of many\n" % i * 200 for i in range(count)]
    edge = [numbers.randbytes(WHOLE_FILE_LIMIT), numbers.randbytes(WHOLE_FILE_LIMIT + 1)]
    return [*small, *text, *edge, numbers.randbytes(2_500_000), bytes(3_000_000)]


def copied(source: BlobService, target: BlobService, wanted: dict[Digest, int | None]) -> BlobCopies:
    with BlobCopies(source, target) as copies:
        items = list(wanted.items())
        for start in range(0, len(items), 25):
            copies.add(dict(items[start : start + 25]))
        copies.finish()
    return copies


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_from_any_to_any(source_kind: str, target_kind: str, tmp_path: Path) -> None:
    given = blobs()
    with service(source_kind, tmp_path / "a") as source, service(target_kind, tmp_path / "b") as target:
        digests = source.put_many(given)
        wanted: dict[Digest, int | None] = {
            digest: len(blob) if number % 2 else None
            for number, (digest, blob) in enumerate(zip(digests, given, strict=True))
        }
        wanted[EMPTY_BLOB] = 0
        copies = copied(source, target, wanted)
        assert copies.failures == {}
        assert (copies.copied, copies.copied_bytes) == (len(given), sum(map(len, given)))
        assert [target.read(digest) for digest in digests] == given
        again = copied(source, target, wanted)
        assert (again.copied, again.failures) == (0, {})


@pytest.mark.parametrize("target_kind", KINDS[:3])
def test_chunks_that_the_target_has(target_kind: str, tmp_path: Path) -> None:
    numbers = random.Random(3)
    common = numbers.randbytes(3_000_000)
    with service("local", tmp_path / "a") as source, service(target_kind, tmp_path / "b") as target:
        target.put_many([common + b"its end"])
        contents = common + b"another end"
        [digest] = source.put_many([contents])
        assert copied(source, target, {digest: len(contents)}).failures == {}
        assert target.read(digest) == contents


@pytest.mark.parametrize("source_kind", ["local", "daemon"])
def test_damage_keeps_no_other_blob_from_being_copied(source_kind: str, tmp_path: Path) -> None:
    given = blobs()
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(service("local", tmp_path / "a"))
        target = stack.enter_context(service("local", tmp_path / "b"))
        digests = local.put_many(given)
        source = local
        if source_kind == "daemon":
            daemon = stack.enter_context(running_daemon(f"local://{tmp_path}/a/store", folder=tmp_path))
            source = BLOB_SERVICES.open(daemon.url)
            stack.callback(source.close)
        chunks = local.chunks(digests[-2])
        assert chunks
        damage_blob(local, chunks[1].digest)
        damage_blob(local, digests[-4])
        absent = b3_digest(b"absent")
        copies = copied(source, target, {**dict.fromkeys(digests), absent: 6})
        failed = {digest: type(error) for (digest, _), error in copies.failures.items()}
        assert failed == {digests[-2]: Corrupt, digests[-4]: Corrupt, absent: NotFound}
        whole = [digest for digest in digests if digest not in failed]
        assert target.missing(whole) == []
        assert copied(local, target, {digests[-2]: 1}).failures


class Liar(MemoryBlobService):
    """Tells what it is told to tell about chunks and bundles, and reads right."""

    def __init__(self, chunks: Sequence[Chunk] = (), answers: Sequence[Answer] = ()) -> None:
        super().__init__()
        self._told = list(chunks)
        self._answers = list(answers)

    def stored_chunks(self, digest: Digest) -> list[Chunk]:
        return self._told

    def read_bundles(self, digests: Sequence[Digest], limit: int = WHOLE_FILE_LIMIT) -> Iterator[Answer]:
        return iter(self._answers)


LARGE = random.Random(8).randbytes(1_500_000)


@pytest.mark.parametrize(
    "chunks",
    [
        [Chunk(b3_digest(b"nowhere"), 1_500_000 // 4)] * 4,
        [Chunk(b3_digest(LARGE[:1000]), 1000)] * 1500,
        [Chunk(b3_digest(LARGE), len(LARGE))],
        [Chunk(b3_digest(b"x"), 1)] * 600_000,
    ],
    ids=["absent", "others", "one", "tiny"],
)
@pytest.mark.parametrize("target_kind", ["local", "memory"])
def test_wrong_chunks_are_not_believed(target_kind: str, chunks: list[Chunk], tmp_path: Path) -> None:
    source = Liar(chunks)
    for contents in (LARGE, LARGE[:1000], b"x"):
        source.add(contents)
    with service(target_kind, tmp_path / "b") as target:
        assert copied(source, target, {b3_digest(LARGE): len(LARGE)}).failures == {}
        assert target.read(b3_digest(LARGE)) == LARGE


def answer(data: bytes, *blobs: tuple[int, int, int], zstd: bool = False) -> Answer:
    places, starts, sizes = map(list, zip(*blobs, strict=True))
    return Answer(data, zstd, sum(sizes), places, starts, sizes)


@pytest.mark.parametrize("sizes", [(5, 4), (None, None)], ids=["of known length", "of any length"])
@pytest.mark.parametrize(
    "answers",
    [
        [],
        [answer(b"wrong", (0, 0, 5))],
        [answer(b"right", (0, 0, 5), zstd=True)],
        [answer(b"rightmore", (0, 0, 5), (1, 5, 4))],
        [answer(b"right", (0, 0, 50))],
        [answer(b"right", (0, 0, 1 << 40))],
        [answer(b"righ", (0, 0, 4))],
        [Answer(absent=[0])],
        [Answer(apart=[0, 1])],
    ],
)
def test_wrong_answers_are_not_believed(
    answers: list[Answer], sizes: tuple[int | None, int | None], tmp_path: Path
) -> None:
    source = Liar(answers=answers)
    digests = [source.add(b"right"), source.add(b"good")]
    with service("local", tmp_path / "b") as target:
        copies = copied(source, target, dict(zip(digests, sizes, strict=True)))
        assert (copies.copied, copies.failures) == (2, {})
        assert [target.read(digest) for digest in digests] == [b"right", b"good"]


@pytest.mark.parametrize("wrong", [0, 3, 6, 600_000])
def test_a_blob_of_another_length(wrong: int, tmp_path: Path) -> None:
    with service("local", tmp_path / "a") as source, service("local", tmp_path / "b") as target:
        digest, other = source.put_many([b"right", b"other"])
        copies = copied(source, target, {digest: wrong, other: 5})
        assert list(copies.failures) == [(digest, wrong)]
        assert target.missing([digest, other]) == [digest]


class Failing(MemoryBlobService):
    """Goes away when it is asked."""

    def __init__(self, error: NeveError) -> None:
        super().__init__()
        self._error = error

    def missing_blobs(self, digests: Sequence[Digest]) -> list[Digest]:
        raise self._error

    def open_write(self) -> BlobWriter:
        raise self._error

    def open_read(self, digest: Digest) -> BlobReader | None:
        raise self._error


@pytest.mark.parametrize("side", ["source", "target"])
def test_who_goes_away_ends_it(side: str) -> None:
    good, bad = MemoryBlobService(), Failing(Unavailable("gone"))
    good.add(b"contents")
    source, target = (bad, good) if side == "source" else (good, bad)
    wanted = b3_digest(b"contents" if side == "target" else b"absent")
    with pytest.raises(Unavailable, match="gone"):
        copied(source, target, {wanted: 8})


def test_a_limit_of_the_target_ends_it(tmp_path: Path) -> None:
    limits = Limits(max_blob_bytes=1_000_000)
    with (
        service("local", tmp_path / "a") as source,
        running_daemon(f"local://{tmp_path}/b", folder=tmp_path, limits=limits) as daemon,
    ):
        [digest] = source.put_many([LARGE])
        target = BLOB_SERVICES.open(daemon.url)
        with pytest.raises((LimitExceeded, Unavailable), match="max_blob_bytes"):
            copied(source, target, {digest: len(LARGE)})
        target.close()


def test_what_is_given_up_is_not_committed(tmp_path: Path) -> None:
    with service("local", tmp_path / "a") as source, service("local", tmp_path / "b") as target:
        digests = source.put_many(blobs())
        with BlobCopies(source, target) as copies:
            copies.add(dict.fromkeys(digests))
        assert target.list(limit=1000) == []


def test_an_answer_as_a_bundle() -> None:
    digests = [b3_digest(b"one"), b3_digest(b"three")]
    whole = answer(b"threeone", (0, 5, 3), (1, 0, 5))
    assert whole.as_bundle(digests) == Bundle(digests[::-1], [5, 3], b"threeone")
    assert answer(b"threeone", (0, 5, 3)).as_bundle(digests) is None
    assert answer(b"threeone", (1, 0, 5), (0, 5, 2)).as_bundle(digests) is not None
    assert Answer(b"more", False, 4, [0], [0], [3]).as_bundle(digests) is None
    assert answer(b"oneone", (0, 0, 3), (0, 0, 3)).as_bundle(digests) is None
    assert Answer(absent=[0]).as_bundle(digests) is None
