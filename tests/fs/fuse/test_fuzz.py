"""Whatever bytes come, a session answers once and goes on."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neve.fs.fuse import protocol
from neve.fs.fuse.opcodes import UNANSWERED, Opcode
from neve.fs.fuse.protocol import MalformedRequest

from .asking import IN_HEADER, OUT_HEADER, Asker, Pending
from .conftest import NAME, NewSession

OPCODES = st.one_of(st.sampled_from(list(Opcode)), st.integers(0, 0xFFFFFFFF))
NUMBERS = st.one_of(st.integers(0, 12), st.integers(0, 2**64 - 1))
WORDS = st.one_of(NUMBERS, st.sampled_from([2**63, 2**64 - 1, 4096, 1 << 20])).map(
    lambda n: struct.pack("<Q", n)
)
BODIES = st.one_of(
    st.binary(max_size=100),
    st.lists(WORDS, max_size=6).map(b"".join),
    st.sampled_from([NAME, b"tree", b"a", b"..", b"a/b"]).map(lambda name: name + b"\0"),
    st.tuples(st.integers(0, 300), st.sampled_from([b"user.x\0", b"user.tvix.castore.blob.digest\0"])).map(
        lambda pair: struct.pack("<II", pair[0], 0) + pair[1]
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = draw(BODIES)
    length = draw(st.one_of(st.just(40 + len(body)), st.integers(0, 0xFFFFFFFF)))
    extensions = draw(st.one_of(st.just(0), st.integers(0, 0xFFFF)))
    header = IN_HEADER.pack(length, draw(OPCODES), draw(NUMBERS), draw(NUMBERS), 0, 0, 0, extensions, 0)
    whole = header + body
    return whole[: draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))]


@pytest.fixture(scope="module")
def asker(new_session: NewSession) -> Iterator[Asker]:
    session = new_session(list_root=True)
    yield Asker(session)
    session.close()


FUZZING = settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZING
@given(requests())
def test_the_codec_refuses_or_decodes(whole: bytes) -> None:
    with contextlib.suppress(MalformedRequest):
        header = protocol.decode_header(whole)
        assert header.length == int.from_bytes(whole[:4], "little")
        protocol.decode(header, whole)


@FUZZING
@given(st.lists(requests(), max_size=8))
def test_a_session_answers_whatever_comes(asker: Asker, many: list[bytes]) -> None:
    for whole in many:
        pending = Pending(0)
        asker.session.handle(whole, pending.reply)
        assert pending._came.wait(60)
        (reply,) = pending.replies
        if not reply:
            short = len(whole) < IN_HEADER.size
            assert short or struct.unpack_from("<I", whole, 4)[0] in {*UNANSWERED, Opcode.INTERRUPT}
            continue
        length, error, unique = OUT_HEADER.unpack_from(reply)
        assert length == len(reply)
        assert unique == struct.unpack_from("<Q", whole, 8)[0]
        assert -4096 < error <= 0
        assert not error or length == OUT_HEADER.size
    # And then it still does what it should.
    asker.init()
    file = asker.walk(NAME, b"text")
    assert asker.read(file.node) == b"Hello\n"
