"""The framing and its sizes give the same archive as the encoder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.nix.nar import NarEncoder, framing
from neve.nix.nar.grammar import MAGIC, encode_str
from neve.testing.strategies import trees
from neve.tree import EnterDirectory, Event, File, Symlink


def node_bytes_and_sizes(events: list[Event]) -> tuple[bytes, int]:
    """The archive put together from the framing functions, and the sum of the size functions."""
    nar, size, depth = [MAGIC], framing.MAGIC_SIZE, 0
    for event in events:
        name = event.name if isinstance(event, File | Symlink | EnterDirectory) else None
        if name is not None and depth:
            nar.append(framing.entry_open(name))
            size += framing.entry_overhead(len(name))
        if isinstance(event, File):
            length = len(event.contents)
            nar += [framing.file_head(length, event.executable), event.contents, framing.file_tail(length)]
            size += framing.file_size(length, event.executable)
        elif isinstance(event, Symlink):
            nar.append(framing.symlink(event.target))
            size += framing.symlink_size(len(event.target))
        elif isinstance(event, EnterDirectory):
            nar.append(framing.DIRECTORY_OPEN)
            size += framing.DIRECTORY_SIZE
            depth += 1
            continue
        else:
            nar.append(framing.DIRECTORY_CLOSE)
            depth -= 1
        if depth:
            nar.append(framing.ENTRY_CLOSE)
    return b"".join(nar), size


@given(trees())
def test_framing_and_sizes_agree_with_the_encoder(events: list[Event]) -> None:
    nar, size = node_bytes_and_sizes(events)
    assert nar == b"".join(NarEncoder().encode(events))
    assert size == len(nar)


@given(st.binary(max_size=40))
def test_str_size(value: bytes) -> None:
    encoded = encode_str(value)
    assert framing.str_size(len(value)) == len(encoded)
    assert len(encoded) % 8 == 0
    assert encoded[8 : 8 + len(value)] == value


@pytest.mark.parametrize("size", [0, 1, 8, 2**40 + 3, 2**62])
@pytest.mark.parametrize("executable", [False, True])
def test_sizes_need_no_contents(size: int, executable: bool) -> None:
    frame = framing.file_head(size, executable) + framing.file_tail(size)
    assert framing.file_size(size, executable) == len(frame) + size
