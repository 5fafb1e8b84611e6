"""Closures in both orders, by both size rules; the streams are made from small random DAGs."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.castore.closure import ClosureLimits, InvalidClosure, LeavesToRoot, RootToLeaves
from neve.castore.digest import Digest, b3_digest, format_digest
from neve.castore.directory import Directory, InvalidDirectory, SizeRule
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import InvalidRequest, LimitExceeded

EXACT, SNIX = SizeRule.EXACT, SizeRule.SNIX


def parent(rule: SizeRule = EXACT, **children: Directory) -> Directory:
    """A Directory with one file and these children, their sizes by ``rule``."""
    entries: dict[bytes, Node] = {
        name.encode(): DirectoryNode(child.digest, child.size(rule)) for name, child in children.items()
    }
    return Directory({**entries, b"file": FileNode(bytes(32), 1)})


def stating(child: Directory, size: int, name: bytes = b"child") -> Directory:
    """A Directory whose child has some size, right or wrong."""
    return Directory({name: DirectoryNode(child.digest, size)})


def check_upload(stream: Iterable[Directory], limits: ClosureLimits | None = None) -> Digest:
    validator = LeavesToRoot(limits) if limits else LeavesToRoot()
    for directory in stream:
        validator.add(directory)
    return validator.close()


def check_download(
    root: Digest, stream: Iterable[Directory | bytes], limits: ClosureLimits | None = None
) -> list[Directory]:
    validator = RootToLeaves(root, limits) if limits else RootToLeaves(root)
    received = [validator.add(directory) for directory in stream]
    validator.close()
    return received


EMPTY = Directory()
LEAF = Directory({b"link": SymlinkNode(b"target")})
MIDDLE = parent(a=LEAF, b=EMPTY)
ROOT = parent(x=MIDDLE, y=LEAF, z=EMPTY)
STRAY = Directory({b"stray": SymlinkNode(b"target")})

SNIX_MIDDLE = parent(SNIX, a=LEAF)
SNIX_ROOT = parent(SNIX, x=SNIX_MIDDLE)


def described(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message, with the digests that have a name here replaced by it."""
    message = str(error.value)
    for name, value in globals().items():
        if isinstance(value, Directory):
            message = message.replace(format_digest(value.digest), name)
    return message


# Random closures


@st.composite
def closures(draw: st.DrawFn, rule: SizeRule) -> list[Directory]:
    """Leaves to root: every Directory refers to some before it, the last one to all without parent."""
    made: dict[Digest, Directory] = {}
    tops: set[Digest] = set()
    for number in range(draw(st.integers(0, 7))):
        known = list(made.values())
        children = draw(st.lists(st.sampled_from(known), max_size=3)) if known else []
        entries: dict[bytes, Node] = {
            b"d%d" % place: DirectoryNode(child.digest, child.size(rule))
            for place, child in enumerate(children)
        }
        if draw(st.booleans()):
            entries[b"file"] = FileNode(bytes(32), number)
        directory = Directory(entries)
        if directory.digest not in made:
            made[directory.digest] = directory
            tops = tops - {child.digest for child in children} | {directory.digest}
    root = Directory(
        (b"t%d" % place, DirectoryNode(digest, made[digest].size(rule)))
        for place, digest in enumerate(sorted(tops))
    )
    return [*made.values(), root] if root.digest not in made else [root]


def breadth_first(stream: list[Directory]) -> list[Directory]:
    known = {directory.digest: directory for directory in stream}
    pending, ordered, seen = deque([stream[-1]]), [], {stream[-1].digest}
    while pending:
        directory = pending.popleft()
        ordered.append(directory)
        for _, child in directory.directories():
            if child.digest not in seen:
                seen.add(child.digest)
                pending.append(known[child.digest])
    return ordered


RANDOM_CLOSURES = st.sampled_from(SizeRule).flatmap(closures)


@given(RANDOM_CLOSURES)
def test_closures_pass_in_both_orders(stream: list[Directory]) -> None:
    assert check_upload(stream) == stream[-1].digest
    downloaded = breadth_first(stream)
    assert {directory.digest for directory in downloaded} == {directory.digest for directory in stream}
    assert check_download(stream[-1].digest, downloaded) == downloaded
    encoded = [directory.encode() for directory in downloaded]
    assert check_download(stream[-1].digest, encoded) == downloaded


@given(RANDOM_CLOSURES, st.randoms(use_true_random=False))
def test_repeats_are_fine_in_uploads(stream: list[Directory], source: random.Random) -> None:
    repeated = [again for at in range(len(stream)) for again in (stream[at], stream[source.randint(0, at)])]
    assert check_upload([*repeated, stream[-1]]) == stream[-1].digest


@given(RANDOM_CLOSURES, st.data())
def test_whatever_is_missing_is_noticed(stream: list[Directory], data: st.DataObject) -> None:
    missing = data.draw(st.integers(0, len(stream) - 1))
    rest = stream[:missing] + stream[missing + 1 :]
    if missing < len(stream) - 1 or not rest:
        with pytest.raises(InvalidClosure):
            check_upload(rest)
    downloaded = breadth_first(stream)
    del downloaded[missing]
    with pytest.raises(InvalidClosure):
        check_download(stream[-1].digest, downloaded)


@given(RANDOM_CLOSURES, st.data())
def test_strays_are_noticed(stream: list[Directory], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(stream) - 1))
    with pytest.raises(InvalidClosure):
        check_upload([*stream[:place], STRAY, *stream[place:]])
    with pytest.raises(InvalidClosure):
        check_download(stream[-1].digest, [*breadth_first(stream), STRAY])


# Leaves to root


def test_upload_by_hand() -> None:
    assert check_upload([EMPTY]) == EMPTY.digest
    assert check_upload([EMPTY, LEAF, MIDDLE, ROOT]) == ROOT.digest
    assert check_upload([LEAF, EMPTY, LEAF, MIDDLE, EMPTY, ROOT, ROOT]) == ROOT.digest
    assert check_upload([LEAF, SNIX_MIDDLE, SNIX_ROOT]) == SNIX_ROOT.digest


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([], "the stream has no Directory"),
        ([MIDDLE], "Directory MIDDLE refers to b'a', LEAF, which has not come before it"),
        ([LEAF, MIDDLE], "Directory MIDDLE refers to b'b', EMPTY, which has not come before it"),
        ([LEAF, EMPTY, ROOT], "Directory ROOT refers to b'x', MIDDLE, which has not come before it"),
        (
            [STRAY, LEAF, EMPTY, MIDDLE],
            "Directory STRAY is not reachable from the root, which came last, MIDDLE; "
            "nothing refers to 1 in all",
        ),
        (
            [LEAF, EMPTY, MIDDLE, LEAF],
            "Directory MIDDLE is not reachable from the root, which came last, LEAF; "
            "nothing refers to 1 in all",
        ),
    ],
)
def test_upload_refuses(stream: list[Directory], message: str) -> None:
    with pytest.raises(InvalidClosure) as caught:
        check_upload(stream)
    assert described(caught) == message
    assert isinstance(caught.value, InvalidRequest)


@pytest.mark.parametrize("size", [0, 3, 2**64 - 2])
def test_upload_refuses_wrong_sizes(size: int) -> None:
    wrong = stating(LEAF, size)
    with pytest.raises(InvalidClosure) as caught:
        check_upload([LEAF, wrong])
    assert described(caught) == (
        f"Directory {format_digest(wrong.digest)} states size {size} for b'child', LEAF: "
        "it has 1 by the rule 'exact' or 2 by the rule 'snix'"
    )


@pytest.mark.parametrize(
    ("first", "second", "described_size"),
    [(EXACT, SNIX, "5 by the rule 'exact'"), (SNIX, EXACT, "10 by the rule 'snix'")],
)
def test_upload_refuses_mixed_rules(first: SizeRule, second: SizeRule, described_size: str) -> None:
    middle = parent(first, a=LEAF, b=parent(first))
    mixed = parent(second, c=middle)
    assert middle.size(first) != middle.size(second)
    with pytest.raises(InvalidClosure, match=f"it has {described_size}, which this closure follows$"):
        check_upload([LEAF, parent(first), middle, mixed])


def test_upload_refuses_mixed_rules_in_one_directory() -> None:
    other = Directory({b"f": FileNode(bytes(32), 0)})
    mixed = Directory(
        {
            b"a": DirectoryNode(LEAF.digest, LEAF.size(EXACT)),
            b"b": DirectoryNode(other.digest, other.size(SNIX)),
        }
    )
    with pytest.raises(InvalidClosure, match=r"states size 2 for b'b'.*it has 1 by the rule 'exact', which"):
        check_upload([LEAF, other, mixed])


def test_empty_directories_leave_the_rule_open() -> None:
    holder = stating(EMPTY, 0)
    for rule in SizeRule:
        root = parent(rule, a=holder, b=LEAF)
        assert check_upload([EMPTY, holder, LEAF, root]) == root.digest
        assert check_download(root.digest, [root, holder, LEAF, EMPTY])


def test_a_size_over_64_bits_by_one_rule_leaves_the_other() -> None:
    entries: dict[bytes, Node] = {b"d": DirectoryNode(LEAF.digest, 2**64 - 5)}
    large = Directory({**entries, b"a": SymlinkNode(b"t"), b"b": SymlinkNode(b"t")})
    with pytest.raises(InvalidDirectory):
        large.size(SNIX)
    root = stating(large, large.size(EXACT))
    validator = RootToLeaves(root.digest)
    validator.add(root)
    assert validator.add(large) is large
    with pytest.raises(InvalidClosure, match="it has 1 by the rule 'exact', which this closure follows"):
        validator.add(LEAF)


# Root to leaves


def test_download_by_hand() -> None:
    assert check_download(EMPTY.digest, [b""]) == [EMPTY]
    assert check_download(ROOT.digest, [ROOT, MIDDLE, LEAF, EMPTY])
    assert check_download(ROOT.digest, [ROOT, EMPTY, LEAF, MIDDLE]), "any order after the parents"
    assert check_download(SNIX_ROOT.digest, [SNIX_ROOT, SNIX_MIDDLE, LEAF])


def test_download_returns_what_it_was_given() -> None:
    validator = RootToLeaves(MIDDLE.digest)
    assert validator.add(MIDDLE) is MIDDLE
    decoded = validator.add(LEAF.encode())
    assert decoded == LEAF
    assert decoded.digest == LEAF.digest


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([], "the stream ended early, 1 still expected, for example Directory ROOT"),
        ([MIDDLE], "Directory MIDDLE came first, requested was ROOT"),
        ([ROOT, ROOT], "Directory ROOT came twice"),
        ([ROOT, MIDDLE, LEAF, MIDDLE], "Directory MIDDLE came twice"),
        ([ROOT, STRAY], "Directory STRAY was referred to by nothing that came before"),
        ([ROOT, MIDDLE, LEAF, EMPTY, STRAY], "Directory STRAY was referred to by nothing that came before"),
    ],
)
def test_download_refuses(stream: list[Directory], message: str) -> None:
    for received in (stream, [directory.encode() for directory in stream]):
        with pytest.raises(InvalidClosure) as caught:
            check_download(ROOT.digest, received)
        assert described(caught) == message


def test_download_says_how_many_are_missing() -> None:
    with pytest.raises(InvalidClosure, match="early, 3 still expected"):
        check_download(ROOT.digest, [ROOT])
    with pytest.raises(InvalidClosure, match="early, 2 still expected"):
        check_download(ROOT.digest, [ROOT, MIDDLE])


def test_download_refuses_other_bytes() -> None:
    data = bytearray(LEAF.encode())
    data[-1] ^= 1
    with pytest.raises(InvalidClosure, match="was referred to by nothing"):
        check_download(MIDDLE.digest, [MIDDLE, bytes(data)])
    sloppy = LEAF.encode() + b"\x20\x01"
    with pytest.raises(InvalidDirectory, match="unknown fields"):
        check_download(b3_digest(sloppy), [sloppy])


def test_download_refuses_wrong_sizes() -> None:
    wrong = stating(LEAF, 7)
    with pytest.raises(InvalidClosure) as caught:
        check_download(wrong.digest, [wrong, LEAF])
    assert described(caught) == (
        "a parent states size 7 for Directory LEAF: it has 1 by the rule 'exact' or 2 by the rule 'snix'"
    )


def test_download_refuses_two_sizes_for_one() -> None:
    other = stating(LEAF, 2, b"other")
    root = Directory(
        {
            b"a": DirectoryNode(LEAF.digest, 1),
            b"b": DirectoryNode(other.digest, other.size()),
        }
    )
    message = f"^{re.escape(f'Directory {format_digest(other.digest)} states size 2 for')} .* states 1$"
    for stream in ([root, other, LEAF], [root, LEAF, other]):
        with pytest.raises(InvalidClosure, match=message):
            check_download(root.digest, stream)


def test_download_refuses_mixed_rules() -> None:
    middle = parent(SNIX, a=LEAF)
    root = parent(EXACT, x=middle)
    with pytest.raises(InvalidClosure, match="it has 1 by the rule 'exact', which this closure follows"):
        check_download(root.digest, [root, middle, LEAF])


# Limits


def test_limit_of_bytes() -> None:
    size = len(ROOT.encode())
    stream = [EMPTY, LEAF, MIDDLE, ROOT]
    assert check_upload(stream, ClosureLimits(max_directory_bytes=size))
    assert check_download(ROOT.digest, stream[::-1], ClosureLimits(max_directory_bytes=size))
    message = f"^a Directory of {size} bytes is over the limit of {size - 1} bytes \\(max_directory_bytes\\)$"
    limits = ClosureLimits(max_directory_bytes=size - 1)
    with pytest.raises(LimitExceeded, match=message):
        check_upload(stream, limits)
    with pytest.raises(LimitExceeded, match=message):
        check_download(ROOT.digest, stream[::-1], limits)
    with pytest.raises(LimitExceeded, match=message):
        check_download(ROOT.digest, [ROOT.encode()], limits)


def test_limit_of_directories() -> None:
    stream = [EMPTY, LEAF, EMPTY, MIDDLE, ROOT]
    download = [ROOT, MIDDLE, LEAF, EMPTY]
    assert check_upload(stream, ClosureLimits(max_directories=4))
    assert check_download(ROOT.digest, download, ClosureLimits(max_directories=4))
    message = r"^the closure is over the limit of 3 Directories \(max_directories\)$"
    with pytest.raises(LimitExceeded, match=message):
        check_upload(stream, ClosureLimits(max_directories=3))
    with pytest.raises(LimitExceeded, match=message):
        check_download(ROOT.digest, download[:1], ClosureLimits(max_directories=3))


def test_default_limits() -> None:
    assert ClosureLimits() == ClosureLimits(64 * 1024 * 1024, 10_000_000)
