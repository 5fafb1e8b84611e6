"""Verification: packs against their checksums, and the index against the packs. Changes nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain, islice
from pathlib import Path

from neve.errors import Corrupt, NeveError
from neve.packstore import layout, pack
from neve.packstore.frames import decompress, describe_place
from neve.packstore.location import REPAIR, decode_location, encode_locations, make_place, offset_of, pack_of
from neve.packstore.rebuild import Rebuilt, rebuild_index
from neve.packstore.recovery import frame_location
from neve.packstore.report import Problem, Progress, Report, ignore_progress
from neve.packstore.scratch import scratch_folder
from neve.packstore.store import PackStore, Table, unseal

__all__ = ["Problem", "Progress", "Rebuilt", "Report", "pack_bytes", "rebuild_index", "verify"]

_PAGE = 10_000

_TASK_BYTES = 1024 * 1024
_TASKS_AHEAD = 3
"""A thread decompresses ahead of who hashes and looks up what the index says, some frames at a time: each is
about half of the work, and who is faster helps. More threads gain nothing: they wait for the interpreter's
lock then."""

_Read = tuple[pack.Frame, bytes | None]
"""A frame and its decompressed payload, or None if that is damaged."""


def pack_bytes(store: Path) -> int:
    """The summed size of all packs in bytes."""
    packs = store / layout.PACKS_DIR
    size = 0
    for pack_id in layout.pack_ids(store):
        with contextlib.suppress(FileNotFoundError):  # A collection may just have removed it.
            size += (packs / layout.pack_name(pack_id)).stat().st_size
    return size


def verify(store: PackStore, tables: Iterable[Table], progress: Progress = ignore_progress) -> Report:
    """Reads every frame, proves every record, and compares with the index.

    Each problem is reported once; nothing is changed. Other processes may go on meanwhile: what they
    add after the start is not looked at.
    """
    report = Report()
    known = {table.id: table for table in tables}
    for finding in _index_findings(store):
        report.add(f"index: {finding}; {REPAIR}")
    with ThreadPoolExecutor(1, thread_name_prefix="neve-verify") as thread:
        run = _Verification(store, known, report, progress, thread)
        try:
            if report.problems:
                # LMDB had better not look anything up in there.
                run.check_frames()
            else:
                run.check_all()
        except NeveError as error:
            report.add(str(error))
    return report


def _index_findings(store: PackStore) -> Iterator[str]:
    """What is wrong with LMDB's pages, found in a copy and without the help of LMDB."""
    from lmdb.verify import VerifyError
    from lmdb.verify import verify as verify_pages

    folder = Path(tempfile.gettempdir()) if store.read_only else store.temporary_folder()
    with (
        layout.os_errors(f"cannot copy the index of {store.path} to {folder} to check it"),
        scratch_folder(folder) as copy,
    ):
        try:
            store.index.copy_to(copy)
            yield from verify_pages(str(copy))  # type: ignore[no-untyped-call]
        except (Corrupt, VerifyError) as error:
            yield str(error)


class _Verification:
    """One run over the packs."""

    def __init__(
        self,
        store: PackStore,
        tables: dict[int, Table],
        report: Report,
        progress: Progress,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._thread = thread
        self._store = store
        self._tables = tables
        self._report = report
        self._progress = progress
        self._confirmed = dict.fromkeys(tables, 0)
        self._good: set[int] = set()
        """The places of all frames that are intact."""
        self._gaps: list[str] = []
        """Places where no intact frame could be found."""

    def check_frames(self) -> None:
        """Checks the frames only, whether the index knows them or not."""
        for pack_id in layout.pack_ids(self._store.path):
            for frame, payload in chain.from_iterable(self._groups(pack_id, None)):
                if payload is None:
                    self._report.add(f"{describe_place(frame_place(pack_id, frame))}: the frame is damaged")
        for gap in self._gaps:
            self._report.add(gap)

    def check_all(self) -> None:
        # In this order: what is added in between counts as confirmed, not as expected.
        expected = {table_id: self._store.index.count(table_id) for table_id in self._tables}
        lengths = self._store.index.pack_lengths()
        for pack_id in sorted(lengths.keys() | set(layout.pack_ids(self._store.path))):
            for group in self._groups(pack_id, lengths.get(pack_id, 0)):
                used = self._used(pack_id, [frame for frame, _ in group])
                for (frame, payload), entries in zip(group, used, strict=True):
                    self._check_frame(pack_id, frame, payload, entries)
            self._check_tail(pack_id, lengths.get(pack_id, 0))
        anything_lost = False
        for table_id, table in self._tables.items():
            self._report.records[table.name] = self._confirmed[table_id]
            if self._confirmed[table_id] < expected[table_id]:
                lost = list(self._unconfirmed(table, lengths))
                self._report.problems += lost
                anything_lost = anything_lost or bool(lost)
        for gap in self._gaps:
            if anything_lost:
                self._report.add(gap)
            else:
                self._report.unused.append(gap)

    def _groups(self, pack_id: int, length: int | None) -> Iterator[list[_Read]]:
        """The data frames of a pack up to its committed length, some at a time, with their payload if it is
        intact."""
        path = self._path(pack_id)
        try:
            with path.open("rb", buffering=0) as file, layout.os_errors(f"cannot read {path}"):
                fd = file.fileno()
                self._check_ends(fd, pack_id, length)
                for group in self._payloads(fd, pack_id, self._heads(fd, path, length)):
                    if any(payload is None for _, payload in group) and _is_removed(fd):
                        return
                    size = sum(frame.end - frame.offset for frame, _ in group)
                    self._report.frames += len(group)
                    self._report.stored_bytes += size
                    yield group
                    self._progress(size)
        except FileNotFoundError:
            if length is None or pack_id in self._store.index.pack_lengths():
                self._report.add(f"{path} is missing")

    def _heads(self, fd: int, path: Path, length: int | None) -> Iterator[pack.Frame]:
        """The data frames whose heads are intact; what lies between them is noted."""
        for found in pack.scan(fd, self._store.key):
            start = found.start if isinstance(found, pack.Damage) else found.offset
            if (length is not None and start >= length) or _is_removed(fd):
                return
            if isinstance(found, pack.Damage):
                end = found.end if length is None else min(found.end, length)
                self._gaps.append(f"{path} is damaged from byte {start} to {end}")
            elif found.kind == pack.DATA:
                yield found

    def _payloads(self, fd: int, pack_id: int, frames: Iterable[pack.Frame]) -> Iterator[list[_Read]]:
        """The frames in order, some at a time, each with its payload, which the thread reads ahead."""

        def read(task: list[pack.Frame]) -> list[_Read]:
            return [(frame, _payload(fd, pack_id, frame)) for frame in task]

        ahead = _Ahead(self._thread, read)
        try:
            for task in _tasks(frames):
                ahead.add(task)
                if len(ahead) > _TASKS_AHEAD:
                    yield ahead.first()
            while len(ahead):
                yield ahead.first()
        finally:
            ahead.wait()  # The file is closed next, and its number may be another one's.

    def _check_ends(self, fd: int, pack_id: int, length: int | None) -> None:
        path, size = self._path(pack_id), os.fstat(fd).st_size
        if _is_removed(fd):
            return
        if length is not None and size < length:
            self._report.add(f"{path} is truncated: {size} bytes, {length} were committed")
        try:
            if length or size >= pack.HEADER_SIZE:
                header = os.pread(fd, pack.HEADER_SIZE, 0)
                pack.check_header(header, pack_id, self._store.key, str(path))
        except Corrupt as error:
            self._report.add(str(error))

    def _check_frame(
        self, pack_id: int, frame: pack.Frame, payload: bytes | None, used: Sequence[pack.Entry]
    ) -> None:
        """``used``: the entries to which the index points."""
        place = frame_place(pack_id, frame)
        if payload is not None:
            self._good.add(place)
        contents = memoryview(payload or b"")
        for entry in used:
            table = self._tables[entry.table]
            self._confirmed[table.id] += 1
            if payload is None:
                what = f"its frame is damaged ({describe_place(place)})"
                self._report.problems.append(Problem(table.name, entry.key, what))
            elif not _proven(table, entry, contents[entry.start : entry.start + entry.length]):
                what = f"its bytes do not match it ({describe_place(place)})"
                self._report.problems.append(Problem(table.name, entry.key, what))
        if not used:
            self._report.dead_bytes += frame.end - frame.offset
            if payload is None:
                self._report.unused.append(f"{describe_place(place)}: a frame that is not in use is damaged")

    def _used(self, pack_id: int, frames: Sequence[pack.Frame]) -> list[list[pack.Entry]]:
        """The entries of each frame to which the index points."""
        used: list[list[pack.Entry]] = [[] for _ in frames]
        for table_id in {entry.table for frame in frames for entry in frame.entries} & self._tables.keys():
            parts = [[entry for entry in frame.entries if entry.table == table_id] for frame in frames]
            found = iter(
                self._store.index.raw_many(table_id, [entry.key for part in parts for entry in part])
            )
            for of_frame, frame, part in zip(used, frames, parts, strict=True):
                if not part:
                    continue
                # Encoded once more and compared: a damaged entry of the index leads nowhere either.
                common = frame_location(pack_id, frame, part[0])[1:6]
                wanted = encode_locations(common, [(e.key, e.tag, e.start, e.length) for e in part])
                values = list(islice(found, len(part)))
                of_frame += [e for e, one, other in zip(part, values, wanted, strict=True) if one == other]
        return used

    def _check_tail(self, pack_id: int, length: int) -> None:
        """Reports transactions in the packs that are newer than the index: then it is an old one."""
        try:
            with self._path(pack_id).open("rb", buffering=0) as file:
                # Who holds the pack's lock may be about to commit.
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
                newest = self._store.index.last_seq()
                for found in pack.scan(file.fileno(), self._store.key, max(length, pack.HEADER_SIZE)):
                    if isinstance(found, pack.Frame) and found.kind == pack.COMMIT and found.seq > newest:
                        self._report.add(
                            f"{self._path(pack_id)} has a transaction ({found.seq}) that is newer than "
                            f"the index ({newest}): open the store for writing once"
                        )
        except (BlockingIOError, FileNotFoundError):
            return

    def _unconfirmed(self, table: Table, lengths: dict[int, int]) -> Iterator[Problem]:
        """Entries of the index that no intact frame stands behind, or that cannot be looked up."""
        known = {(problem.table, problem.key) for problem in self._report.problems}
        after = b""
        while page := self._store.index.audit_page(table.id, after, _PAGE):
            after = page[-1][0]
            # Read after the page: what others have committed by then may be in it.
            lengths_now = self._store.index.pack_lengths()
            for key, value, is_found in page:
                try:
                    place = decode_location(key, value).place
                except Corrupt as error:
                    yield Problem(table.name, key, str(error))
                    continue
                if (table.name, key) in known:
                    continue
                if not is_found:
                    yield Problem(table.name, key, f"the index lists it, but does not find it; {REPAIR}")
                    continue
                added_meanwhile = lengths.get(pack_of(place), 0) <= offset_of(place)
                is_committed = offset_of(place) < lengths_now.get(pack_of(place), 0)
                if place not in self._good and not (added_meanwhile and is_committed):
                    yield Problem(table.name, key, "the index points to a place where no intact frame lies")

    def _path(self, pack_id: int) -> Path:
        return self._store.path / layout.PACKS_DIR / layout.pack_name(pack_id)


class _Ahead:
    """Tasks that a thread does one after the other. Whoever would have to wait for it does some himself."""

    def __init__(self, thread: ThreadPoolExecutor, read: Callable[[list[pack.Frame]], list[_Read]]) -> None:
        self._thread = thread
        self._read = read
        self._queued: deque[tuple[list[pack.Frame], Future[list[_Read]]]] = deque()

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, task: list[pack.Frame]) -> None:
        self._queued.append((task, self._thread.submit(self._read, task)))

    def first(self) -> list[_Read]:
        """What the first of them gives."""
        for place in reversed(range(len(self._queued))):
            if self._queued[0][1].done():
                break
            task, future = self._queued[place]
            if future.cancel():  # It has not been begun with.
                done: Future[list[_Read]] = Future()
                done.set_result(self._read(task))
                self._queued[place] = (task, done)
        return self._queued.popleft()[1].result()

    def wait(self) -> None:
        """Returns when nothing is being read any more."""
        wait([future for _, future in self._queued])


def _is_removed(fd: int) -> bool:
    """Whether a collection has removed, and so emptied, the file since it was opened."""
    return not os.fstat(fd).st_nlink


def _tasks(frames: Iterable[pack.Frame]) -> Iterator[list[pack.Frame]]:
    """Frames that are worth a task of the thread together."""
    task: list[pack.Frame] = []
    size = 0
    for frame in frames:
        task.append(frame)
        size += frame.raw_len
        if size >= _TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _payload(fd: int, pack_id: int, frame: pack.Frame) -> bytes | None:
    stored = os.pread(fd, frame.stored_len, frame.payload_offset)
    if pack.check16(stored) != frame.payload_check:
        return None
    try:
        return decompress(frame.codec, stored, frame.raw_len, frame_place(pack_id, frame))
    except Corrupt:
        return None


def frame_place(pack_id: int, frame: pack.Frame) -> int:
    """The place of ``frame``, as the index has it."""
    return make_place(pack_id, frame.payload_offset)


def _proven(table: Table, entry: pack.Entry, data: memoryview) -> bool:
    if table.check is not None:
        return table.check(entry.tag, entry.key, data)
    try:
        unseal(table.id, entry.key, bytes(data))
    except Corrupt:
        return False
    return True
