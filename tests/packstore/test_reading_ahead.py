"""Frames that are read ahead of who verifies them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from neve.packstore.check import _Ahead, _Read, _tasks
from neve.packstore.pack import DATA, RAW, Frame


def frame(number: int) -> Frame:
    return Frame(number, DATA, RAW, 0, (), number, 0, 1 << 20, b"")


def test_who_would_wait_for_the_thread_does_what_it_has_not_begun_with() -> None:
    begun, helped = threading.Event(), threading.Event()
    by: dict[int, str] = {}

    def read(task: list[Frame]) -> list[_Read]:
        by[task[0].offset] = threading.current_thread().name
        if task[0].offset == 0:
            begun.set()
            assert helped.wait(90)
        elif len(by) == 4:
            helped.set()
        return [(each, b"%d" % each.offset) for each in task]

    with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
        ahead = _Ahead(thread, read)
        for number in range(4):
            ahead.add([frame(number)])
            assert begun.wait(90)
        found = [ahead.first() for _ in range(4)]
        ahead.wait()
    assert [group[0][1] for group in found] == [b"0", b"1", b"2", b"3"]
    assert by[0].startswith("reader")
    assert {by[number] for number in (1, 2, 3)} == {threading.current_thread().name}


def test_what_fails_is_told_to_who_asks_for_it() -> None:
    def read(task: list[Frame]) -> list[_Read]:
        raise OSError(5, "Input/output error")

    with ThreadPoolExecutor(1) as thread:
        ahead = _Ahead(thread, read)
        for number in range(3):
            ahead.add([frame(number)])
        with pytest.raises(OSError, match="Input/output error"):
            ahead.first()
        ahead.wait()


def test_tasks_are_worth_their_while() -> None:
    frames = [Frame(at, DATA, RAW, 0, (), at, 0, 300 * 1024, b"") for at in range(10)]
    tasks = list(_tasks(frames))
    assert [len(task) for task in tasks] == [4, 4, 2]
    assert all(one[-1].offset + 1 == other[0].offset for one, other in pairwise(tasks))
