"""Recovery: what a process that died has left behind the committed end of its pack.

A commit writes its frames and marks to the packs, syncs, and then commits to the index. Who dies in
between leaves a tail: frames that no mark covers, or even marks of which the index does not know.
Nothing of it was acknowledged, so all of it may go. But the index may also be the older one because it
was damaged (a flipped bit in the newest of LMDB's meta pages brings back the state before). So what a
mark covers is put into the index once more, if its transaction is newer than all that the index has
seen; a number that the index has given out again since belongs to a transaction that never was.

A transaction that went to several packs is repeated from the first of them on. Some of its packs may still
be held, by the process that is just dying, or by another one that recovers: then what comes behind those is
neither repeated nor cut off, but left to who finds all of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from neve.errors import Corrupt
from neve.packstore import pack
from neve.packstore.appender import OpenPack, lock_pack
from neve.packstore.index import Index
from neve.packstore.index_writer import IndexWriter
from neve.packstore.layout import PACKS_DIR, os_errors, pack_ids, pack_name
from neve.packstore.location import Location, make_place
from neve.packstore.removal import finish_removals


class _Commit(NamedTuple):
    """What one transaction has left in one tail."""

    seq: int
    tail: OpenPack
    after: int
    """The pack that the transaction has marked before this one, or 0."""
    frames: list[pack.Frame]
    end: int


def recover(store: Path, index: Index, key: bytes) -> None:
    """Brings all packs into order that have a tail and no living owner, and removes those that are to be."""
    finish_removals(store, index)
    committed = index.pack_lengths()
    with os_errors(f"cannot recover the packs of {store}"), contextlib.ExitStack() as held:
        tails = []
        for pack_id in pack_ids(store):
            path = store / PACKS_DIR / pack_name(pack_id)
            if _size(path) != committed.get(pack_id) and (found := lock_pack(path, pack_id)) is not None:
                held.callback(found.close)
                tails.append(found)
        if tails:
            _recover(tails, index, key)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _recover(tails: list[OpenPack], index: Index, key: bytes) -> None:
    # Looked up under the locks: before, their holders may have gone on committing.
    committed = index.pack_lengths()
    commits: list[_Commit] = []
    ends: dict[int, int] = {}
    for tail in tails:
        length = committed.get(tail.id, 0)
        with contextlib.suppress(Corrupt):
            _check_start(tail, length, key)
            ends[tail.id] = max(length, pack.HEADER_SIZE)
            commits += _commits(tail, ends[tail.id], key)
    if commits:
        ends |= index.run(lambda txn: _redo(txn, commits))
    for tail in tails:
        if tail.id in ends:
            tail.truncate(ends[tail.id])


def _check_start(tail: OpenPack, committed: int, key: bytes) -> None:
    """Raises ``Corrupt`` if the pack is damaged: then it is left as it is, for ``verify`` to report."""
    if tail.end < committed:
        raise Corrupt(f"{tail.path} is truncated: {tail.end} bytes, {committed} were committed")
    header = os.pread(tail.fd, pack.HEADER_SIZE, 0)
    if not committed and (len(header) < pack.HEADER_SIZE or not any(header)):
        # Its creator died at once, or a power failure has spared the length only.
        tail.truncate(0)
        tail.append(pack.encode_header(tail.id, key))
        return
    pack.check_header(header, tail.id, key, str(tail.path))


def _commits(tail: OpenPack, start: int, key: bytes) -> Iterator[_Commit]:
    """The transactions behind ``start`` that are there completely."""
    frames: list[pack.Frame] = []
    for found in pack.scan(tail.fd, key, start):
        # After a power failure a mark can be there without all that comes before it.
        if isinstance(found, pack.Damage) or not pack.payload_intact(tail.fd, found):
            return
        if found.kind == pack.COMMIT:
            yield _Commit(found.seq, tail, found.raw_len, frames, found.end)
            frames = []
        else:
            frames.append(found)


def _redo(txn: IndexWriter, commits: list[_Commit]) -> dict[int, int]:
    """Repeats transactions that the index does not know. Returns the new end of each pack they are in."""
    whole, rest = _in_order([commit for commit in commits if commit.seq >= txn.seq])
    ends: dict[int, int] = {}
    for seq, tail, _, frames, end in whole:
        for frame in frames:
            _redo_frame(txn, tail.id, frame)
        txn.set_pack_length(tail.id, end)
        txn.raise_seq_above(seq)
        ends[tail.id] = end
    return ends | {commit.tail.id: commit.tail.end for commit in rest}


def _in_order(commits: list[_Commit]) -> tuple[list[_Commit], list[_Commit]]:
    """Parts of transactions in the order in which they were made; and, from the first on that lacks one
    before it, those that may refer to what is not there."""
    there = {(commit.seq, commit.tail.id): commit for commit in commits}
    lacking = len(commits)

    def place(commit: _Commit) -> tuple[int, int]:
        seq, before = commit.seq, 0
        while commit.after and before < lacking:
            found = there.get((seq, commit.after))
            if found is None:
                return seq, lacking
            commit, before = found, before + 1
        return seq, before

    ordered = sorted(commits, key=place)
    for number, commit in enumerate(ordered):
        if place(commit)[1] == lacking:
            return ordered[:number], ordered[number:]
    return ordered, []


def _redo_frame(txn: IndexWriter, pack_id: int, frame: pack.Frame) -> None:
    for entry in frame.entries:
        location = frame_location(pack_id, frame, entry)
        if not frame.seq:
            txn.put_absent(entry.table, [(entry.key, location)])
        elif entry.tag == pack.TOMBSTONE:
            txn.delete(entry.table, entry.key)
        else:
            txn.put(entry.table, entry.key, location)


def frame_location(pack_id: int, frame: pack.Frame, entry: pack.Entry) -> Location:
    """Where ``entry`` of ``frame`` lies, as the index keeps it."""
    return Location(
        entry.tag,
        make_place(pack_id, frame.payload_offset),
        frame.codec,
        frame.stored_len,
        frame.raw_len,
        frame.payload_offset - frame.offset - pack.HEAD_SIZE,
        entry.start,
        entry.length,
    )
