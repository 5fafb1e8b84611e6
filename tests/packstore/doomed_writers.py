"""Writers that are going to be killed. They keep a diary of what they were promised.

    python -m tests.packstore.doomed_writers STORE DIARIES

Forks a writer for each line of its input, ``NUMBER SEED``, and answers with its process id. Lines of a
diary: ``? WHAT`` before something is asked of the store, ``WHAT`` once it was acknowledged, where WHAT is
``+ KEY`` or ``- KEY`` (a blob), ``= NAME VALUE`` or ``count VALUE`` (the counter that all share).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from pathlib import Path

from neve.packstore import staging
from neve.packstore.frames import Record
from neve.packstore.store import PackStore, TableTransaction
from tests.packstore.helpers import BLOBS, NAMES, put, record, set_name

COUNTER = b"counter"


class Diary:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def intend(self, *what: str) -> None:
        self._write("? ", what)

    def note(self, *what: str) -> None:
        self._write("", what)

    def _write(self, mark: str, what: tuple[str, ...]) -> None:
        os.write(self._fd, "".join(f"{mark}{one}\n" for one in what).encode())


def count_up(store: PackStore) -> int:
    def change(t: TableTransaction) -> int:
        value = int(t.get(NAMES, COUNTER) or b"0") + 1
        t.put(NAMES, Record(1, COUNTER, b"%d" % value))
        return value

    return store.update(change)


def write_until_killed(store: PackStore, diary: Diary, seed: int) -> None:
    noise = random.Random(seed)
    stored: list[bytes] = []
    name, value = b"name of %d" % seed, 0
    while True:
        action = noise.random()
        if action < 0.6:
            size = noise.choice([10, 100, 3000, 60_000])
            made = [record(noise.randbytes(size)) for _ in range(noise.randrange(1, 20))]
            lines = [f"+ {one.key.hex()}" for one in made]
            diary.intend(*lines)
            put(store, made)
            diary.note(*lines)
            stored += [one.key for one in made]
        elif action < 0.75 and stored:
            gone = noise.sample(stored, min(3, len(stored)))
            lines = [f"- {key.hex()}" for key in gone]
            diary.intend(*lines)
            store.delete_many(BLOBS, gone)
            diary.note(*lines)
            stored = [key for key in stored if key not in gone]
        elif action < 0.9:
            value += 1
            diary.intend(f"= {name.hex()} {value}")
            set_name(store, name, b"%d" % value)
            diary.note(f"= {name.hex()} {value}")
        elif action < 0.93:
            # The one who staged them gives them up, but another has found them, and promises them.
            made = [record(noise.randbytes(8000)) for _ in range(noise.randrange(1, 12))]
            lines = [f"+ {one.key.hex()}" for one in made]
            diary.intend(*lines)
            with store.writer.session() as finder:
                with store.writer.session() as session:
                    for one in made:
                        store.stage(BLOBS, [one], session)
                    found = store.locate(BLOBS, [one.key for one in made], finder)
                store.writer.commit(finder)
            diary.note(*(f"+ {key.hex()}" for key in found))
            stored += found
        elif action < 0.95:
            # What is given up, nobody is promised: nothing to write down.
            with store.writer.session() as session:
                for _ in range(noise.randrange(1, 12)):
                    store.stage(BLOBS, [record(noise.randbytes(8000))], session)
        else:
            diary.intend("count")
            diary.note(f"count {count_up(store)}")


def main(folder: Path, diaries: Path) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    staging.APART_FROM = 40_000
    for line in sys.stdin:
        number, seed = map(int, line.split())
        child = os.fork()
        if child == 0:
            try:
                write_until_killed(PackStore.open(folder), Diary(diaries / str(number)), seed)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        print(child, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
