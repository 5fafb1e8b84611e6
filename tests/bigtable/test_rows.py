"""What is in a table, bad rows among it; limits, ages, several writers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from neve.bigtable.address import target_of
from neve.bigtable.messages import _MAX_COMPARED, MAX_CELL_BYTES, Wanted, escaped, set_cell
from neve.bigtable.table import FRESH_SECONDS, BigTable
from neve.castore.digest import b3_digest
from neve.castore.directories import bigtable as directories_module
from neve.castore.directories.bigtable import BigtableDirectoryService
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.castore.directory import Directory
from neve.castore.node import SymlinkNode
from neve.errors import Conflict, Corrupt, InvalidRequest, LimitExceeded, PermissionDenied
from neve.registry import parse_address
from neve.store.nar_nodes import MemoryNarNodes, Nar
from neve.store.path_info import PathInfo
from neve.store.pathinfos import bigtable as path_infos_module
from neve.store.pathinfos.bigtable import BigtablePathInfoService
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.store.services import open_services
from neve.store.wire import encode_path_info
from neve.testing.bigtable import Emulator
from neve.testing.directories import leaf, parent, put_closure, tree
from neve.testing.nar_nodes import nar_of
from neve.testing.pathinfos import path_info, signature
from tests.bigtable.emulated import FAMILY, NARS, NewTable
from tests.store.helpers import resident

pytestmark = pytest.mark.bigtable

HOUR = FRESH_SECONDS


class Table:
    """A table, and all ways to it."""

    def __init__(self, emulator: Emulator, url: str) -> None:
        self.emulator = emulator
        self.url = url
        self.name = target_of(parse_address(url)).table
        self.opened: list[Any] = []

    def directories(self, more: str = "") -> BigtableDirectoryService:
        service = DIRECTORY_SERVICES.open(self.url + more)
        assert isinstance(service, BigtableDirectoryService)
        self.opened.append(service)
        return service

    def path_infos(self, more: str = "") -> BigtablePathInfoService:
        service = PATH_INFO_SERVICES.open(self.url + more)
        assert isinstance(service, BigtablePathInfoService)
        self.opened.append(service)
        return service

    def write(self, digest: bytes, value: bytes, micros: int = -1) -> None:
        key = digest.hex().encode()
        self.emulator.write(self.name, FAMILY, key, {key: value}, micros)

    def rows(self) -> dict[bytes, list[tuple[str, bytes, bytes, int]]]:
        return self.emulator.rows(self.name)


@pytest.fixture
def table(new_table: NewTable, bigtable_emulator: Emulator) -> Any:
    table = Table(bigtable_emulator, new_table())
    yield table
    for service in table.opened:
        service.close()


def ago(seconds: float) -> int:
    """Microseconds of then."""
    return int((time.time() - seconds) * 1000) * 1000


def test_the_layout_is_that_of_others(table: Table) -> None:
    info, directory = path_info("p"), leaf("x")
    table.path_infos().put(info)
    table.directories().put(directory)
    cells = {row: [cell[:3] for cell in cells] for row, cells in table.rows().items()}
    expected = {info.digest: encode_path_info(info), directory.digest: directory.encode()}
    assert cells == {
        key.hex().encode(): [(FAMILY, key.hex().encode(), value)] for key, value in expected.items()
    }


def test_directories_and_path_infos_may_share_a_table(table: Table) -> None:
    info, directory = path_info("p"), leaf("x")
    table.path_infos().put(info)
    table.directories().put(directory)
    table.emulator.write(table.name, FAMILY, b"somebody's", {b"x": b"y"})
    assert table.path_infos().list() == [info]
    assert table.directories().list() == [directory.digest]
    assert table.path_infos().referrers(directory.digest[:20]) == []


def test_the_map_of_nars_is_in_a_family_of_its_own(table: Table) -> None:
    with_nars = f"{table.url}&nar_family_name={NARS}"
    services = open_services("memory://", path_info_service=with_nars)
    node, info = path_info("p").node, path_info("p")
    services.nar_nodes.put(node, nar_of(node))
    services.path_infos.put(info)
    assert services.path_infos.list() == [info]
    assert {
        cell[0] for row, cells in table.rows().items() for cell in cells if row != info.digest.hex().encode()
    } == {NARS}
    services.close()
    services = open_services("memory://", path_info_service=with_nars)
    assert services.nar_nodes.nar(node) == nar_of(node)
    services.close()
    for more in ("", f"&nar_family_name={NARS}&is_read_only=true"):
        services = open_services("memory://", path_info_service=table.url + more)
        assert isinstance(services.nar_nodes, MemoryNarNodes)
        services.close()


def test_damaged_entries_of_the_map_of_nars(table: Table) -> None:
    services = open_services("memory://", path_info_service=f"{table.url}&nar_family_name={NARS}")
    node = path_info("p").node
    services.nar_nodes.put(node, nar_of(node))
    for row, cells in table.rows().items():
        for _, column, value, micros in cells:
            table.emulator.write(table.name, NARS, row, {column: value[:-40]}, micros)
    with pytest.raises(Corrupt, match="the stored NAR of a tree has"):
        services.nar_nodes.nar(node)
    with pytest.raises(Corrupt, match=f"the stored tree of NAR {nar_of(node).sha256.hex()} is invalid"):
        services.nar_nodes.node(nar_of(node).sha256)
    # A put mends it; what is whole stays, whatever somebody else says of it.
    for nar in (nar_of(node), Nar(1, nar_of(node).sha256)):
        services.nar_nodes.put_many([(node, nar)])
        assert services.nar_nodes.nar(node) == nar_of(node)
        assert services.nar_nodes.node(nar_of(node).sha256) == (node, nar_of(node).size)
    for row in table.rows():
        table.emulator.write(table.name, NARS, row, {b"other": b""})
    services.nar_nodes.put(node, nar_of(node))
    assert services.nar_nodes.nar(node) == nar_of(node)
    services.close()


# Rows that nobody of us has written.


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({b"other": b"x"}, "has the columns 'other', must have one of its own name"),
        ({b"KEY": b"x", b"more": b"y"}, "must have one of its own name"),
        ({b"": b"x"}, "has the columns '', must have one"),
    ],
)
def test_rows_with_other_columns(table: Table, columns: dict[bytes, bytes], message: str) -> None:
    for digest, read in (
        (b"\1" * 32, lambda: table.directories().get(b"\1" * 32)),
        (b"\2" * 20, lambda: table.path_infos().get(b"\2" * 20)),
        (b"\2" * 20, lambda: table.path_infos().list()),
    ):
        key = digest.hex().encode()
        cells = {key if column == b"KEY" else column: value for column, value in columns.items()}
        table.emulator.write(table.name, FAMILY, key, cells)
        with pytest.raises(Corrupt, match=message):
            read()
    [(digest, error)] = table.path_infos().list_encoded()
    assert digest == b"\2" * 20
    assert isinstance(error, Corrupt)
    # They can be got rid of.
    assert table.path_infos().delete_many([digest]) == 1
    assert table.path_infos().list() == []


def test_more_versions_than_one(table: Table) -> None:
    """Others may leave them, and what came last counts."""
    old, new = path_info("p"), path_info("p", signatures=["a"])
    table.write(old.digest, encode_path_info(new), ago(10))
    table.write(old.digest, encode_path_info(old), ago(20))
    assert table.path_infos().get(old.digest) == new
    assert table.path_infos().list() == [new]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xff", "the stored path info of .* is invalid: 1 bytes are no PathInfo message"),
        (b"", "the stored path info of .* is invalid: node"),
        (encode_path_info(path_info("other")), "the row of .* holds the path info of .*other"),
    ],
)
def test_damaged_path_infos(table: Table, value: bytes, message: str) -> None:
    info = path_info("p")
    table.write(info.digest, value)
    service = table.path_infos()
    for read in (lambda: service.get(info.digest), service.list, service.names, lambda: service.put(info)):
        with pytest.raises(Corrupt, match=message):
            read()
    assert service.list_encoded() == [(info.digest, value)]
    assert service.put(info, replace=True) == info
    assert service.get(info.digest) == info


def test_damaged_directories(table: Table) -> None:
    """Also those that have the digest that they say: what is hashed is not yet a Directory."""
    service = table.directories()
    nonsense = b"\xff\xff"
    table.write(b3_digest(nonsense), nonsense)
    for read in (service.get, lambda digest: list(service.get_recursive(digest))):
        with pytest.raises(Corrupt, match=r"stored Directory b3:[^ ]+ is invalid"):
            read(b3_digest(nonsense))
    with pytest.raises(Corrupt, match=r"stored Directory b3:[^ ]+ is invalid"):
        list(service.get_recursive_encoded(b3_digest(nonsense)))
    table.write(b"\1" * 32, leaf("x").encode())
    with pytest.raises(Corrupt, match="do not match its digest"):
        service.get(b"\1" * 32)


# Limits.


def long_directory(size: int) -> Directory:
    target = b"t" * 4000
    return Directory([(b"%05d" % number, SymlinkNode(target)) for number in range(size // 4000)])


def test_what_is_too_long_for_a_cell(table: Table) -> None:
    service = table.directories()
    most = long_directory(MAX_CELL_BYTES - 100_000)
    assert len(most.encode()) <= MAX_CELL_BYTES
    service.put(most)
    assert service.get(most.digest) == most
    over = long_directory(MAX_CELL_BYTES)
    for put in (
        lambda: service.put(over),
        lambda: service.put_many([leaf("x"), over]),
        lambda: put_closure(service, [leaf("x"), over, parent(leaf("x"), over)]),
    ):
        with pytest.raises(LimitExceeded, match=f"are over the limit of {MAX_CELL_BYTES} bytes for a cell"):
            put()
    assert service.list() == [most.digest]


def test_closures_of_long_directories_are_read_in_portions(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same order as any others; and put in portions too."""
    monkeypatch.setattr(directories_module, "_PAGE_BYTES", 20_000)
    leaves = [long_directory(4000 * number) for number in range(1, 10)]
    closure = [*leaves, parent(*leaves)]
    service = table.directories()
    root = put_closure(service, closure)
    assert list(service.get_recursive(root)) == [closure[-1], *leaves]
    assert list(service.get_recursive_encoded(root)) == [one.encode() for one in (closure[-1], *leaves)]


def test_long_path_infos_are_united_too(table: Table) -> None:
    """Longer than what goes into a condition."""
    names = [f"key-{number}" for number in range(_MAX_COMPARED // 64)]
    service = table.path_infos()
    info = path_info("p", signatures=names)
    assert len(encode_path_info(info)) > _MAX_COMPARED
    service.put(info)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: service.put(path_info("p", signatures=[f"new-{n}"])), range(16)))
    stored = service.get(info.digest)
    assert stored is not None
    assert stored.nar is not None
    expected = {signature(name) for name in [*names, *(f"new-{number}" for number in range(16))]}
    assert set(stored.nar.signatures) == expected


def test_pages_of_long_path_infos_end_early(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_infos_module, "_PAGE_BYTES", 1)
    service = table.path_infos()
    infos = sorted((path_info(f"p{number}") for number in range(5)), key=lambda info: info.digest)
    service.put_many(infos)
    assert service.list() == infos[:1]
    assert list(service) == infos


@pytest.mark.slow
def test_many_rows_in_bounded_memory(table: Table) -> None:
    """And in that of the library, which holds what the server has sent."""
    service, total, value = table.path_infos(), 40_000, b"\1" * 2500
    for start in range(0, total, 1000):
        keys = [number.to_bytes(20, "big").hex().encode() for number in range(start, start + 1000)]
        service._table._mutate([(key, set_cell(FAMILY, key, value)) for key in keys])
    lists: list[Callable[[bytes, int], Sequence[tuple[bytes, object]]]] = [
        service.list_with_ages,
        service.list_encoded,
    ]
    before = peak = resident()
    for list_page in lists:
        count, after = 0, b""
        while page := list_page(after, 2000):
            count, after = count + len(page), page[-1][0]
            peak = max(peak, resident())
        assert count == total
    assert peak - before < 48 * 1024 * 1024, "all of them take more than twice as much"


def test_more_than_one_request_takes(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    import neve.bigtable.table as table_module

    monkeypatch.setattr(table_module, "_KEYS_AT_ONCE", 3)
    monkeypatch.setattr(table_module, "_BYTES_AT_ONCE", 200)
    service = table.directories()
    closure = tree()
    put_closure(service, closure)
    found = service.get_many([directory.digest for directory in closure] * 2)
    assert found == {directory.digest: directory for directory in closure}
    assert service.delete_many(list(found)) == len(closure)
    assert service.list() == []


# Several writers.


def test_path_infos_are_put_together_but_after_what_they_refer_to(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In four waves, one for each step of the longest way; the last two are of one path."""
    base = [path_info(f"base-{number}") for number in range(40)]
    middle = [
        path_info(f"middle-{number}", references=[info.store_path for info in base]) for number in range(40)
    ]
    top = path_info("top", references=[middle[0].store_path, base[0].store_path], signatures=["a"])
    again = path_info("top", references=[middle[0].store_path, base[0].store_path], signatures=["b"])
    service = table.path_infos()
    there: set[bytes] = set()
    lock = threading.Lock()
    insert = BigTable.insert

    def inserting(self: BigTable, key: bytes, value: bytes) -> bool:
        with lock:
            if key.decode() not in {info.digest.hex() for info in base}:
                assert {info.digest for info in base} <= there
            if key.decode() == top.digest.hex():
                assert {info.digest for info in middle} <= there
        done = insert(self, key, value)
        with lock:
            there.add(bytes.fromhex(key.decode()))
        return done

    monkeypatch.setattr(BigTable, "insert", inserting)
    results = service.put_many([*base, *middle, top, again])
    assert results[:-1] == [*base, *middle, top]
    stored = results[-1]
    assert isinstance(stored, PathInfo)
    assert stored.nar is not None
    assert [one.name for one in stored.nar.signatures] == ["a", "b"]
    assert service.get(top.digest) == stored
    assert len(list(service)) == 81


def test_many_that_are_there_already_and_stale(table: Table) -> None:
    """Each is noted to be in use, by threads that must not wait for each other."""
    service = table.path_infos()
    infos = [path_info(f"p{number}") for number in range(100)]
    for info in infos:
        table.write(info.digest, encode_path_info(info), ago(3 * HOUR))
    assert service.put_many(infos) == infos
    assert all(age < HOUR for _, age in service.list_with_ages())


def test_two_writers_of_one_key(table: Table) -> None:
    """One of them wins, whatever happens in between; signatures of both are kept."""
    one, two = table.path_infos(), table.path_infos("&channel_size=1")
    assert one.put(path_info("p", signatures=["a"])) == path_info("p", signatures=["a"])
    united = two.put(path_info("p", signatures=["b"]))
    assert united.nar is not None
    assert set(united.nar.signatures) == {signature("a"), signature("b")}
    assert one.get(united.digest) == united
    with pytest.raises(Conflict):
        two.put(path_info("p", contents="other"))
    [cells] = table.rows().values()
    assert len(cells) == 1


def test_a_change_in_between(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody signs, and somebody deletes, after it was read and before it is replaced."""
    service, other = table.path_infos(), table.path_infos()
    service.put(path_info("p", signatures=["a"]))
    between: list[Callable[[], object]] = [
        lambda: other.put(path_info("p", signatures=["b"])),
        lambda: other.delete_many([path_info("p").digest]),
    ]
    replace = BigTable.replace

    def replacing(self: BigTable, *arguments: Any) -> bool:
        if self is service._table and between:
            between.pop(0)()
        return replace(self, *arguments)

    monkeypatch.setattr(BigTable, "replace", replacing)
    stored = service.put(path_info("p", signatures=["c"]))
    assert between == []
    assert stored == path_info("p", signatures=["c"])
    assert service.get(stored.digest) == stored


def test_equal_times_do_not_hide_a_change(table: Table) -> None:
    """Two changes in one millisecond: the value tells them apart."""
    service = table.path_infos()
    info = path_info("p")
    micros = ago(1)
    table.write(info.digest, encode_path_info(info), micros)
    [row] = service._table.get([info.digest.hex().encode()])
    table.write(info.digest, encode_path_info(path_info("p", signatures=["b"])), micros)
    assert not service._table.replace(row.cell, b"x")
    [row] = service._table.get([info.digest.hex().encode()])
    assert service._table.replace(row.cell, b"x")


def test_equal_times_do_not_hide_a_change_of_something_long(table: Table) -> None:
    """Of which not all goes into a condition: what is put in place of it is later, and what is put when it is
    gone may differ at its ends, whatever bytes are there."""
    service = table.path_infos()._table
    key, micros = b"00" * 20, ago(-3600)  # By a clock that is ahead.
    odd = bytes(range(256)) * 200
    for other in (odd + b"x", b"x" + odd, odd[:-1] + b"\0"):
        service.delete([key])
        table.write(bytes(20), odd, micros)
        [row] = service.get([key])
        assert service.replace(row.cell, odd)
        [row] = service.get([key])
        service.put(key, other)
        assert not service.replace(row.cell, b"lost")
        service.delete([key])
        table.write(bytes(20), other, row.cell.micros)
        assert not service.replace(row.cell, b"lost")
    [row] = service.get([key])
    assert row.cell.value == other


def test_what_is_put_in_place_of_anything(table: Table) -> None:
    """Of nothing, of a row that is none, and of what others put there at the same time."""
    service = table.path_infos()._table
    key = b"00" * 20
    service.put(key, b"first")
    table.emulator.write(table.name, FAMILY, key, {b"other": b"odd"})
    service.put(key, b"second")
    assert [row.cell.value for row in service.get([key])] == [b"second"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: service.put(key, b"%d" % number), range(32)))
    [row] = service.get([key])
    assert int(row.cell.value) in range(32)
    service.delete([key])
    assert list(service.get([key])) == []


# Read-only.


def test_one_that_is_only_read(table: Table) -> None:
    info, directory = path_info("p"), leaf("x")
    table.write(info.digest, encode_path_info(info), ago(2 * HOUR))
    table.write(directory.digest, directory.encode(), ago(2 * HOUR))
    before = table.rows()
    path_infos, directories = table.path_infos("&is_read_only=true"), table.directories("&is_read_only=true")
    assert path_infos.get(info.digest) == info
    assert directories.get(directory.digest) == directory
    changes: list[Callable[[], object]] = [
        lambda: path_infos.put(info),
        lambda: path_infos.put(info, replace=True),
        lambda: path_infos.delete_many([info.digest]),
        lambda: directories.put(directory),
        lambda: directories.put_many([directory]),
        directories.put_multiple,
        lambda: directories.delete_many([directory.digest]),
    ]
    for change in changes:
        with pytest.raises(PermissionDenied, match="is read-only, as its address says"):
            change()
    assert table.rows() == before


# Ages.


def test_what_is_put_again_or_read_is_used(table: Table) -> None:
    service = table.directories()
    for use in (
        service.put,
        lambda d: service.put_many([d]),
        lambda d: put_closure(service, [d]),
        lambda d: service.get(d.digest),
        lambda d: list(service.get_recursive(d.digest)),
    ):
        directory = leaf("x")
        table.write(directory.digest, directory.encode(), ago(3 * HOUR))
        [(digest, age)] = service.list_with_ages()
        assert digest == directory.digest
        assert 3 * HOUR <= age < 4 * HOUR
        use(directory)
        [(_, age)] = service.list_with_ages()
        assert age < HOUR
        # Not again.
        before = table.rows()
        use(directory)
        assert table.rows() == before
        assert service.delete_many([digest]) == 1


def test_path_infos_that_are_put_again_or_asked_for_are_used(table: Table) -> None:
    service = table.path_infos()
    info = path_info("p")
    for use in (service.put, lambda info: service.get(info.digest)):
        table.write(info.digest, encode_path_info(info), ago(3 * HOUR))
        use(info)
        [(digest, age)] = service.list_with_ages()
        assert digest == info.digest
        assert age < HOUR
        assert service.delete_many([digest]) == 1


def test_deleting_spares_what_was_used(table: Table) -> None:
    directories, path_infos = table.directories(), table.path_infos()
    old, new = leaf("old"), leaf("new")
    table.write(old.digest, old.encode(), ago(5 * HOUR))
    directories.put(new)
    digests = [old.digest, new.digest, b"\1" * 32, old.digest]
    assert directories.delete_many(digests, unused_for=6 * HOUR) == 0
    assert directories.delete_many(digests, unused_for=4 * HOUR) == 1
    assert directories.list() == [new.digest]
    table.write(old.digest, old.encode(), ago(5 * HOUR))
    directories.get(old.digest)
    assert directories.delete_many(digests, unused_for=4 * HOUR) == 0
    assert directories.delete_many(digests) == 2
    info = path_info("p")
    table.write(info.digest, encode_path_info(info), ago(5 * HOUR))
    assert path_infos.delete_many([info.digest], unused_for=6 * HOUR) == 0
    assert path_infos.delete_many([info.digest], unused_for=4 * HOUR) == 1
    assert table.rows() == {}


def test_a_page_of_nothing(table: Table) -> None:
    table.path_infos().put(path_info("p"))
    table.directories().put(leaf("x"))
    for service in (table.path_infos(), table.directories()):
        assert service.list(limit=0) == []
        assert service.list_with_ages(limit=0) == []


# What the server looks for.


def test_any_bytes_can_be_looked_for(table: Table) -> None:
    """Also those that mean something in a regular expression, or are no UTF-8."""
    rows = BigTable(target_of(parse_address(table.url)))
    table.opened.append(rows)
    for number in range(256):
        rows.put(b"%02x" % number, b"\n\xff<" + bytes([number]) * 3 + b">\x00")
    for number in range(256):
        found = [row.key for row in rows.scan(Wanted(holding=b"<" + bytes([number]) * 3 + b">"))]
        assert found == [b"%02x" % number], escaped(bytes([number]))


def test_referrers_hold_any_digest(table: Table) -> None:
    service = table.path_infos()
    infos = [path_info(f"p{number}", references=[path_info(f"r{number}").store_path]) for number in range(20)]
    service.put_many(infos)
    for number, info in enumerate(infos):
        assert service.referrers(path_info(f"r{number}").digest) == [info.digest]
    with pytest.raises(InvalidRequest):
        service.referrers(b"x")
