"""The walk over a tree on disk: what it sees, and what it does when the tree is odd or changes."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from neve.castore.ingest.exclude import exclude_globs
from neve.castore.ingest.filesystem import ChangedWhileRead, FilesystemWalk, show_path
from neve.castore.ingest.stampwalk import stamp_tree
from neve.castore.ingest.statcache import TreeStamp
from neve.errors import InvalidRequest, NeveError, NotFound, PermissionDenied, Unavailable
from neve.testing.strategies import trees
from neve.tree import (
    BATCH_BYTES,
    BATCH_EVENTS,
    LEAVE_DIRECTORY,
    WHOLE_FILE_LIMIT,
    BeginFile,
    Data,
    EndFile,
    EnterDirectory,
    Event,
    File,
    LeaveDirectory,
    Symlink,
)
from tests.store.helpers import leaving_nothing_open, open_files

from .disk import as_nobody, events_of, joined, make_deep, public_folder, write_at


@pytest.fixture
def deep_folder() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


# What it sees


def test_a_tree(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dir/empty").mkdir(parents=True)
    (root / "dir/file").write_bytes(b"contents")
    (root / "tool").write_bytes(b"#!")
    (root / "tool").chmod(0o755)
    (root / "link").symlink_to("dir/nowhere")
    (root / "to-dir").symlink_to("dir")
    assert events_of(root) == [
        EnterDirectory(b""),
        EnterDirectory(b"dir"),
        EnterDirectory(b"empty"),
        LEAVE_DIRECTORY,
        File(b"file", False, b"contents"),
        LEAVE_DIRECTORY,
        Symlink(b"link", b"dir/nowhere"),
        Symlink(b"to-dir", b"dir"),
        File(b"tool", True, b"#!"),
        LEAVE_DIRECTORY,
    ]


def materialize(events: list[Event], place: bytes) -> None:
    way = [place]
    begun = b""
    for event in events:
        if isinstance(event, EnterDirectory):
            way.append(os.path.join(*way[-1:], event.name) if len(way) > 1 else place)
            os.mkdir(way[-1])
        elif isinstance(event, LeaveDirectory):
            way.pop()
        elif isinstance(event, Symlink):
            os.symlink(event.target, os.path.join(way[-1], event.name) if len(way) > 1 else place)
        elif isinstance(event, File | BeginFile):
            begun = os.path.join(way[-1], event.name) if len(way) > 1 else place
            contents = event.contents if isinstance(event, File) else b""
            Path(os.fsdecode(begun)).write_bytes(contents)
            os.chmod(begun, 0o700 if event.executable else 0o655)
        elif isinstance(event, Data):
            with open(begun, "ab") as file:
                file.write(event.data)


@settings(max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(trees(large_files=True))
def test_any_tree(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    place = os.fsencode(tmp_path_factory.mktemp("tree") / "root")
    materialize(events, place)
    assert joined(events_of(place)) == joined(events)


def test_a_file_a_link_and_an_empty_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "empty").mkdir()
    assert events_of(tmp_path / "file") == [File(b"", False, b"x")]
    assert events_of(tmp_path / "link") == [Symlink(b"", b"file")]
    assert events_of(tmp_path / "empty") == [EnterDirectory(b""), LEAVE_DIRECTORY]


@pytest.mark.parametrize(
    ("mode", "executable"),
    [(0o644, False), (0o755, True), (0o700, True), (0o655, False), (0o411, False), (0o7755, True)],
)
def test_executable_is_what_the_owner_may_execute(tmp_path: Path, mode: int, executable: bool) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    file.chmod(mode)
    assert events_of(file) == [File(b"", executable, b"")]
    assert events_of(tmp_path)[1] == File(b"file", executable, b"")


NAMES = [b"\x01", b"\n", b" ", b"A", b"a", b"a-b", b"a.b", b"aa", b"n" * 255, "\u00e9".encode(), b"\xff\xfe"]


def test_names_are_bytes_and_come_in_their_order(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    for i, name in enumerate(reversed(NAMES)):
        if i % 2:
            os.mkdir(os.path.join(root, name))
        else:
            Path(os.fsdecode(os.path.join(root, name))).write_bytes(name)
    names = [event.name for event in events_of(root)[1:] if isinstance(event, File | EnterDirectory)]
    assert names == sorted(NAMES)


def test_the_order_is_that_of_names_alone(tmp_path: Path) -> None:
    """A directory ``a`` comes before ``a.b``, although the paths below it sort after that."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/z").write_bytes(b"")
    (tmp_path / "a-").write_bytes(b"")
    (tmp_path / "a.b").write_bytes(b"")
    shown = [getattr(event, "name", None) for event in events_of(tmp_path)]
    assert shown == [b"", b"a", b"z", None, b"a-", b"a.b", None]


SIZES = [0, 1, WHOLE_FILE_LIMIT - 1, WHOLE_FILE_LIMIT, WHOLE_FILE_LIMIT + 1, 2 * WHOLE_FILE_LIMIT]
SIZES += [BATCH_BYTES - 1, BATCH_BYTES + 1, 3 * BATCH_BYTES + 17]


@pytest.mark.parametrize("size", SIZES)
def test_small_files_come_whole_and_large_ones_in_pieces(tmp_path: Path, size: int) -> None:
    contents = (b"0123456789abcdef!" * (size // 17 + 1))[:size]
    (tmp_path / "file").write_bytes(contents)
    (tmp_path / "next").write_bytes(b"next")
    for path, name in ((tmp_path, b"file"), (tmp_path / "file", b"")):
        events = events_of(path)
        files = [event for event in joined(events) if isinstance(event, File)]
        assert files[0] == File(name, False, contents)
        pieces = [event.data for event in events if isinstance(event, Data)]
        assert bool(pieces) == (size > WHOLE_FILE_LIMIT)
        assert all(0 < len(piece) <= WHOLE_FILE_LIMIT for piece in pieces)


def test_batches_are_bounded(tmp_path: Path) -> None:
    for i in range(BATCH_EVENTS + 100):
        (tmp_path / f"a{i:05}").symlink_to("x")
    for i in range(12):
        (tmp_path / f"b{i:05}").write_bytes(bytes(WHOLE_FILE_LIMIT - 1))
    (tmp_path / "c").write_bytes(bytes(5 * BATCH_BYTES))
    for batch in FilesystemWalk(os.fsencode(tmp_path)):
        size = sum(len(e.contents) for e in batch if isinstance(e, File))
        size += sum(len(e.data) for e in batch if isinstance(e, Data))
        assert 0 < len(batch) <= BATCH_EVENTS
        assert size < BATCH_BYTES + WHOLE_FILE_LIMIT


def test_a_walk_can_tell_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(bytes(BATCH_BYTES))
    walk = FilesystemWalk(os.fsencode(tmp_path))
    batches = iter(walk)
    next(batches)
    assert walk.current == os.fsencode(tmp_path / "a/b")
    assert walk.bytes_read == BATCH_BYTES
    list(batches)
    assert walk.current == os.fsencode(tmp_path)


# Where it begins


def test_ways_to_write_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "root/file").write_bytes(b"x")
    (tmp_path / "to-root").symlink_to("root")
    expected = events_of(tmp_path / "root")
    root = os.fsencode(tmp_path / "root")
    monkeypatch.chdir(tmp_path / "root")
    same = [root + b"/", root + b"//", root + b"/.", root + b"/sub/..", b".", b"./", b"sub/..", b"../root"]
    same += [os.fsencode(tmp_path) + b"/to-root/.", b"../to-root/sub/.."]
    for path in same:
        assert events_of(path) == expected, path
    assert events_of(b"file") == events_of(b"./file") == [File(b"", False, b"x")]
    # A link is a link, however the path to it is written.
    assert events_of(b"../to-root") == events_of(b"../to-root/") == [Symlink(b"", b"root")]


def test_links_on_the_way_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_bytes(b"x")
    (tmp_path / "way").symlink_to("real")
    assert events_of(tmp_path / "way/file") == [File(b"", False, b"x")]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (b"", InvalidRequest, "the path is empty"),
        (b"a\0b", InvalidRequest, "NUL"),
        (b"absent", NotFound, "absent does not exist"),
        (b"absent/below", NotFound, "absent"),
        (b"file/below", NotFound, "Not a directory"),
        (b"loop/below", InvalidRequest, "Too many levels"),
        (b"n" * 256, InvalidRequest, "File name too long"),
        (b"n" * 5000, InvalidRequest, "File name too long"),
        (b"n" * 5000 + b"/below", InvalidRequest, "File name too long"),
        (b"./" * 2000 + b"absent/below", NotFound, "absent"),
        (b"./" * 2000 + b"n" * 4000 + b"/below", InvalidRequest, "File name too long"),
        (b"/proc/self/fd/9999999/below", NotFound, "9999999"),
    ],
)
def test_paths_that_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: bytes, error: type[NeveError], message: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with leaving_nothing_open(), pytest.raises(error, match=message) as raised:
        events_of(path)
    assert type(raised.value) is error


def test_errors_of_the_system_are_not_taken_for_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> int:
        raise OSError(5, "I/O error")

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(Unavailable, match="Input/output error"):
        events_of(b"/etc")


# Depth


def test_two_thousand_levels(deep_folder: Path) -> None:
    """The path is longer than PATH_MAX, and the number of open descriptors is bounded."""
    make_deep(os.fsencode(deep_folder), 2000)
    before = len(open_files())
    most = 0
    events: list[Event] = []
    with leaving_nothing_open():
        for batch in FilesystemWalk(os.fsencode(deep_folder)):
            most = max(most, len(open_files()))
            events += batch
    assert 2 < most - before < 80
    entered = [event for event in events if isinstance(event, EnterDirectory)]
    assert len(entered) == 2001
    assert [e.contents for e in events if isinstance(e, File)] == [
        *(b"a%d" % i for i in range(2000)),
        b"bottom",
        *(b"z%d" % i for i in reversed(range(2000))),
    ]


def test_a_path_longer_than_path_max(deep_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_deep(os.fsencode(deep_folder), 1500)
    way = b"/dir0" * 1500
    monkeypatch.chdir(deep_folder)
    with leaving_nothing_open():
        for path in (os.fsencode(deep_folder) + way, way[1:], b"./" + way.replace(b"/", b"///")):
            assert events_of(path) == [
                EnterDirectory(b""),
                File(b"bottom", False, b"bottom"),
                LEAVE_DIRECTORY,
            ]
            assert events_of(path + b"/bottom") == [File(b"", False, b"bottom")]
            with pytest.raises(NotFound, match="does not exist"):
                events_of(path + b"/absent")
            with pytest.raises(NotFound, match="absent"):
                events_of(path + b"/absent/x")


def test_wide_and_deep(deep_folder: Path) -> None:
    """Many returns to directories whose descriptors were let go."""
    for branch in range(3):
        top = deep_folder / f"b{branch}"
        top.mkdir()
        make_deep(os.fsencode(top), 100)
        for inner in range(2):
            place = top / "/".join(["dir0"] * 50) / f"more{inner}"
            place.mkdir()
            make_deep(os.fsencode(place), 80)
    events = events_of(deep_folder)
    files = [event for event in events if isinstance(event, File)]
    assert len(files) == 3 * (201 + 2 * 161)
    kinds = [type(event) for event in events]
    assert kinds.count(LeaveDirectory) == kinds.count(EnterDirectory) == 1 + 3 * (1 + 100 + 2 * 81)


def test_a_directory_moved_during_a_deep_walk(deep_folder: Path) -> None:
    make_deep(os.fsencode(deep_folder), 150)
    middle = deep_folder / "/".join(["dir0"] * 40)
    bottom = middle / "/".join(["dir0"] * 110)
    (bottom / "bottom").write_bytes(bytes(2 * BATCH_BYTES))
    walk = iter(FilesystemWalk(os.fsencode(deep_folder)))
    with leaving_nothing_open():
        while not any(isinstance(event, Data) for event in next(walk)):
            pass
        (middle / "dir0").rename(deep_folder / "moved")
        with pytest.raises(ChangedWhileRead, match=r"dir0 was moved while the tree was read"):
            list(walk)


def test_a_directory_removed_during_a_deep_walk(deep_folder: Path) -> None:
    make_deep(os.fsencode(deep_folder), 100)
    bottom = deep_folder / "/".join(["dir0"] * 100)
    (bottom / "bottom").write_bytes(bytes(2 * BATCH_BYTES))
    walk = iter(FilesystemWalk(os.fsencode(deep_folder)))
    with leaving_nothing_open():
        next(walk)
        os.system(f"rm -rf {deep_folder}/dir0")
        with pytest.raises(ChangedWhileRead, match="vanished while the tree was read"):
            list(walk)


# Things that are no files


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        way = os.open(path.parent, os.O_RDONLY)
        try:  # The path of a socket must be short.
            server.bind(f"/proc/self/fd/{way}/{path.name}")
        finally:
            os.close(way)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("may not make devices")


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a FIFO": make_fifo,
    "a socket": make_socket,
    "a character device": make_device,
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sub").mkdir()
    special = tmp_path / "sub/special"
    SPECIAL[kind](special)
    for path in (special, tmp_path / "sub", tmp_path):
        with leaving_nothing_open(), pytest.raises(InvalidRequest) as refused:
            events_of(path)
        assert str(refused.value) == (
            f"{special} is {kind}; only files, directories and symlinks can be imported"
        )
    with pytest.raises(InvalidRequest, match=f"is {kind}"):
        stamp_tree(os.fsencode(tmp_path))


def test_a_device_as_the_root() -> None:
    with pytest.raises(InvalidRequest, match="/dev/null is a character device"):
        events_of(b"/dev/null")


# Things that change


class Interrupted(FilesystemWalk):
    """Does something between listing the directory ``after`` and opening what is in it."""

    def __init__(self, path: Path, after: bytes, action: Callable[[], object]) -> None:
        super().__init__(os.fsencode(path))
        self._after = after
        self._action = action

    def _list(self, fd: int, name: bytes) -> list[tuple[bytes, int]]:
        entries = super()._list(fd, name)
        if name == self._after:
            self._action()
        return entries


def swap(place: Path, make: Callable[[Path], object]) -> Callable[[], None]:
    """Puts something else where ``place`` was."""

    def swapped() -> None:
        place.rename(place.with_name("elsewhere"))
        make(place)

    return swapped


def nothing(_: Path) -> None:
    return


MAKERS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"old"),
    "directory": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "FIFO": make_fifo,
    "socket": make_socket,
    "nothing": nothing,
}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("file", "FIFO", "is a FIFO; only"),
        ("file", "socket", "is a socket; only"),
        ("file", "link", "changed its type while the tree was read"),
        ("file", "directory", "changed its type while the tree was read"),
        ("file", "nothing", "vanished while the tree was read"),
        ("directory", "FIFO", "changed its type while the tree was read"),
        ("directory", "link", "changed its type while the tree was read"),
        ("directory", "file", "changed its type while the tree was read"),
        ("directory", "nothing", "vanished while the tree was read"),
        ("link", "file", "changed its type while the tree was read"),
        ("link", "directory", "changed its type while the tree was read"),
        ("link", "FIFO", "changed its type while the tree was read"),
        ("link", "nothing", "vanished while the tree was read"),
    ],
)
def test_something_else_put_in_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Nothing blocks, nothing outside of the tree is read, and the error names the path."""
    (tmp_path / "root/sub").mkdir(parents=True)
    place = tmp_path / "root/sub/place"
    MAKERS[old](place)
    walk = Interrupted(tmp_path / "root", b"sub", swap(place, MAKERS[new]))
    with leaving_nothing_open(), pytest.raises(InvalidRequest) as refused:
        list(walk)
    assert str(refused.value).startswith(f"{place} {message}")


def test_a_link_to_elsewhere_in_place_of_a_directory_above(tmp_path: Path) -> None:
    """Whoever swaps a directory that is open already changes nothing: what is read lies below it."""
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "root/sub/file").write_bytes(b"mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_bytes(b"stolen")
    sub = tmp_path / "root/sub"
    walk = Interrupted(tmp_path / "root", b"sub", swap(sub, lambda path: path.symlink_to("../other")))
    events = [event for batch in walk for event in batch]
    assert File(b"file", False, b"mine") in events


def test_what_takes_the_place_of_a_special_file_counts(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "place")

    def replaced() -> None:
        (tmp_path / "place").unlink()
        (tmp_path / "place").write_bytes(b"file")

    events = [event for batch in Interrupted(tmp_path, b"", replaced) for event in batch]
    assert events[1] == File(b"place", False, b"file")


@pytest.mark.parametrize("change", ["grow", "shrink"])
@pytest.mark.parametrize("name", ["file", ""])
def test_a_small_file_that_changes_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, name: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    real = os.fstat

    def stat_and_change(fd: int) -> os.stat_result:
        state = real(fd)
        if stat.S_ISREG(state.st_mode) and state.st_ino == file.stat().st_ino:
            with file.open("ab") as opened:
                opened.truncate(15 if change == "grow" else 5)
        return state

    monkeypatch.setattr(os, "fstat", stat_and_change)
    with leaving_nothing_open(), pytest.raises(ChangedWhileRead) as refused:
        events_of(tmp_path if name else file)
    assert str(refused.value) == f"{file} was changed while it was read (it had 10 bytes); try again"


def test_a_file_system_that_answers_with_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short read is no end of the file."""
    contents = b"0123456789" * 100
    (tmp_path / "small").write_bytes(contents)
    (tmp_path / "large").write_bytes(contents * 600)
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: real(fd, min(size, 70_001)))
    assert [e for e in joined(events_of(tmp_path)) if isinstance(e, File)] == [
        File(b"large", False, contents * 600),
        File(b"small", False, contents),
    ]


def write_into(path: Path, mode: str) -> None:
    with path.open(mode) as file:
        file.write(b"more")


CHANGES: dict[str, Callable[[Path], object]] = {
    "grow": lambda path: write_into(path, "ab"),
    "shrink": lambda path: os.truncate(path, 2 * BATCH_BYTES),
    "vanish to nothing": lambda path: os.truncate(path, 0),
    "touch": lambda path: os.utime(path, ns=(1, 1)),
    "overwrite": lambda path: write_into(path, "r+b"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["file", ""])
def test_a_large_file_that_changes(tmp_path: Path, change: str, name: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4 * BATCH_BYTES))
    os.utime(file, ns=(5, 5))
    walk = iter(FilesystemWalk(os.fsencode(tmp_path if name else file)))
    with leaving_nothing_open():
        first = next(walk)
        assert not any(isinstance(event, EndFile) for event in first)
        CHANGES[change](file)
        events: list[Event] = []
        with pytest.raises(ChangedWhileRead) as refused:  # noqa: PT012 - what came before the error matters
            for batch in walk:
                events += batch
    assert not any(isinstance(event, EndFile) for event in events)
    assert (
        str(refused.value)
        == f"{file} was changed while it was read (it had {4 * BATCH_BYTES} bytes); try again"
    )


def test_files_that_do_not_tell_their_size() -> None:
    """Those of /proc claim to be empty. Better an error than an empty file."""
    with pytest.raises(ChangedWhileRead, match=r"/proc/self/status was changed while it was read"):
        events_of(b"/proc/self/status")


def test_giving_up_early_leaves_nothing_open(deep_folder: Path) -> None:
    make_deep(os.fsencode(deep_folder), 100)
    bottom = deep_folder / "/".join(["dir0"] * 100)
    (bottom / "bottom").write_bytes(bytes(4 * BATCH_BYTES))
    with leaving_nothing_open():
        walk = iter(FilesystemWalk(os.fsencode(deep_folder)))
        next(walk)
        walk.close()  # type: ignore[attr-defined]


# Permissions


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_read(what: str) -> None:
    with public_folder() as folder:
        (folder / "sub").mkdir()
        place = folder / "sub" / what
        if what == "file":
            place.write_bytes(b"secret")
        else:
            place.mkdir()
        place.chmod(0)
        printed = as_nobody(
            "from neve.castore.ingest.filesystem import FilesystemWalk\nfrom neve.errors import NeveError",
            "try: list(FilesystemWalk(os.fsencode(sys.argv[1])))\n"
            "except NeveError as error: print(type(error).__name__, error)",
            folder,
        )
        assert printed == f"{PermissionDenied.__name__} cannot read {place}: Permission denied\n"


def test_a_folder_on_the_way_that_is_closed() -> None:
    with public_folder() as folder:
        (folder / "closed/sub").mkdir(parents=True)
        (folder / "closed").chmod(0)
        printed = as_nobody(
            "from neve.castore.ingest.filesystem import FilesystemWalk\nfrom neve.errors import NeveError",
            "for path in sys.argv[1:]:\n"
            "    try: list(FilesystemWalk(os.fsencode(path)))\n"
            "    except NeveError as error: print(type(error).__name__, error)",
            folder / "closed/sub",
            folder / "closed/sub/file",
        )
        lines = printed.splitlines()
        assert len(lines) == 2
        assert all(line.startswith("PermissionDenied") and "closed/sub" in line for line in lines)


# Leaving things out


def walked_names(path: Path, *patterns: str) -> list[bytes]:
    events = events_of(path, exclude=exclude_globs(list(patterns)))
    return [event.name for event in events[1:] if isinstance(event, File | EnterDirectory | Symlink)]


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ([], [b".git", b"config", b"build", b"a.o", b"src", b"a.c", b"a.o", b"build", b"x", b"\xff.o"]),
        (["*.o"], [b".git", b"config", b"build", b"src", b"a.c", b"build", b"x"]),
        ([".git"], [b"build", b"a.o", b"src", b"a.c", b"a.o", b"build", b"x", b"\xff.o"]),
        (["build/"], [b".git", b"config", b"src", b"a.c", b"a.o", b"\xff.o"]),
        (["/build"], [b".git", b"config", b"src", b"a.c", b"a.o", b"build", b"x", b"\xff.o"]),
        (["src/build"], [b".git", b"config", b"build", b"a.o", b"src", b"a.c", b"a.o", b"\xff.o"]),
        (["src/*"], [b".git", b"config", b"build", b"a.o", b"src", b"\xff.o"]),
        (["?.o", "[bs]*"], [b".git", b"config"]),
        (["*"], []),
    ],
)
def test_globs(tmp_path: Path, patterns: list[str], left: list[bytes]) -> None:
    for folder in (".git", "build", "src/build"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (".git/config", "build/a.o", "src/a.c", "src/a.o", "src/build/x"):
        (tmp_path / file).write_bytes(b"")
    (tmp_path / os.fsdecode(b"\xff.o")).write_bytes(b"")
    assert walked_names(tmp_path, *patterns) == left


def test_what_is_left_out_is_not_even_looked_at(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "closed").mkdir(mode=0)
    assert walked_names(tmp_path, "fifo", "closed") == [b"kept"]


def test_a_predicate_sees_paths_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"")
    seen: list[bytes] = []

    def note(path: bytes) -> bool:
        seen.append(path)
        return False

    events_of(tmp_path, exclude=note)
    assert seen == [b"a", b"a/b", b"a/b/c"]


def test_a_predicate_that_fails(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")

    def failing(path: bytes) -> bool:
        raise RuntimeError("no idea")

    with leaving_nothing_open(), pytest.raises(RuntimeError, match="no idea"):
        events_of(tmp_path, exclude=failing)


def test_no_patterns_are_no_predicate() -> None:
    assert exclude_globs([]) is None


# Stamps


def test_a_stamp_is_the_same_with_and_without_reading(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/small").write_bytes(b"x")
    (tmp_path / "sub/large").write_bytes(bytes(3 * BATCH_BYTES))
    (tmp_path / "link").symlink_to("sub")
    for path in (tmp_path, tmp_path / "sub/large", tmp_path / "link"):
        stamp = TreeStamp()
        list(FilesystemWalk(os.fsencode(path), stamp=stamp))
        assert stamp.digest() == stamp_tree(os.fsencode(path)).digest()


def test_a_stamp_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for i in range(5):
        write_at(fd, b"%d" % i, b"x")
    os.close(fd)
    monkeypatch.setattr(os, "read", None)
    stamp_tree(os.fsencode(tmp_path))


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"a/b", "a/b"),
        (b"\xff", "\\xff"),
        ("é".encode(), "é"),
        (b"a\nb", "a\\nb"),
        (b"a\x1b[0m", "a\\x1b[0m"),
    ],
)
def test_paths_in_messages_are_printable(path: bytes, shown: str) -> None:
    assert show_path(path) == shown
