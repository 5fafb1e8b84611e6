"""The contract of directory services. A backend's tests subclass it and supply ``service``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from neve.castore.closure import DEFAULT_LIMITS, ClosureLimits
from neve.castore.digest import EMPTY_BLOB, Digest, b3_digest, format_digest
from neve.castore.directories.base import DirectoryService
from neve.castore.directory import Directory, SizeRule
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NotFound, PermissionDenied, Unsupported

EMPTY = Directory()


def leaf(name: str) -> Directory:
    """A Directory without children, as different from others as its name."""
    blob = FileNode(b3_digest(name.encode()), len(name), executable=True)
    return Directory([(name.encode(), blob), (b"\xff link", SymlinkNode(b"../" + name.encode()))])


def parent(*children: Directory, rule: SizeRule = SizeRule.EXACT, name: str = "") -> Directory:
    """A Directory that refers to ``children``, with their sizes by ``rule``."""
    entries: dict[bytes, Node] = {
        b"child %d" % number: DirectoryNode(child.digest, child.size(rule))
        for number, child in enumerate(children)
    }
    if name:
        entries[b"~" + name.encode()] = SymlinkNode(b"x")
    return Directory(entries)


def tree(rule: SizeRule = SizeRule.EXACT, name: str = "tree") -> list[Directory]:
    """A closure of six Directories, leaves first; two are referred to twice, the empty one is among them."""
    one, two = leaf(name + " one"), leaf(name + " two")
    left = parent(one, two, EMPTY, rule=rule)
    right = parent(two, left, rule=rule, name=name)
    return [EMPTY, one, two, left, right, parent(left, right, rule=rule)]


def put_closure(
    service: DirectoryService, closure: Iterable[Directory], limits: ClosureLimits = DEFAULT_LIMITS
) -> Digest:
    with service.put_multiple(limits) as putter:
        for directory in closure:
            putter.put(directory)
        return putter.close()


class DirectoryServiceContract:
    """What every ``DirectoryService`` does.

    One that cannot list, delete or find damage, or looks up nothing but the roots of closures, says so.
    """

    can_list = True
    can_delete = True
    looks_up_children = True
    """Whether each Directory of a closure can be had by its own digest."""
    finds_damage = True
    """Whether it proves what it reads; then ``damage`` must be there."""

    @pytest.fixture
    def service(self) -> Iterator[DirectoryService]:
        """An empty service."""
        raise NotImplementedError

    def damage(self, service: DirectoryService, digest: Digest) -> None:
        """Changes a bit of the Directory stored under ``digest``, behind the back of ``service``."""
        raise NotImplementedError

    def listed(self, service: DirectoryService, limit: int = 1000) -> list[Digest]:
        """The whole listing, page by page."""
        listed: list[Digest] = []
        while page := service.list(listed[-1] if listed else b"", limit):
            assert len(page) <= limit
            listed += page
        return listed

    def assert_absent(self, service: DirectoryService, directories: Iterable[Directory]) -> None:
        for directory in directories:
            assert service.get(directory.digest) is None
            assert list(service.get_recursive(directory.digest)) == []
        if self.can_list:
            assert service.list() == []

    # One at a time.

    def test_absence_is_none(self, service: DirectoryService) -> None:
        absent = leaf("absent").digest
        assert service.get(absent) is None
        assert service.get_many([absent, EMPTY.digest]) == {}
        assert list(service.get_recursive(absent)) == []
        # The empty Directory has the digest of the empty blob, but is not always there.
        assert EMPTY.digest == EMPTY_BLOB
        assert service.get(EMPTY.digest) is None

    @pytest.mark.parametrize("directory", [EMPTY, leaf("leaf")], ids=["empty", "leaf"])
    def test_what_is_put_is_there(self, service: DirectoryService, directory: Directory) -> None:
        for _ in range(2):
            assert service.put(directory) == directory.digest
            found = service.get(directory.digest)
            assert found == directory
            assert found is not None
            assert found.encode() == directory.encode()
            assert list(service.get_recursive(directory.digest)) == [directory]
        assert service.get_many([directory.digest, leaf("other").digest]) == {directory.digest: directory}

    def test_several_at_once(self, service: DirectoryService) -> None:
        directories = [leaf(str(number)) for number in range(20)]
        service.put(directories[3])
        for _ in range(2):
            service.put_many([*directories, directories[0]])
            found = service.get_many([one.digest for one in directories])
            assert found == {one.digest: one for one in directories}
        service.put_many([])

    @pytest.mark.parametrize("size", [0, 20, 31, 33])
    def test_digests_have_32_bytes(self, service: DirectoryService, size: int) -> None:
        wrong, there = bytes(size), service.put(leaf("there"))
        calls: list[Callable[[], object]] = [
            lambda: service.get(wrong),
            lambda: service.get_many([there, wrong]),
            lambda: list(service.get_recursive(wrong)),
        ]
        if self.can_delete:
            calls.append(lambda: service.delete_many([there, wrong]))
        for call in calls:
            with pytest.raises(InvalidRequest, match=f"has {size} bytes"):
                call()
        assert service.get(there) == leaf("there")

    def test_a_large_directory(self, service: DirectoryService) -> None:
        entries = {b"%06d" % number: SymlinkNode(b"target %d" % number) for number in range(40_000)}
        directory = Directory(entries)
        service.put(directory)
        assert service.get(directory.digest) == directory

    # Closures.

    @pytest.mark.parametrize("rule", SizeRule)
    def test_a_closure(self, service: DirectoryService, rule: SizeRule) -> None:
        closure = tree(rule)
        root = closure[-1]
        assert put_closure(service, closure) == root.digest
        found = list(service.get_recursive(root.digest))
        assert len(found) == len(closure)
        assert {one.digest for one in found} == {one.digest for one in closure}
        assert found == self.breadth_first(closure)
        if self.looks_up_children:
            assert service.get_many([one.digest for one in closure]) == {one.digest: one for one in closure}
            for directory in closure:
                assert service.get(directory.digest) == directory
                below = list(service.get_recursive(directory.digest))
                assert below[0] == directory
                assert [below[0], *below[1:]] == self.breadth_first(closure, directory)

    def breadth_first(self, closure: list[Directory], root: Directory | None = None) -> list[Directory]:
        by_digest = {one.digest: one for one in closure}
        order = [root or closure[-1]]
        for directory in order:
            below = [by_digest[child.digest] for _, child in directory.directories()]
            order += [one for n, one in enumerate(below) if one not in order and one not in below[:n]]
        return order

    def test_repeats_are_fine(self, service: DirectoryService) -> None:
        closure = tree()
        with service.put_multiple() as putter:
            for directory in closure:
                putter.put(directory)
                putter.put(closure[0])
            putter.put(closure[-1])
            assert putter.close() == closure[-1].digest
        assert len(list(service.get_recursive(closure[-1].digest))) == len(closure)

    def test_closures_overlap(self, service: DirectoryService) -> None:
        first, second = tree(), [*tree()[:4], parent(tree()[3], leaf("tree one"))]
        put_closure(service, first)
        put_closure(service, first)
        put_closure(service, second)
        for closure in (first, second):
            assert list(service.get_recursive(closure[-1].digest)) == self.breadth_first(closure)

    def test_a_wide_and_deep_closure(self, service: DirectoryService) -> None:
        closure = [leaf(f"leaf {number}") for number in range(600)]
        for _ in range(60):
            closure.append(parent(closure[-1], name="deeper"))
        closure.append(parent(*closure[:600], closure[-1]))
        put_closure(service, closure)
        assert len(list(service.get_recursive(closure[-1].digest))) == len(closure)

    def test_limits(self, service: DirectoryService) -> None:
        closure = [leaf("first"), leaf("second"), parent(leaf("first"), leaf("second"))]
        longest = max(len(directory.encode()) for directory in closure)
        for limits, name in (
            (ClosureLimits(longest - 1, 3), "max_directory_bytes"),
            (ClosureLimits(longest, 2), "max_directories"),
        ):
            with pytest.raises(LimitExceeded, match=name):
                put_closure(service, closure, limits)
            self.assert_absent(service, closure)
        assert put_closure(service, closure, ClosureLimits(longest, 3)) == closure[-1].digest

    def test_built_directories(self, service: DirectoryService) -> None:
        closure = tree()
        with service.put_multiple() as putter:
            for directory in closure:
                putter.put_built(directory.encode(), directory.digest)
            assert putter.close() == closure[-1].digest
        assert list(service.get_recursive(closure[-1].digest)) == self.breadth_first(closure)

    def test_nothing_is_visible_before_close(self, service: DirectoryService) -> None:
        closure = tree()
        with service.put_multiple() as putter:
            for directory in closure:
                putter.put(directory)
            self.assert_absent(service, closure)
        self.assert_absent(service, closure)
        abandoned = service.put_multiple()
        abandoned.put_built(EMPTY.encode(), EMPTY.digest)
        abandoned.abandon()
        abandoned.abandon()
        self.assert_absent(service, closure)
        for gone in (putter, abandoned):
            with pytest.raises(InvalidRequest):
                gone.close()

    @pytest.mark.parametrize(
        "refused",
        [
            pytest.param([], id="nothing"),
            pytest.param([parent(leaf("a"))], id="child-missing"),
            pytest.param([parent(leaf("a")), leaf("a")], id="child-late"),
            pytest.param([leaf("a"), Directory({b"a": DirectoryNode(leaf("a").digest, 1)})], id="wrong-size"),
            pytest.param([leaf("a"), leaf("b"), parent(leaf("a"))], id="unreachable"),
            pytest.param([leaf("a"), parent(leaf("a")), leaf("b")], id="not-the-root-last"),
            pytest.param([*tree(SizeRule.SNIX)[:4], *tree()[1:]], id="two-rules"),
        ],
    )
    def test_nothing_of_a_refused_closure_is_visible(
        self, service: DirectoryService, refused: list[Directory]
    ) -> None:
        putter = service.put_multiple()
        with pytest.raises(InvalidRequest):  # noqa: PT012 - it may be refused at once, or at the end
            for directory in refused:
                putter.put(directory)
            putter.close()
        with pytest.raises(InvalidRequest):
            putter.close()
        self.assert_absent(service, refused)
        put_closure(service, tree(name="later"))
        assert all(service.get(directory.digest) is None for directory in refused if len(directory))

    def test_children_that_are_stored_already_must_come_again(self, service: DirectoryService) -> None:
        closure = tree()
        put_closure(service, closure)
        with service.put_multiple() as putter, pytest.raises(InvalidRequest):
            putter.put(closure[-1])

    def test_closed_is_closed(self, service: DirectoryService) -> None:
        putter = service.put_multiple()
        putter.put(leaf("a"))
        putter.close()
        calls: list[Callable[[], object]] = [
            putter.close,
            lambda: putter.put(leaf("b")),
            lambda: putter.put_built(b"", EMPTY.digest),
        ]
        for call in calls:
            with pytest.raises(InvalidRequest):
                call()
        putter.abandon()
        assert service.get(leaf("a").digest) == leaf("a")

    def test_from_many_threads(self, service: DirectoryService) -> None:
        def work(number: int) -> None:
            own = tree(name=f"number {number}")
            put_closure(service, own)
            put_closure(service, tree())
            service.put(leaf(f"lonely {number}"))
            assert list(service.get_recursive(own[-1].digest)) == self.breadth_first(own)
            assert service.get(leaf(f"lonely {number}").digest) == leaf(f"lonely {number}")

        with ThreadPoolExecutor(8) as threads:
            for future in [threads.submit(work, number) for number in range(16)]:
                future.result()

    # Gaps and damage.

    def test_a_gap_in_a_closure(self, service: DirectoryService) -> None:
        if not (self.can_delete and self.looks_up_children):
            return
        closure = tree()
        put_closure(service, closure)
        assert service.delete_many([closure[1].digest]) == 1
        reading = service.get_recursive(closure[-1].digest)
        assert next(reading) == closure[-1]
        with pytest.raises(NotFound) as error:
            list(reading)
        assert format_digest(closure[1].digest) in str(error.value)

    def test_damage_is_found(self, service: DirectoryService) -> None:
        if not self.finds_damage:
            return
        closure = tree()
        root = closure[-1].digest
        put_closure(service, closure)
        self.damage(service, root)
        calls: list[Callable[[], object]] = [
            lambda: service.get(root),
            lambda: service.get_many([root]),
            lambda: list(service.get_recursive(root)),
        ]
        for call in calls:
            with pytest.raises(Corrupt) as error:
                call()
            assert format_digest(root) in str(error.value)

    # Listing and deleting.

    def test_listing(self, service: DirectoryService) -> None:
        if not self.can_list:
            with pytest.raises((Unsupported, PermissionDenied)):
                service.list()
            return
        assert service.list() == []
        expected = {service.put(leaf(str(number))) for number in range(50)}
        closure = tree()
        put_closure(service, closure)
        expected |= {one.digest for one in (closure if self.looks_up_children else closure[-1:])}
        for limit in (1, 7, 1000):
            assert self.listed(service, limit) == sorted(expected)
        assert service.list(limit=0) == service.list(after=b"\xff" * 32) == []
        assert service.list(sorted(expected)[3], 2) == sorted(expected)[4:6]

    def test_deleting(self, service: DirectoryService) -> None:
        if not self.can_delete:
            with pytest.raises((Unsupported, PermissionDenied)):
                service.delete_many([])
            return
        one, two = leaf("one"), leaf("two")
        service.put(one)
        service.put(two)
        assert service.delete_many([one.digest, leaf("absent").digest, one.digest]) == 1
        assert service.delete_many([one.digest]) == service.delete_many([]) == 0
        assert service.get_many([one.digest, two.digest]) == {two.digest: two}
        service.put(one)
        assert service.get(one.digest) == one
        if self.can_list:
            assert service.list() == sorted([one.digest, two.digest])

    def test_all_kinds_of_names(self, service: DirectoryService) -> None:
        names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
        names += [b"...", b"n" * 255, *(a + b for a, b in itertools.pairwise(names))]
        directory = Directory({name: FileNode(EMPTY_BLOB, 0) for name in names})
        service.put(directory)
        assert service.get(directory.digest) == directory
