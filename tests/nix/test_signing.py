from __future__ import annotations

import base64
import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.nix.narinfo import NarInfo
from neve.nix.signing import (
    InvalidKey,
    InvalidSignature,
    PublicKey,
    SecretKey,
    Signature,
    verified,
    verify_any,
)

from . import vectors
from .strategies import key_names, signatures

CACHE = vectors.load("cache.json")
SECRET = SecretKey.parse(CACHE["secret_key"])
PUBLIC = PublicKey.parse(CACHE["public_key"])
OTHER = SecretKey(SECRET.name, bytes(32))

MESSAGE = b"1;/nix/store/..."


@pytest.mark.parametrize("file", vectors.narinfo_files(), ids=lambda f: f"{f.parent.name}-{f.name[:8]}")
def test_signatures_of_nix_verify_and_are_reproduced(file: Path) -> None:
    narinfo = NarInfo.parse(file.read_bytes())
    (signature,) = narinfo.signatures
    assert PUBLIC.verify(narinfo.fingerprint(), signature)
    assert SECRET.sign(narinfo.fingerprint()) == signature
    assert not PUBLIC.verify(narinfo.fingerprint() + b" ", signature)


def test_keys_of_nix_are_reproduced() -> None:
    assert SECRET.render() == CACHE["secret_key"]
    assert SECRET.public_key() == PUBLIC
    assert PUBLIC.render() == str(PUBLIC) == CACHE["public_key"]


def test_keys_read_from_files_may_end_in_a_line_break() -> None:
    assert SecretKey.parse(CACHE["secret_key"].encode() + b"\n") == SECRET
    assert PublicKey.parse(f" {CACHE['public_key']}\n") == PUBLIC


def test_list_of_keys() -> None:
    other = OTHER.public_key()
    assert PublicKey.parse_many(f"{PUBLIC}\n {other}\t") == (PUBLIC, other)
    assert PublicKey.parse_many(" ") == ()
    with pytest.raises(InvalidKey, match="no '<name>:'"):
        PublicKey.parse_many(f"{PUBLIC} x")


def test_generated_keys_differ_and_work() -> None:
    key = SecretKey.generate("a-1")
    assert key != SecretKey.generate("a-1")
    assert SecretKey.parse(key.render()) == key
    assert key.public_key().verify(MESSAGE, key.sign(MESSAGE))
    with pytest.raises(InvalidKey, match="'a b'"):
        SecretKey.generate("a b")


@given(st.binary(min_size=32, max_size=32), key_names(), st.binary(max_size=100))
def test_any_key_round_trips_and_signs(seed: bytes, name: str, message: bytes) -> None:
    key = SecretKey(name, seed)
    assert SecretKey.parse(key.render()) == key
    public = key.public_key()
    assert PublicKey.parse(public.render()) == public
    assert public.verify(message, key.sign(message))


@given(signatures())
def test_signatures_round_trip(signature: Signature) -> None:
    assert Signature.parse(signature.render()) == Signature.parse(str(signature)) == signature


def test_keys_match_by_name_and_then_by_signature() -> None:
    good = SECRET.sign(MESSAGE)
    renamed = replace(good, name="other")
    forged = OTHER.sign(MESSAGE)
    assert PUBLIC.verify(MESSAGE, good)
    assert not PUBLIC.verify(MESSAGE, renamed)
    assert not PUBLIC.verify(MESSAGE, forged)
    # Two keys of one name, as while a key is being replaced.
    keys = [OTHER.public_key(), PUBLIC]
    assert verified(MESSAGE, [renamed, good, forged], keys) == (good, forged)
    assert verified(MESSAGE, [renamed, forged, good], [PUBLIC]) == (good,)
    assert verified(MESSAGE, [good], []) == ()
    assert verify_any(MESSAGE, [renamed, forged, good], [PUBLIC])
    assert verify_any(MESSAGE, [forged], keys)
    assert not verify_any(MESSAGE, [renamed, forged], [PUBLIC])
    assert not verify_any(MESSAGE, [], [PUBLIC])
    assert not verify_any(MESSAGE, [good], [])
    assert not verify_any(b"", [good, forged], keys)


def test_key_that_is_no_point_of_the_curve_verifies_nothing() -> None:
    assert not PublicKey(SECRET.name, b"\xff" * 32).verify(MESSAGE, SECRET.sign(MESSAGE))


B32 = base64.b64encode(bytes(32)).decode()
B64 = base64.b64encode(bytes(64)).decode()

SHAPES = [
    ("", "no '<"),
    ("abc", "no '<"),
    (":{}", "name"),
    ("a b:{}", "name.*'a b'"),
    ("a" * 256 + ":{}", r"name.*\(256 long\)"),
    ("a\nb:{}", r"name.*'a\\nb'"),
    ("a\x7f:{}", r"name.*'a\\x7f'"),
    ("a\u2028:{}", r"name.*'a\\u2028'"),
    ("a\ud800:{}", r"name.*'a\\ud800'"),
    ("a:", "0 base64 characters"),
    ("a::{}", "':' at position 0 is not base64"),
    ("a:{}=", "characters of base64 padding"),
    ("a:AAAA{}", "base64 characters without padding, expected"),
    ("a:\u00e9{}", "'é' at position 0"),
    ("a:AA A{}", "' ' at position 2"),
]


@pytest.mark.parametrize(("shape", "message"), SHAPES)
def test_refused_shapes(shape: str, message: str) -> None:
    with pytest.raises(InvalidSignature, match=message):
        Signature.parse(shape.format(B64))
    with pytest.raises(InvalidKey, match=message):
        PublicKey.parse(shape.format(B32))
    with pytest.raises(InvalidKey, match=message):
        SecretKey.parse(shape.format(B64))


def test_missing_padding_is_refused() -> None:
    with pytest.raises(InvalidSignature, match="1 characters of base64 padding, expected 2"):
        Signature.parse(f"a:{B64[:-1]}")
    with pytest.raises(InvalidKey, match="public key 'a': 0 characters of base64 padding, expected 1"):
        PublicKey.parse(f"a:{B32[:-1]}")


def test_sizes() -> None:
    with pytest.raises(InvalidSignature, match="'a' of 63 bytes, expected 64"):
        Signature("a", bytes(63))
    with pytest.raises(InvalidKey, match="'a' of 33 bytes, expected 32"):
        PublicKey("a", bytes(33))
    with pytest.raises(InvalidKey, match="'a' with a seed of 64 bytes, expected 32"):
        SecretKey("a", bytes(64))


def test_messages_about_secret_keys_do_not_show_them() -> None:
    name, _, body = CACHE["secret_key"].partition(":")
    wrong = [
        body,
        f"{name}:{body[:-6]}",
        f"{name}:{body}=",
        f"{name}:A{body[1:]}",
        f"{name}:{body[:40]}!{body[41:]}",
    ]
    for text in wrong:
        with pytest.raises(InvalidKey) as caught:
            SecretKey.parse(text)
        assert body[4:12] not in str(caught.value)
    with pytest.raises(InvalidKey, match="no UTF-8 at byte 1") as caught:
        SecretKey.parse(b"a\xff:" + body.encode())
    assert caught.value.__cause__ is None
    assert SECRET.seed.hex() not in repr(SECRET)
    assert repr(SECRET) == "SecretKey(name='test-1.example-1')"


def test_secret_key_with_a_foreign_public_half_is_refused() -> None:
    mixed = SECRET.seed + OTHER.public_key().data
    with pytest.raises(InvalidKey, match="'a': the public half does not belong to the seed"):
        SecretKey.parse(f"a:{base64.b64encode(mixed).decode()}")


@given(st.text() | st.binary())
def test_any_key_parses_or_is_refused(text: str | bytes) -> None:
    for parse in (PublicKey.parse, SecretKey.parse):
        with contextlib.suppress(InvalidKey):
            parse(text)


@given(st.text() | st.text("a:B=\n", max_size=100))
def test_any_text_is_a_signature_or_is_refused(text: str) -> None:
    with contextlib.suppress(InvalidSignature):
        Signature.parse(text)


def test_importing_is_cheap() -> None:
    program = "import sys, neve.nix.narinfo, neve.nix.signing; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
