"""What a session answers to each kind of request."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator

import pytest

from neve.castore.digest import b3_digest, format_digest, format_snix_digest
from neve.fs.fuse import listings
from neve.fs.fuse.opcodes import CACHE_DIR, KEEP_CACHE, WRITING, InitFlag, Opcode
from neve.fs.fuse.protocol import FOREVER
from neve.fs.fuse.session import MAX_READ_BYTES, Session
from neve.fs.inodes import ROOT, InodeTable
from neve.nix.store_path import StorePath
from neve.tree import File
from tests.store.helpers import memory_services, stored

from .asking import ALL_FLAGS, Asker, Pending, entry, read_body, request
from .conftest import NAME, PATH, NewSession, put_path

OPEN = struct.Struct("<II")


@pytest.fixture
def session(new_session: NewSession) -> Iterator[Session]:
    session = new_session()
    yield session
    session.close()


@pytest.fixture
def asker(session: Session) -> Asker:
    return Asker(session)


def inodes(session: Session) -> int:
    """How many the kernel is thought to know."""
    assert session._kernel is not None
    return len(session._kernel.inodes)


# The beginning and the end.


def init_body(major: int, minor: int, flags: int = ALL_FLAGS) -> bytes:
    return struct.pack("<IIII", major, minor, 131072, flags)


def test_init_takes_what_is_offered_and_wanted(asker: Asker) -> None:
    body = asker.body(Opcode.INIT, 0, init_body(7, 45))
    major, minor, read_ahead, flags, background, _, write, _, pages, _, flags2 = struct.unpack_from(
        "<IIIIHHIIHHI", body
    )
    assert (major, minor, write, pages * 4096, flags2) == (7, 38, 4096, MAX_READ_BYTES, 0)
    assert background > 12
    assert read_ahead >= 1 << 20
    wanted = [
        "ASYNC_READ",
        "DO_READDIRPLUS",
        "PARALLEL_DIROPS",
        "MAX_PAGES",
        "CACHE_SYMLINKS",
    ]
    for name in wanted:
        assert flags & InitFlag[name]
    only = asker.body(Opcode.INIT, 0, init_body(7, 31, InitFlag.ASYNC_READ | 1 << 4))
    assert struct.unpack_from("<IIII", only)[3] == InitFlag.ASYNC_READ


@pytest.mark.parametrize("version", [(7, 22), (6, 99), (0, 0)])
def test_versions_that_are_too_old(asker: Asker, version: tuple[int, int]) -> None:
    assert asker.error(Opcode.INIT, 0, init_body(*version)) == errno.EPROTO


def test_a_later_major_version_is_told_which_one_is_spoken(new_session: NewSession) -> None:
    session = new_session()
    pending = Pending(2)
    session.handle(request(Opcode.INIT, 2, 0, init_body(8, 0)), pending.reply)
    answer = pending.answer()
    assert answer is not None
    assert struct.unpack_from("<I", answer.body) == (7,)
    # It has still to say INIT in that version.
    pending = Pending(4)
    session.handle(request(Opcode.GETATTR, 4, 1, bytes(16)), pending.reply)
    assert pending.answer() == (errno.EIO, b"")
    session.close()


def test_before_init_and_after_destroy(session: Session, asker: Asker) -> None:
    assert asker.body(Opcode.DESTROY) == b""
    assert asker.error(Opcode.LOOKUP, 1, NAME + b"\0") == errno.EIO
    assert asker.send(Opcode.FORGET, 5, struct.pack("<Q", 1)).answer() is None
    asker.init()
    assert asker.lookup(NAME).node > 1


def test_init_again_begins_anew(session: Session, asker: Asker) -> None:
    """As when a guest is started again."""
    file = asker.walk(NAME, b"text")
    assert inodes(session) == 3
    asker.init()
    assert inodes(session) == 1
    assert asker.error(Opcode.READ, file.node, read_body(0, 10)) == errno.ESTALE
    assert asker.read(asker.walk(NAME, b"text").node) == b"Hello\n"


# Looking up.


def test_lookup(asker: Asker) -> None:
    top = asker.lookup(NAME)
    assert (top.valid, top.attr.mode, top.attr.size) == (FOREVER, stat.S_IFDIR | 0o555, 205)
    run = asker.walk(NAME, b"bin", b"run")
    assert (run.attr.mode, run.attr.size, run.attr.ino) == (stat.S_IFREG | 0o555, 10, run.node)
    link = asker.walk(NAME, b"bin", b"alias")
    assert (link.attr.mode, link.attr.size) == (stat.S_IFLNK | 0o777, 3)
    assert asker.walk(NAME, b"empty").attr.size == 0
    assert asker.walk(NAME, b"na\xffme").attr.mode == stat.S_IFREG | 0o444


def test_what_is_not_there(asker: Asker) -> None:
    top = asker.lookup(NAME)
    missing = asker.lookup(b"missing", top.node)
    assert (missing.node, missing.valid) == (0, FOREVER)
    # In the root it may appear, so the kernel must not remember.
    for name in (b"missing", b"0" * 32 + b"-missing", NAME + b"2", NAME[:-1], b".", b".."):
        assert asker.ask(Opcode.LOOKUP, 1, name + b"\0").error in (errno.ENOENT, errno.EINVAL)


def test_lookups_that_make_no_sense(asker: Asker) -> None:
    top, file = asker.lookup(NAME), asker.walk(NAME, b"text")
    assert asker.error(Opcode.LOOKUP, file.node, b"x\0") == errno.ENOTDIR
    assert asker.error(Opcode.LOOKUP, top.node, b"..\0") == errno.EINVAL
    assert asker.error(Opcode.LOOKUP, top.node, b"a/b\0") == errno.EINVAL
    assert asker.error(Opcode.LOOKUP, top.node, b"x" * 256 + b"\0") == errno.ENAMETOOLONG
    assert asker.error(Opcode.LOOKUP, 999, b"x\0") == errno.ESTALE


def test_forgetting(session: Session, asker: Asker) -> None:
    nodes = [asker.walk(NAME, b"text").node for _ in range(3)]
    top = asker.lookup(NAME).node
    assert inodes(session) == 3
    assert asker.send(Opcode.FORGET, nodes[0], struct.pack("<Q", 2)).answer() is None
    assert asker.read(nodes[0]) == b"Hello\n"
    body = struct.pack("<IIQQQQQQ", 3, 0, nodes[0], 1, top, 4, 999, 1)
    assert asker.send(Opcode.BATCH_FORGET, 0, body).answer() is None
    assert inodes(session) == 1
    assert asker.error(Opcode.GETATTR, top, bytes(16)) == errno.ESTALE
    # The root is never forgotten.
    asker.send(Opcode.FORGET, ROOT, struct.pack("<Q", 1 << 60))
    assert asker.lookup(NAME).node not in (top, *nodes)


def test_getattr(asker: Asker) -> None:
    for names in ((NAME,), (NAME, b"text"), (NAME, b"bin", b"alias")):
        found = asker.walk(*names)
        body = asker.body(Opcode.GETATTR, found.node, bytes(16))
        assert body[:16] == struct.pack("<QII", FOREVER, 0, 0)
        assert entry(bytes(40) + body[16:]).attr == found.attr
    root = entry(bytes(40) + asker.body(Opcode.GETATTR, ROOT, bytes(16))[16:]).attr
    assert (root.ino, root.mode, root.size) == (ROOT, stat.S_IFDIR | 0o555, 0)


def test_readlink(asker: Asker) -> None:
    assert asker.body(Opcode.READLINK, asker.walk(NAME, b"bin", b"alias").node) == b"run"
    assert asker.error(Opcode.READLINK, asker.walk(NAME, b"text").node) == errno.EINVAL


def test_access(asker: Asker) -> None:
    run, text, top = (asker.walk(NAME, *names) for names in ((b"bin", b"run"), (b"text",), ()))
    for mask, expected in (
        (os.R_OK, (0, 0, 0)),
        (os.X_OK, (0, errno.EACCES, 0)),
        (os.W_OK, (errno.EROFS,) * 3),
    ):
        found = [asker.ask(Opcode.ACCESS, e.node, OPEN.pack(mask, 0)).error for e in (run, text, top)]
        assert tuple(found) == expected


# Files.


def test_reading(asker: Asker) -> None:
    node = asker.walk(NAME, b"text").node
    assert asker.read(node) == b"Hello\n"
    assert asker.read(node, 1, 3) == b"ell"
    assert asker.read(node, 5, 4096) == b"\n"
    assert asker.read(node, 6) == asker.read(node, 1 << 62) == asker.read(node, 0, 0) == b""
    assert asker.read(asker.walk(NAME, b"na\xffme").node) == b""


def test_reads_that_make_no_sense(asker: Asker) -> None:
    file, top = asker.walk(NAME, b"text").node, asker.lookup(NAME).node
    link = asker.walk(NAME, b"bin", b"alias").node
    assert asker.error(Opcode.READ, top, read_body(0, 10)) == errno.EISDIR
    assert asker.error(Opcode.READ, link, read_body(0, 10)) == errno.EINVAL
    # More than was agreed on in INIT.
    assert asker.error(Opcode.READ, file, read_body(0, MAX_READ_BYTES + 1)) == errno.EINVAL


def test_a_kernel_that_can_is_told_not_to_ask_for_files_to_be_opened(asker: Asker) -> None:
    node = asker.walk(NAME, b"text").node
    assert asker.error(Opcode.OPEN, node, OPEN.pack(os.O_RDONLY, 0)) == errno.ENOSYS
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        assert asker.error(Opcode.OPEN, node, OPEN.pack(flags, 0)) == errno.EROFS
    assert asker.error(Opcode.OPENDIR, asker.lookup(NAME).node, OPEN.pack(0, 0)) == errno.ENOSYS


def test_an_older_kernel_opens_files_and_keeps_what_it_has_of_them(asker: Asker) -> None:
    asker.init(ALL_FLAGS & ~InitFlag.NO_OPEN_SUPPORT & ~InitFlag.NO_OPENDIR_SUPPORT)
    file, top = asker.walk(NAME, b"text").node, asker.lookup(NAME).node
    opened = asker.body(Opcode.OPEN, file, OPEN.pack(os.O_RDONLY, 0))
    assert opened == struct.pack("<QII", 0, KEEP_CACHE, 0)
    assert asker.error(Opcode.OPEN, file, OPEN.pack(os.O_RDWR, 0)) == errno.EROFS
    opened = asker.body(Opcode.OPENDIR, top, OPEN.pack(0, 0))
    assert opened == struct.pack("<QII", 0, KEEP_CACHE | CACHE_DIR, 0)
    for opcode in (Opcode.RELEASE, Opcode.RELEASEDIR):
        assert asker.body(opcode, file, bytes(24)) == b""
    assert asker.error(Opcode.FLUSH, file, bytes(24)) == errno.ENOSYS


def test_seeking(asker: Asker) -> None:
    node = asker.walk(NAME, b"text").node
    for whence, offset, expected in ((os.SEEK_DATA, 3, 3), (os.SEEK_HOLE, 3, 6)):
        body = struct.pack("<QQII", 0, offset, whence, 0)
        assert asker.body(Opcode.LSEEK, node, body) == struct.pack("<Q", expected)
        assert asker.error(Opcode.LSEEK, node, struct.pack("<QQII", 0, 6, whence, 0)) == errno.ENXIO
    assert asker.error(Opcode.LSEEK, node, struct.pack("<QQII", 0, 0, os.SEEK_SET, 0)) == errno.EINVAL


# Directories.


def test_listing(asker: Asker) -> None:
    top = asker.lookup(NAME)
    found = asker.list(top.node)
    names = [one.name for one in found]
    assert names[:5] == [b".", b"..", b"bin", b"empty", b"file-000"]
    assert names[2:] == sorted(names[2:])
    assert len(names) == 207
    kinds = {one.name: one.kind for one in found}
    assert (kinds[b"bin"], kinds[b"text"], kinds[b"."]) == (4, 8, 4)
    assert (found[0].node, found[1].node) == (top.node, ROOT)
    below = asker.list(asker.lookup(b"bin", top.node).node)
    assert [(one.name, one.kind) for one in below[2:]] == [(b"alias", 10), (b"run", 8)]
    assert below[1].node == top.node


@pytest.mark.parametrize("size", [400, 4096, 1 << 20])
def test_listing_with_all_that_a_lookup_tells(session: Session, asker: Asker, size: int) -> None:
    top = asker.lookup(NAME)
    found = asker.list(top.node, size, plus=True)
    plain = asker.list(top.node, size)
    assert [(one.name, one.kind, one.offset) for one in found] == [
        (one.name, one.kind, one.offset) for one in plain
    ]
    for one in found[:2]:
        assert one.entry is not None
        assert one.entry.node == 0  # It does not count as a lookup.
    before = inodes(session)
    for one in found[2:]:
        assert asker.lookup(one.name, top.node) == one.entry
    assert inodes(session) == before


def test_listing_goes_on_anywhere(asker: Asker) -> None:
    node = asker.lookup(NAME).node
    found = asker.list(node)
    for number in (0, 1, 2, 3, 100, 205):
        body = asker.body(Opcode.READDIR, node, read_body(found[number].offset, 4096))
        assert body[24:].startswith(found[number + 1].name)
    for offset in (found[-1].offset, 1 << 40, (1 << 64) - 1):
        assert asker.body(Opcode.READDIR, node, read_body(offset, 4096)) == b""
    # Room for no entry: nothing, and no error.
    assert asker.body(Opcode.READDIR, node, read_body(0, 8)) == b""
    assert asker.error(Opcode.READDIR, asker.walk(NAME, b"text").node, read_body(0, 100)) == errno.ENOTDIR


def test_long_listings_tell_no_more_than_names(
    session: Session, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the kernel knows a lot already: it asks for what it wants."""
    node = asker.lookup(NAME).node
    monkeypatch.setattr(listings, "INODES_BY_LISTING", inodes(session))
    for one in asker.list(node, plus=True):
        assert one.entry is not None
        assert one.entry.node == 0
    assert inodes(session) == 2


def test_long_listings_tell_all_to_who_looks_at_what_they_name(
    session: Session, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much the kernel knows: asking for a million files one by one takes seven times as long."""
    node = asker.lookup(NAME).node
    monkeypatch.setattr(listings, "INODES_BY_LISTING", 0)
    first, *_ = [one for one in asker.list(node, plus=True) if one.kind == 8]
    asker.lookup(first.name, node)
    told = [one.entry for one in asker.list(node, plus=True)[2:]]
    assert len(told) > 10
    assert all(entry is not None and entry.node for entry in told)


def test_the_root_is_closed_to_listing(asker: Asker) -> None:
    assert asker.error(Opcode.OPENDIR, ROOT, OPEN.pack(0, 0)) == errno.EPERM
    for opcode in (Opcode.READDIR, Opcode.READDIRPLUS):
        assert asker.error(opcode, ROOT, read_body(0, 4096)) == errno.EPERM


def test_the_root_is_open_to_listing(new_session: NewSession) -> None:
    services = memory_services()
    node = stored(services, [File(b"", False, b"1")])
    names = []
    for number in range(300):
        path = StorePath(bytes([number // 256, number % 256] * 10), "x")
        put_path(services, path, node)
        names.append(path.base_name.encode())
    session = new_session(services, list_root=True)
    asker = Asker(session)
    # The kernel must not keep it, not even once it has been told not to ask.
    assert asker.body(Opcode.OPENDIR, ROOT, OPEN.pack(0, 0)) == bytes(16)
    for plus in (False, True):
        found = asker.list(ROOT, plus=plus)
        assert [one.name for one in found[:2]] == [b".", b".."]
        assert sorted(one.name for one in found[2:]) == sorted(names)
        assert {one.kind for one in found[2:]} == {8}
        # The end is something, but less than an entry: else the kernel would keep what came before.
        end = asker.body(Opcode.READDIR, ROOT, read_body(found[-1].offset, 4096))
        assert end == bytes(8)
    # Who is half through keeps his own; who begins sees what is new.
    half = asker.body(Opcode.READDIR, ROOT, read_body(0, 4096))
    put_path(services, PATH, node)
    assert NAME in [one.name for one in asker.list(ROOT)]
    rest = 0
    offset = struct.unpack_from("<Q", half, len(half) - 64 + 8)[0]
    while len(body := asker.body(Opcode.READDIR, ROOT, read_body(offset, 4096))) > 8:
        rest += len(body) // 64
        offset = struct.unpack_from("<Q", body, len(body) - 64 + 8)[0]
        assert NAME not in body
    assert len(half) // 64 + rest == 301  # The two dots together take as much as one.
    session.close()
    services.close()


# All else.


def test_xattrs(asker: Asker) -> None:
    node = asker.walk(NAME, b"text").node
    digest = b3_digest(b"Hello\n")
    values = {
        b"user.tvix.castore.blob.digest": format_digest(digest).encode(),
        b"user.snix.castore.blob.digest": format_snix_digest(digest).encode(),
    }
    names = b"".join(name + b"\0" for name in values)
    assert asker.body(Opcode.LISTXATTR, node, OPEN.pack(4096, 0)) == names
    assert asker.body(Opcode.LISTXATTR, node, OPEN.pack(0, 0)) == OPEN.pack(len(names), 0)
    assert asker.error(Opcode.LISTXATTR, node, OPEN.pack(len(names) - 1, 0)) == errno.ERANGE
    for name, value in values.items():
        ask = name + b"\0"
        assert asker.body(Opcode.GETXATTR, node, OPEN.pack(len(value), 0) + ask) == value
        assert asker.body(Opcode.GETXATTR, node, OPEN.pack(0, 0) + ask) == OPEN.pack(len(value), 0)
        assert asker.error(Opcode.GETXATTR, node, OPEN.pack(len(value) - 1, 0) + ask) == errno.ERANGE
    for other in (b"user.tvix.castore.directory.digest", b"security.capability"):
        assert asker.error(Opcode.GETXATTR, node, OPEN.pack(100, 0) + other + b"\0") == errno.ENODATA
    directory = asker.body(Opcode.LISTXATTR, asker.lookup(NAME).node, OPEN.pack(4096, 0))
    assert directory == names.replace(b"blob", b"directory")
    for nothing in (ROOT, asker.walk(NAME, b"bin", b"alias").node):
        assert asker.body(Opcode.LISTXATTR, nothing, OPEN.pack(4096, 0)) == b""


def test_without_xattrs(new_session: NewSession) -> None:
    session = new_session(show_xattr=False)
    asker = Asker(session)
    for opcode, body in ((Opcode.LISTXATTR, b""), (Opcode.GETXATTR, b"user.x\0")):
        assert asker.error(opcode, ROOT, OPEN.pack(100, 0) + body) == errno.ENOSYS
    session.close()


def test_statfs(asker: Asker) -> None:
    body = asker.body(Opcode.STATFS)
    assert len(body) == 80
    assert struct.unpack_from("<II", body, 40) == (4096, 255)


def test_writing_is_refused_and_all_else_unknown(asker: Asker) -> None:
    node = asker.walk(NAME, b"text").node
    known = {*WRITING, Opcode.IOCTL, Opcode.SETLK, Opcode.FSYNC, Opcode.POLL, Opcode.BMAP, Opcode.SYNCFS}
    for opcode in (*known, 0, 7, 99, 4096):
        expected = errno.EROFS if opcode in WRITING else errno.ENOSYS
        assert asker.error(opcode, node, b"x" * 40) == expected
    assert len(WRITING) == 16


def test_malformed_requests(asker: Asker) -> None:
    assert asker.error(Opcode.READ, 1, b"short") == errno.EINVAL
    assert asker.error(Opcode.LOOKUP, 1, b"no end") == errno.EINVAL
    for opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
        assert asker.send(opcode, 1, b"short").answer() is None
    pending = Pending(0)
    asker.session.handle(b"less than a header", pending.reply)
    assert pending.answer() is None


def test_the_kernel_of_this_machine_may_know_more(session: Session) -> None:
    """It forgets inodes when memory is short, and else it may keep as many as it likes."""
    guest = InodeTable()
    asker = Asker(session)
    assert session._kernel is not None
    assert session._kernel.inodes._limit == guest._limit
    session.may_notify(lambda _: None)
    asker.init()
    assert session._kernel.inodes._limit > 1000 * guest._limit


def test_a_guest_that_wants_to_know_more_than_it_may(session: Session, asker: Asker) -> None:
    """A tree can hold itself so many times that there is no end to the places in it."""
    assert session._kernel is not None
    session._kernel.inodes._limit = 5
    top = asker.lookup(NAME).node
    for name in (b"bin", b"empty", b"text"):
        asker.lookup(name, top)
    assert asker.error(Opcode.LOOKUP, top, b"sub\0") == errno.ENFILE
    # A listing goes on without.
    unknown = [one.name for one in asker.list(top, plus=True) if one.entry and not one.entry.node]
    assert b"sub" in unknown
    asker.send(Opcode.FORGET, asker.lookup(b"text", top).node, struct.pack("<Q", 2))
    assert asker.lookup(b"sub", top).node
