"""Verification of packs and index, and rebuilding the index from the packs alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from neve.errors import Corrupt, NeveError
from neve.packstore import layout, pack
from neve.packstore.appender import frame_location
from neve.packstore.frames import decompress, describe_place
from neve.packstore.index import Index, IndexWriter, MapFull, decode_location, make_place
from neve.packstore.store import PackStore, Table, unseal

Progress = Callable[[int], None]
"""Called with the number of bytes that were checked since the last call."""

_PAGE = 10_000


class Problem(NamedTuple):
    """Something found damaged: the record (``table``, ``key``), or a place (``table`` is empty)."""

    table: str
    key: bytes
    what: str


@dataclass
class Report:
    """What a verification found."""

    problems: list[Problem] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    stored_bytes: int = 0
    dead_bytes: int = 0


def pack_bytes(store: Path) -> int:
    """The summed size of all packs in bytes."""
    packs = store / layout.PACKS_DIR
    return sum((packs / layout.pack_name(i)).stat().st_size for i in layout.pack_ids(store))


def _ignore(_: int) -> None:
    pass


def verify(store: PackStore, tables: Iterable[Table], progress: Progress = _ignore) -> Report:
    """Reads every frame, proves every record, and compares with the index.

    Each problem is reported once; nothing is changed. Other processes may go on meanwhile: what they
    add after the start is not looked at.
    """
    known = {table.id: table for table in tables}
    report = Report()
    report.problems.extend(_check_index_structure(store))
    confirmed = dict.fromkeys(known, 0)
    good: set[int] = set()
    checker = _FrameChecker(store, known, report, confirmed, good)
    lengths = store.index.pack_lengths()
    expected = {table_id: store.index.count(table_id) for table_id in known}
    for pack_id, length in sorted(lengths.items()):
        path = store.path / layout.PACKS_DIR / layout.pack_name(pack_id)
        try:
            with path.open("rb", buffering=0) as file:
                pack.check_header(os.pread(file.fileno(), pack.HEADER_SIZE, 0), pack_id, str(path))
                for found in _committed(file.fileno(), length, path):
                    if isinstance(found, Problem):
                        report.problems.append(found)
                    else:
                        checker.check(file.fileno(), pack_id, found)
                        progress(found.end - found.offset)
        except FileNotFoundError:
            report.problems.append(Problem("", b"", f"{path} is missing"))
        except NeveError as error:
            report.problems.append(Problem("", b"", str(error)))
    for table_id, table in known.items():
        report.records[table.name] = confirmed[table_id]
        if confirmed[table_id] < expected[table_id]:
            report.problems.extend(_unconfirmed(store, table, good, report))
    return report


def _check_index_structure(store: PackStore) -> Iterator[Problem]:
    """Walks LMDB's pages in a copy: what the engine itself would only trip over."""
    from lmdb.verify import VerifyError
    from lmdb.verify import verify as verify_pages

    with tempfile.TemporaryDirectory(dir=None if store.read_only else store.temporary_folder()) as copy:
        try:
            store.index.copy_to(Path(copy))
            for finding in verify_pages(copy):  # type: ignore[no-untyped-call]
                yield Problem("", b"", f"index: {finding}; run: neve verify --rebuild-index")
        except VerifyError as error:
            yield Problem("", b"", f"index: {error}; run: neve verify --rebuild-index")


def _committed(fd: int, length: int, path: Path) -> Iterator[pack.Frame | Problem]:
    """The frames of a pack up to its committed length."""
    size = os.fstat(fd).st_size
    if size < length:
        yield Problem("", b"", f"{path} is truncated: {size} bytes, {length} were committed")
    for found in pack.scan(fd):
        if isinstance(found, pack.Damage):
            if found.start >= length:
                return
            yield Problem("", b"", f"{path} is damaged from byte {found.start} to {min(found.end, length)}")
        elif found.offset >= length:
            return
        elif found.kind == pack.DATA:
            yield found


@dataclass
class _FrameChecker:
    """Proves the records of frames and counts those the index points to."""

    store: PackStore
    tables: dict[int, Table]
    report: Report
    confirmed: dict[int, int]
    good: set[int]

    def check(self, fd: int, pack_id: int, frame: pack.Frame) -> None:
        stored = os.pread(fd, frame.stored_len, frame.payload_offset)
        place = make_place(pack_id, frame.payload_offset)
        where = describe_place(place)
        raw = _payload(frame, stored, place)
        self.report.frames += 1
        self.report.stored_bytes += frame.end - frame.offset
        if raw is not None:
            self.good.add(place)
        alive = [self._check_entry(pack_id, frame, entry, raw, where) for entry in frame.entries]
        if not any(alive):
            self.report.dead_bytes += frame.end - frame.offset

    def _check_entry(
        self, pack_id: int, frame: pack.Frame, entry: pack.Entry, raw: bytes | None, where: str
    ) -> bool:
        """Returns whether this copy of the record is the one in use."""
        table = self.tables.get(entry.table)
        if table is None or entry.tag == pack.TOMBSTONE:
            return False
        try:
            location = self.store.index.get_many(table.id, [entry.key]).get(entry.key)
        except Corrupt:
            return False  # found again, and reported, by the pass over the index
        if location != frame_location(pack_id, frame, entry):
            return False
        self.confirmed[table.id] += 1
        if raw is None:
            what = f"its frame is damaged ({where})"
            self.report.problems.append(Problem(table.name, entry.key, what))
        elif not _proven(table, entry, raw[entry.start : entry.start + entry.length]):
            what = f"its bytes do not match it ({where})"
            self.report.problems.append(Problem(table.name, entry.key, what))
        return True


def _payload(frame: pack.Frame, stored: bytes, place: int) -> bytes | None:
    """The decompressed payload, or None if it is damaged."""
    if pack.check16(stored) != frame.payload_check:
        return None
    try:
        return decompress(frame.codec, stored, frame.raw_len, place)
    except Corrupt:
        return None


def _proven(table: Table, entry: pack.Entry, data: bytes) -> bool:
    if table.check is not None:
        return table.check(entry.tag, entry.key, data)
    try:
        unseal(table.id, entry.key, data)
    except Corrupt:
        return False
    return True


def _unconfirmed(store: PackStore, table: Table, good: set[int], report: Report) -> Iterator[Problem]:
    """Entries of the index that no frame stands behind."""
    known = {(p.table, p.key) for p in report.problems}
    after = b""
    while page := store.index.raw_page(table.id, after, _PAGE):
        after = page[-1][0]
        for key, value in page:
            try:
                location = decode_location(key, value)
            except Corrupt as error:
                yield Problem(table.name, key, str(error))
                continue
            if location.place not in good and (table.name, key) not in known:
                yield Problem(table.name, key, "the index points to a place where no intact frame lies")


@dataclass
class Rebuilt:
    """What a rebuild did: records found by table, and what of the packs could not be used."""

    records: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def rebuild_index(path: Path, tables: Iterable[Table], progress: Progress = _ignore) -> Rebuilt:
    """Makes a new index from the packs of the store in ``path`` and puts it in the old one's place.

    Needs the store for itself: raises ``Unavailable`` if a process has it open. The old index stays
    until the new one is complete and durable.
    """
    layout.read_settings(path)
    lock = layout.StoreLock(path, exclusive=True, read_only=False)
    scratch = path / layout.REBUILD_DIR
    known = {table.id: table for table in tables}
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        with layout.os_errors(f"cannot rebuild the index of {path}"):
            scratch.mkdir()
            index = Index(scratch, read_only=False)
            try:
                result = _Rebuild(path, index, known, progress).run()
            finally:
                index.close()
            (path / layout.INDEX_DIR).mkdir(exist_ok=True)
            (path / layout.INDEX_DIR / "lock.mdb").unlink(missing_ok=True)
            (scratch / "data.mdb").replace(path / layout.INDEX_DIR / "data.mdb")
            layout.sync_directory(path / layout.INDEX_DIR)
        return result
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.close()


class _Rebuild:
    """Two passes over the packs: first who wins for each key that can change, then the entries."""

    def __init__(self, path: Path, index: Index, tables: dict[int, Table], progress: Progress) -> None:
        self._path = path
        self._index = index
        self._tables = tables
        self._progress = progress
        self._newest: dict[tuple[int, bytes], tuple[int, int, int]] = {}
        self._result = Rebuilt()
        self._highest = 0

    def run(self) -> Rebuilt:
        ids = layout.pack_ids(self._path)
        for pack_id in ids:
            for seq, frame in self._frames(pack_id, report=True):
                self._note(pack_id, seq, frame)
        damaged: list[tuple[int, pack.Frame, int]] = []
        for pack_id in ids:
            damaged.extend(self._index_pack(pack_id))
        self._write(lambda txn: self._finish(txn, damaged, ids))
        for table in self._tables.values():
            self._result.records[table.name] = self._index.count(table.id)
        return self._result

    def _frames(self, pack_id: int, *, report: bool) -> Iterator[tuple[int, pack.Frame]]:
        """The data frames of a pack, each with the number of the transaction that committed it.

        Intact frames behind the last mark are taken too: they were not acknowledged, or their mark
        is damaged, and keeping too much is the smaller harm.
        """
        path = self._path / layout.PACKS_DIR / layout.pack_name(pack_id)
        waiting: list[pack.Frame] = []
        seq = 0
        with path.open("rb", buffering=0) as file:
            try:
                pack.check_header(os.pread(file.fileno(), pack.HEADER_SIZE, 0), pack_id, str(path))
            except Corrupt as error:
                if report:
                    self._result.problems.append(Problem("", b"", str(error)))
            for found in pack.scan(file.fileno()):
                if isinstance(found, pack.Damage):
                    if report:
                        what = f"{path}: no intact frame from byte {found.start} to {found.end}"
                        self._result.problems.append(Problem("", b"", what))
                elif found.kind == pack.COMMIT:
                    seq = found.seq
                    yield from ((seq, frame) for frame in waiting)
                    waiting = []
                else:
                    waiting.append(found)
        yield from ((seq + 1, frame) for frame in waiting)

    def _note(self, pack_id: int, seq: int, frame: pack.Frame) -> None:
        for entry in frame.entries:
            table = self._tables.get(entry.table)
            if table is None or (table.check is not None and entry.tag != pack.TOMBSTONE):
                continue
            version = (seq, pack_id, frame.offset)
            key = (entry.table, entry.key)
            if version > self._newest.get(key, (-1, 0, 0)):
                self._newest[key] = version

    def _wanted(self, pack_id: int, seq: int, frame: pack.Frame, entry: pack.Entry) -> bool:
        table = self._tables.get(entry.table)
        if table is None or entry.tag == pack.TOMBSTONE:
            return False
        newest = self._newest.get((entry.table, entry.key))
        if newest is None:
            return True
        version = (seq, pack_id, frame.offset)
        # A content-addressed record lives on if it was committed after the last deletion of its key.
        return version == newest if table.check is None else seq > newest[0]

    def _index_pack(self, pack_id: int) -> Iterator[tuple[int, pack.Frame, int]]:
        """Adds a pack's records; yields the frames whose payload is damaged instead of adding them."""
        path = self._path / layout.PACKS_DIR / layout.pack_name(pack_id)
        batch: list[tuple[int, pack.Frame]] = []
        pending = 0
        with path.open("rb", buffering=0) as file:
            for seq, frame in self._frames(pack_id, report=False):
                payload = os.pread(file.fileno(), frame.stored_len, frame.payload_offset)
                self._progress(frame.end - frame.offset)
                if pack.check16(payload) != frame.payload_check:
                    yield pack_id, frame, seq
                    continue
                batch.append((seq, frame))
                pending += len(frame.entries)
                if pending >= _PAGE:
                    self._add(pack_id, batch)
                    batch, pending = [], 0
        self._add(pack_id, batch)

    def _add(self, pack_id: int, batch: list[tuple[int, pack.Frame]]) -> None:
        def add(txn: IndexWriter) -> None:
            for seq, frame in batch:
                self._add_frame(txn, pack_id, seq, frame)

        self._write(add)

    def _add_frame(self, txn: IndexWriter, pack_id: int, seq: int, frame: pack.Frame) -> None:
        for entry in frame.entries:
            if self._wanted(pack_id, seq, frame, entry):
                txn.put_absent(entry.table, [(entry.key, frame_location(pack_id, frame, entry))])
        self._highest = max(self._highest, seq)

    def _finish(self, txn: IndexWriter, damaged: list[tuple[int, pack.Frame, int]], ids: list[int]) -> None:
        """Damaged frames last: where a good copy exists it has won, else a read says "corrupt"."""
        for pack_id, frame, seq in damaged:
            self._add_frame(txn, pack_id, seq, frame)
            what = f"pack {layout.pack_name(pack_id)}: the frame at byte {frame.offset} is damaged"
            self._result.problems.append(Problem("", b"", what))
        for pack_id in ids:
            path = self._path / layout.PACKS_DIR / layout.pack_name(pack_id)
            txn.set_pack_length(pack_id, path.stat().st_size)
        txn.raise_seq_above(self._highest + 1)

    def _write(self, change: Callable[[IndexWriter], None]) -> None:
        while True:
            try:
                with self._index.write() as txn:
                    change(txn)
                return
            except MapFull:
                self._index.grow()
