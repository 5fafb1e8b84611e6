"""Events whose other owner does what it likes with them."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest

from neve.fs.vhost.events import Event
from neve.fs.vhost.messages import BadMessage

from .frontend import PATIENCE

FULL = (1 << 64) - 2


@pytest.fixture
def file() -> Iterator[int]:
    """The front-end's descriptor of the event."""
    file = os.eventfd(0)
    yield file
    os.close(file)


@pytest.fixture
def event(file: int) -> Iterator[Event]:
    event = Event(os.dup(file))
    yield event
    event.close()


def test_signals_are_taken_all_at_once(file: int, event: Event) -> None:
    os.eventfd_write(file, 3)
    event.take()
    event.take()
    assert select.select([file], [], [], 0)[0] == []


def test_signals_are_counted(file: int, event: Event) -> None:
    event.signal()
    event.signal()
    assert os.eventfd_read(file) == 2


def test_an_event_that_was_made_to_block_keeps_nobody(file: int, event: Event) -> None:
    os.set_blocking(file, True)

    def use() -> None:
        event.take()
        os.eventfd_write(file, FULL)
        event.signal()

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert os.eventfd_read(file) == FULL


def test_nothing_else_is_taken() -> None:
    ends = os.pipe()
    with pytest.raises(BadMessage, match="no eventfd"):
        Event(ends[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ends[0])
    os.close(ends[1])
