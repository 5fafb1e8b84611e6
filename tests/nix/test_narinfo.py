from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import LimitExceeded, NeveError
from neve.nix import base32
from neve.nix.hashes import CAHash, CAType, HashAlgorithm, NixHash
from neve.nix.narinfo import MAX_NARINFO_BYTES, InvalidNarInfo, NarInfo, fingerprint
from neve.nix.signing import Signature
from neve.nix.store_path import InvalidStorePath, StorePath

from . import vectors
from .strategies import narinfos

A = StorePath.parse_base_name("00bgd045z0d4icpbc2yyz4gx48ak44la-a")
B = StorePath.parse_base_name("7gx4kiv5m0i7d7qkixq2cwzbr10lvxwc-b")
C = StorePath.parse_base_name("z8nh20g5g7c6yrxmc7x4kp7z1iscr9sl-c")
NIX32 = "0h40zg6hakjv951nyhdad7mv9za56m3za5gnpiw5s1hbwcxzdrq3"
SHA256 = base32.decode(NIX32)

LINES = {
    "StorePath": A.absolute,
    "URL": "nar/x.nar.xz",
    "Compression": "xz",
    "FileHash": f"sha256:{NIX32}",
    "FileSize": "90",
    "NarHash": f"sha256:{NIX32}",
    "NarSize": "128",
    "References": f"{A.base_name} {B.base_name} {C.base_name}",
    "Deriver": f"{C.base_name}.drv",
    "System": "x86_64-linux",
    "Sig": str(Signature("k-1", bytes(64))),
    "CA": f"fixed:r:sha256:{NIX32}",
}
FULL = NarInfo(
    store_path=A,
    url="nar/x.nar.xz",
    compression="xz",
    file_hash=NixHash(HashAlgorithm.SHA256, SHA256),
    file_size=90,
    nar_sha256=SHA256,
    nar_size=128,
    references=(A, B, C),
    deriver=C,
    system="x86_64-linux",
    signatures=(Signature("k-1", bytes(64)),),
    ca=CAHash(CAType.NAR_SHA256, SHA256),
)


def text_of(**changes: str | None) -> str:
    """The full narinfo with some values changed, or lines left out."""
    lines = {**LINES, **changes}
    return "".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None)


@pytest.mark.parametrize("file", vectors.narinfo_files(), ids=lambda f: f"{f.parent.name}-{f.name[:8]}")
def test_reproduces_nix_to_the_byte(file: Path) -> None:
    data = file.read_bytes()
    narinfo = NarInfo.parse(data, expected_digest=base32.decode(file.stem))
    assert narinfo.render().encode() == data
    assert narinfo.compression == file.parent.name.removeprefix("cache-")
    assert narinfo.store_path.digest == base32.decode(file.stem)
    if narinfo.compression == "none":
        assert narinfo.file_size == narinfo.nar_size
        assert narinfo.file_hash == NixHash(HashAlgorithm.SHA256, narinfo.nar_sha256)


def test_every_key_both_ways() -> None:
    assert NarInfo.parse(text_of()) == FULL
    assert NarInfo.parse(text_of().encode()) == FULL
    assert FULL.render() == text_of()


def test_smallest() -> None:
    smallest = NarInfo(store_path=A, url="x", nar_sha256=SHA256, nar_size=1)
    text = f"StorePath: {A}\nURL: x\nCompression: none\nNarHash: sha256:{NIX32}\nNarSize: 1\nReferences: \n"
    assert smallest.render() == text
    assert NarInfo.parse(text) == smallest


@given(narinfos())
def test_round_trip(narinfo: NarInfo) -> None:
    assert NarInfo.parse(narinfo.render()) == narinfo
    assert NarInfo.parse(narinfo.render().encode(), expected_digest=narinfo.store_path.digest) == narinfo


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Compression": None}, {"compression": "bzip2"}),
        ({"Compression": ""}, {"compression": "bzip2"}),
        ({"References": None}, {"references": ()}),
        ({"References": ""}, {"references": ()}),
        ({"References": f"{C.base_name} {A.base_name}"}, {"references": (C, A)}),
        ({"References": f" {C.base_name}  {A.base_name} {C.base_name} "}, {"references": (C, A)}),
        ({"Deriver": "unknown-deriver"}, {"deriver": None}),
        ({"Deriver": None}, {"deriver": None}),
        ({"NarHash": f"sha256:{SHA256.hex()}"}, {}),
        ({"NarHash": NixHash(HashAlgorithm.SHA256, SHA256).render()}, {}),
        ({"FileHash": f"sha256:{SHA256.hex()}"}, {}),
        ({"FileHash": None, "FileSize": None}, {"file_hash": None, "file_size": None}),
        ({"System": None}, {"system": None}),
        ({"System": ""}, {"system": None}),
        ({"Sig": None}, {"signatures": ()}),
        ({"CA": None}, {"ca": None}),
        ({"Unknown": "x", "x-": "", "sig": "lower case is another key"}, {}),
        ({"FileSize": "0"}, {"file_size": 0}),
        ({"NarSize": str(2**64 - 1)}, {"nar_size": 2**64 - 1}),
        ({"StorePath": A.absolute.removesuffix("a") + ".-a"}, {"store_path": StorePath(A.digest, ".-a")}),
        ({"URL": "nar/a b:c%20?d=e: f"}, {"url": "nar/a b:c%20?d=e: f"}),
    ],
)
def test_tolerated(changes: dict[str, str | None], expected: dict[str, object]) -> None:
    assert NarInfo.parse(text_of(**changes)) == replace(FULL, **expected)  # type: ignore[arg-type]


def test_order_of_lines_and_unknown_keys_do_not_matter() -> None:
    lines = [*reversed(text_of().splitlines(keepends=True)), "Odd: 1\n", "Odd: 2\n"]
    assert NarInfo.parse("".join(lines)) == FULL


def test_key_without_a_blank_has_an_empty_value() -> None:
    assert NarInfo.parse(text_of(References=None) + "References:\n").references == ()


def test_signatures_keep_their_order() -> None:
    signatures = (Signature("z", bytes(64)), Signature("a", b"1" * 64), Signature("z", b"2" * 64))
    narinfo = replace(FULL, signatures=signatures)
    assert NarInfo.parse(narinfo.render()).signatures == signatures


def test_references_are_written_sorted_and_once() -> None:
    narinfo = replace(FULL, references=(C, B, A, C))
    assert narinfo.render() == text_of()


def test_fingerprint() -> None:
    expected = f"1;{A};sha256:{NIX32};128;{A},{B},{C}".encode()
    assert FULL.fingerprint() == expected
    assert replace(FULL, references=(C, A, B, C)).fingerprint() == expected
    assert fingerprint(A, SHA256, 128, []) == f"1;{A};sha256:{NIX32};128;".encode()


def test_narinfo_of_another_path_is_refused() -> None:
    assert NarInfo.parse(text_of(), expected_digest=A.digest) == FULL
    with pytest.raises(InvalidNarInfo, match=f"{A} is not the path asked for.*{base32.encode(B.digest)}"):
        NarInfo.parse(text_of(), expected_digest=B.digest)


@pytest.mark.parametrize("key", ["StorePath", "URL", "NarHash", "NarSize"])
def test_required_keys(key: str) -> None:
    with pytest.raises(InvalidNarInfo, match=f"^{key} is missing"):
        NarInfo.parse(text_of(**{key: None}))


@pytest.mark.parametrize("key", [key for key in LINES if key != "Sig"])
def test_keys_that_may_come_once(key: str) -> None:
    with pytest.raises(InvalidNarInfo, match=f"^line 13: {key} was given in line "):
        NarInfo.parse(text_of() + f"{key}: {LINES[key]}\n")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("StorePath", A.base_name, "line 1, StorePath: .*does not begin with '/nix/store/'"),
        ("StorePath", f"{A}/b", "line 1, StorePath: .*'/' at position 1"),
        ("StorePath", "", "line 1, StorePath: "),
        ("URL", "", "URL: expected printable characters, got ''"),
        ("URL", "a\rb", r"URL: .*got 'a\\rb'"),
        ("URL", "a\u2028b", r"URL: .*got 'a\\u2028b'"),
        ("Compression", "x\tz", r"Compression: .*got 'x\\tz'"),
        ("FileHash", "", "line 4, FileHash: hash '' does not name its algorithm"),
        ("FileHash", NIX32, "line 4, FileHash: .*does not name its algorithm"),
        ("FileHash", "sha256:xyz", "line 4, FileHash: .*of 3 characters"),
        ("FileSize", "-1", "line 5, FileSize: .*got '-1'"),
        ("FileSize", "", "line 5, FileSize: .*got ''"),
        ("NarHash", f"sha256:{NIX32[:-1]}e", "line 6, NarHash: .*'e' at position 51"),
        ("NarHash", f"sha1:{'0' * 32}", "line 6, NarHash: .*is sha1, expected sha256"),
        ("NarHash", f"sha256:{NIX32}\r", "line 6, NarHash: .*of 53 characters"),
        ("NarSize", "0", f"NarSize: 0, expected 1 to {2**64 - 1}"),
        ("NarSize", "0x10", "line 7, NarSize: .*got '0x10'"),
        ("NarSize", "1_0", "line 7, NarSize: .*got '1_0'"),
        ("NarSize", " 1", "line 7, NarSize: .*got ' 1'"),
        ("NarSize", "1.0", "line 7, NarSize: .*got '1.0'"),
        ("NarSize", "\u0661", "line 7, NarSize: .*got '\u0661'"),
        ("NarSize", str(2**64), f"line 7, NarSize: expected at most {2**64 - 1}, got {2**64}"),
        ("NarSize", "9" * 10_000, r"line 7, NarSize: .*at most 20 digits.*10000 long"),
        ("References", A.absolute, "line 8, References: store path base name '/nix/store/"),
        ("References", f"{A.base_name},{B.base_name}", "line 8, References: .*',' at position 1"),
        ("References", f"{A.base_name}\t{B.base_name}", "line 8, References: .*at position 1"),
        ("Deriver", "", "line 9, Deriver: "),
        ("Deriver", C.base_name, "line 9, Deriver: .*does not end in '.drv'"),
        ("Deriver", f"{C.absolute}.drv", "line 9, Deriver: "),
        ("Sig", "", "line 11, Sig: signature '' has no"),
        ("Sig", "k-1:AAAA", "line 11, Sig: .*expected 86 for 64 bytes"),
        ("CA", "", "line 12, CA: "),
        ("CA", f"sha256:{NIX32}", "line 12, CA: .*begins with neither"),
    ],
)
def test_bad_values(key: str, value: str, message: str) -> None:
    with pytest.raises(InvalidNarInfo, match=f"^{message}"):
        NarInfo.parse(text_of(**{key: value}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "StorePath is missing"),
        ("\n", "line 1: expected 'Key: value', got ''"),
        ("<html>\n", "line 1: expected 'Key: value', got '<html>'"),
        ("A: 1\n\nB: 2\n", "line 2: expected 'Key: value', got ''"),
        ("A: 1\n: 2\n", "line 2: expected 'Key: value', got ': 2'"),
        ("A:1\n", "line 1: expected a space after 'A:', got '1'"),
        ("A: 1\nB: 2", "line 2: no line break at the end of 'B: 2'"),
        (text_of()[:-1], "line 12: no line break at the end of 'CA: "),
        (b"A: 1\nB: \xff\n", "narinfo is no UTF-8 at byte 8"),
        (b"\xef\xbb\xbfStorePath: x\n", "StorePath is missing"),
    ],
)
def test_bad_lines(text: str | bytes, message: str) -> None:
    with pytest.raises(InvalidNarInfo, match=f"^{message}"):
        NarInfo.parse(text)


def test_size_limit() -> None:
    padding = MAX_NARINFO_BYTES - len(text_of()) - len("X: \n")
    largest = text_of() + f"X: {'x' * padding}\n"
    assert NarInfo.parse(largest) == NarInfo.parse(largest.encode()) == FULL
    too_large = f"narinfo of {MAX_NARINFO_BYTES + 1} bytes: the limit is {MAX_NARINFO_BYTES} bytes"
    with pytest.raises(LimitExceeded, match=too_large):
        NarInfo.parse(f"{largest}\n")
    with pytest.raises(LimitExceeded, match=too_large):
        NarInfo.parse(f"{largest}\n".encode())
    with pytest.raises(LimitExceeded, match="the limit is"):
        NarInfo.parse("é" * (MAX_NARINFO_BYTES // 2 + 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "a\nSig: x"}, r"URL: .*'a\\nSig: x'"),
        ({"url": ""}, "URL"),
        ({"compression": ""}, "Compression"),
        ({"system": "a\n"}, "System"),
        ({"system": "\ud800"}, "System"),
        ({"nar_sha256": bytes(20)}, r"NarHash: 20 bytes, expected 32 \(sha256\)"),
        ({"nar_size": 0}, "NarSize: 0, expected 1"),
        ({"nar_size": -1}, "NarSize: -1"),
        ({"nar_size": 2**64}, "NarSize: 18446744073709551616"),
        ({"file_size": -1}, "FileSize: -1, expected 0"),
        ({"file_size": 2**64}, "FileSize: 18446744073709551616"),
    ],
)
def test_values_that_cannot_be_written(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidNarInfo, match=f"^{message}"):
        replace(FULL, **changes)  # type: ignore[arg-type]


def test_deriver_that_is_too_long_with_its_suffix() -> None:
    with pytest.raises(InvalidStorePath, match="212 characters"):
        replace(FULL, deriver=StorePath(bytes(20), "x" * 208)).render()


@given(st.text() | st.binary())
def test_anything_parses_or_is_refused(data: str | bytes) -> None:
    with pytest.raises(NeveError):
        NarInfo.parse(data)


@given(st.sampled_from(list(LINES)), st.text())
def test_any_value_parses_or_is_refused(key: str, value: str) -> None:
    try:
        narinfo = NarInfo.parse(text_of(**{key: value}))
    except NeveError:
        return
    assert NarInfo.parse(narinfo.render()) == replace(narinfo, references=tuple(sorted(narinfo.references)))


@given(st.data())
def test_damaged_text_parses_or_is_refused(data: st.DataObject) -> None:
    damaged = bytearray(text_of().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(NeveError):
        NarInfo.parse(bytes(damaged))


def test_large_input_takes_linear_work() -> None:
    # Quadratic work on any of these would run into the suite's time limit.
    names = " ".join(StorePath(i.to_bytes(20, "big"), "a").base_name for i in range(50_000))
    assert len(NarInfo.parse(text_of(References=names)).references) == 50_000
    assert NarInfo.parse(text_of() + "x:\n" * 500_000) == FULL
    with pytest.raises(InvalidNarInfo, match="References"):
        NarInfo.parse(text_of(References="-" * 2_000_000))
    with pytest.raises(InvalidNarInfo, match="Sig"):
        NarInfo.parse(text_of(Sig="=" * 2_000_000))
