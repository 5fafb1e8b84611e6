"""Stores many blobs and path infos at once, between two marks that show among the system calls.

python -m tests.packstore.many_puts STORE THREADS WHAT
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from neve.castore.blobs.local import LocalBlobService
from neve.packstore.store import PackStore
from tests.packstore.helpers import opened, set_name

BEGIN, END = b"here the puts begin", b"here the puts have ended"


def all_at_once(work: Callable[[int], object], threads: int) -> None:
    """Runs ``work`` in so many threads, which wait for each other before they begin."""
    barrier = threading.Barrier(threads)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=[number]) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def put_blobs(folder: Path, threads: int) -> None:
    service = LocalBlobService(PackStore.open(folder))
    service.put_many([b"the first one makes the pack"])

    def work(number: int) -> None:
        with service.open_write() as writer:
            writer.write(b"blob %d" % number * 100)
            writer.close()

    mark(BEGIN)
    all_at_once(work, threads)
    mark(END)
    service.close()


def put_names(folder: Path, threads: int) -> None:
    with opened(folder) as store:
        set_name(store, b"the first one", b"makes the pack")
        mark(BEGIN)
        all_at_once(lambda number: set_name(store, b"%d" % number, b"value"), threads)
        mark(END)


def mark(what: bytes) -> None:
    with open(os.devnull, "wb", buffering=0) as file:
        file.write(what)


if __name__ == "__main__":
    {"blobs": put_blobs, "names": put_names}[sys.argv[3]](Path(sys.argv[1]), int(sys.argv[2]))
