"""Tries damaged data files of an index, each in a process of its own: LMDB may take it with it.

    python -m tests.packstore.flipped_index STORE < numbers of bits

Prints a line for each bit: ``same`` (everything is as it was), ``told`` (opening, a read, or ``verify``
said "corrupt"), else what is wrong.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from neve.errors import Corrupt
from neve.packstore.store import PackStore
from tests.packstore.helpers import TABLES, contents, data_file, problems

State = dict[tuple[str, bytes], bytes | None]


def look_up(folder: Path, expected: State) -> str:
    """Every record by its key, then the listing, then ``verify``."""
    try:
        store = PackStore.open(folder)
    except Corrupt:
        return "told"
    told = missing = False
    for table in TABLES:
        for (name, key), data in expected.items():
            if name != table.name:
                continue
            try:
                found = store.get(table, key)
            except Corrupt:
                told = True
                continue
            if found is None and data is not None:
                missing = True
            elif found != data:
                return f"wrong: {key.hex()} is {found!r}"
    try:
        listed = contents(store)
        missing |= listed != {key: data for (_, key), data in expected.items() if data is not None}
    except Corrupt:
        told = True
    if not told and problems(store):
        told = True
    if missing and not told:
        return "wrong: something is missing, and nobody tells"
    return "told" if told else "same"


def in_a_child(folder: Path, expected: State) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            answer = look_up(folder, expected)
        except BaseException as error:
            answer = f"wrong: {error!r}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read().decode()
    _, status = os.waitpid(child, 0)
    return f"wrong: died of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else answer


def main(folder: Path) -> None:
    store = PackStore.open(folder)
    expected: State = {}
    for table in TABLES:
        for key, _ in store.page(table, b"", 1_000_000):
            expected[table.name, key] = store.get(table, key)
        expected[table.name, b"x" * 32] = None
    store.close()
    original = data_file(folder).read_bytes()
    packs = {path: path.read_bytes() for path in (folder / "packs").iterdir()}
    for line in sys.stdin:
        bit = int(line)
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        data_file(folder).write_bytes(damaged)
        print(bit, in_a_child(folder, expected), flush=True)
        for path, data in packs.items():
            path.write_bytes(data)
    data_file(folder).write_bytes(original)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
