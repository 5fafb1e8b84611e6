"""NARs as zstd frames: what is stored goes as it is, and nothing that is wrong leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from neve.castore.digest import b3_digest
from neve.castore.node import FileNode, Node
from neve.errors import Corrupt, NotFound
from neve.http_cache.zstd_frames import ZstdFrames, compressed, stored_frame
from neve.nix.compression import decompressed
from neve.store.services import Services, open_services
from neve.tree import LEAVE_DIRECTORY, BeginFile, Data, EndFile, EnterDirectory, Event, File
from tests.http_cache.samples import sha256
from tests.store.helpers import encoded, memory_services, stored

TEXT = b"".join(b"line %d of some text\n" % i for i in range(150_000))
NOISE = b"".join(sha256(b"%d" % i) for i in range(40_000))


@pytest.mark.parametrize("size", [1, 255, 65_535, 128 * 1024, 128 * 1024 + 1, 1_000_000])
def test_frames_of_anything(size: int) -> None:
    for data in (NOISE[:size], TEXT[:size], bytes(size)):
        for frame in (compressed(data), stored_frame(data), stored_frame(memoryview(data))):
            assert zstandard.frame_content_size(frame) == size
            assert b"".join(decompressed([frame], "zstd")) == data
            assert zstandard.ZstdDecompressor().decompress(frame) == data
            assert len(frame) <= size + 9 + 3 * (size // (128 * 1024) + 1)


@pytest.fixture(params=["memory", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    opened = memory_services() if request.param == "memory" else open_services(f"local://{tmp_path}/store")
    yield opened
    opened.close()


def large(name: bytes, contents: bytes) -> list[Event]:
    return [BeginFile(name, False, len(contents)), Data(contents), EndFile()]


TREES: dict[str, list[Event]] = {
    "one small file": [File(b"", False, b"x")],
    "one large file": large(b"", TEXT),
    "small ones": [
        EnterDirectory(b""),
        *[File(b"%05d" % i, False, TEXT[i : i + 1000]) for i in range(3000)],
        LEAVE_DIRECTORY,
    ],
    "both": [
        EnterDirectory(b""),
        *large(b"a", TEXT),
        File(b"b", True, b"small"),
        *large(b"c", NOISE),
        *large(b"d", NOISE[:700_000] + TEXT[:700_000]),
        LEAVE_DIRECTORY,
    ],
}


def frames_of(services: Services, root: Node) -> tuple[int, bytes]:
    """Bytes of the NAR as they are counted, and the frames."""
    frames = ZstdFrames(services.blobs)
    try:
        found = list(frames.of(services.renderer.segments(root)))
    finally:
        frames.close()
    return sum(size for size, _ in found), b"".join(data for _, data in found)


@pytest.mark.parametrize("name", TREES)
def test_together_they_are_the_nar(services: Services, name: str) -> None:
    nar = encoded(TREES[name])
    size, data = frames_of(services, stored(services, TREES[name]))
    assert size == len(nar)
    assert b"".join(decompressed([data], "zstd")) == nar
    assert len(data) < len(nar) * 1.01 + 100


def test_stored_frames_go_as_they_are(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path}/store")
    try:
        _, data = frames_of(services, stored(services, large(b"", TEXT)))
    finally:
        services.close()
    [pack] = (tmp_path / "store" / "packs").iterdir()
    stored_bytes = pack.read_bytes()
    # Frames between the head of the NAR and its end.
    middle = data[len(data) // 2 :][:1000]
    assert middle in stored_bytes


def test_what_is_not_there_or_not_what_it_says(services: Services) -> None:
    for size in (100, 1_000_000):
        contents = TEXT[:size]
        digest = services.blobs.put_many([contents])[0] if size < 500_000 else b3_digest(contents)
        if size > 500_000:
            with services.blobs.open_write() as writer:
                writer.write(contents)
                assert writer.close() == digest
        for wrong in (size - 1, size + 1, size + 600_000):
            with pytest.raises(Corrupt, match=f"has {size} bytes"):
                frames_of(services, FileNode(digest, wrong, False))
        with pytest.raises(NotFound):
            frames_of(services, FileNode(bytes(32), size, False))


def test_a_damaged_chunk(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path}/store")
    root = stored(services, TREES["both"])
    services.close()
    [pack] = (tmp_path / "store" / "packs").iterdir()
    data = bytearray(pack.read_bytes())
    data[data.index(NOISE[900_000:900_100])] ^= 1
    pack.write_bytes(data)
    services = open_services(f"local://{tmp_path}/store")
    try:
        with pytest.raises(Corrupt):
            frames_of(services, root)
    finally:
        services.close()


def test_who_leaves_early_leaves_nothing_running(tmp_path: Path) -> None:
    services = open_services(f"local://{tmp_path}/store")
    frames = ZstdFrames(services.blobs)
    try:
        made = frames.of(services.renderer.segments(stored(services, TREES["both"])))
        next(made)
        made.close()  # type: ignore[attr-defined]
        assert list(made) == []
    finally:
        frames.close()
        services.close()
