from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.nix.export_graph import ExportedPath, InvalidExportGraph, parse
from neve.nix.hashes import CAHash, NixHash
from neve.nix.signing import Signature
from neve.nix.store_path import StorePath

DEP = "/nix/store/1sffglxy9rk34540nw767r7x00xj6x9p-dep"
PLAIN = "/nix/store/h8p9yw7bfmcc1cal00vck4i5ycdpi2zp-plain.txt"
SELFIE = "/nix/store/ilsmcs91whmzixqd4lnik45wc94jkbyq-selfie"
SIGNATURE = str(Signature("k-1", bytes(64)))

# Printed by `nix path-info --json --closure-size -r` (2.8); the last entry was given the optional keys.
ENTRIES: list[dict[str, Any]] = [
    {
        "path": PLAIN,
        "narHash": "sha256-5Ho8wTy47DcMjpu5JzIwf1EqFIWrp2UkX93JkvpMI6c=",
        "narSize": 128,
        "references": [],
        "ca": "fixed:r:sha256:19r39kx95jfxbwj6b9xbhla2llbz60r2gfcviq63gv5q7k0kqyp4",
        "closureSize": 128,
        "registrationTime": 1795294089,
    },
    {
        "path": DEP,
        "narHash": "sha256:152qxdn7xlsg2g5rjsif1lbpnmpnqmz7kn3aia5pmfqd0lcdr7xd",
        "narSize": 176,
        "references": [PLAIN],
        "closureSize": 304,
    },
    {
        "path": SELFIE,
        "narHash": "sha256-vKuv3pNTUkHoSbTur1lJCLv1MeeNeDKVmVl2aOTjdu0=",
        "narSize": 280,
        "references": [DEP, PLAIN, SELFIE],
        "ca": "fixed:r:sha256:19d82x0ylzjy7wmlyhzlfvg1lrwx15qm6q6q5v2c9x7drcnj47yz",
        "closureSize": 584,
        "deriver": "/nix/store/0c0q1z0s2h3v1p8y4n6r7k9w5d2b3a1f-selfie-1.drv",
        "signatures": [SIGNATURE],
        "valid": True,
        "registrationTime": 1795294089,
        "ultimate": False,
        "unknown": {"x": [1.5, None]},
    },
]
KEYED = {entry["path"]: {key: value for key, value in entry.items() if key != "path"} for entry in ENTRIES}


def sha256(text: str) -> bytes:
    return NixHash.parse(text).digest


EXPECTED = [
    ExportedPath(
        path=StorePath.parse(PLAIN),
        nar_sha256=sha256(ENTRIES[0]["narHash"]),
        nar_size=128,
        closure_size=128,
        ca=CAHash.parse(ENTRIES[0]["ca"]),
        registration_time=1795294089,
    ),
    ExportedPath(
        path=StorePath.parse(DEP),
        nar_sha256=sha256(ENTRIES[1]["narHash"]),
        nar_size=176,
        references=(StorePath.parse(PLAIN),),
        closure_size=304,
    ),
    ExportedPath(
        path=StorePath.parse(SELFIE),
        nar_sha256=sha256(ENTRIES[2]["narHash"]),
        nar_size=280,
        references=(StorePath.parse(DEP), StorePath.parse(PLAIN), StorePath.parse(SELFIE)),
        closure_size=584,
        deriver=StorePath.parse("/nix/store/0c0q1z0s2h3v1p8y4n6r7k9w5d2b3a1f-selfie-1"),
        signatures=(Signature.parse(SIGNATURE),),
        ca=CAHash.parse(ENTRIES[2]["ca"]),
        registration_time=1795294089,
    ),
]


@pytest.mark.parametrize(
    "shape",
    [
        ENTRIES,
        {"closure": ENTRIES},
        {"name": "x", "closure": ENTRIES, "other": 1},
        KEYED,
        {entry["path"]: entry for entry in ENTRIES},
    ],
    ids=["list", "closure", "closure-among-others", "keyed", "keyed-with-path"],
)
def test_all_shapes(shape: object) -> None:
    assert parse(json.dumps(shape)) == EXPECTED
    assert parse(json.dumps(shape).encode()) == EXPECTED


@pytest.mark.parametrize("text", ["[]", "{}", '{"closure": []}', " [ ] "])
def test_empty(text: str) -> None:
    assert parse(text) == []


def test_null_is_missing() -> None:
    nulls = {"closureSize": None, "deriver": None, "signatures": None, "ca": None, "registrationTime": None}
    (entry,) = parse(json.dumps([{**ENTRIES[1], **nulls}]))
    assert (entry.closure_size, entry.deriver, entry.ca, entry.registration_time) == (None, None, None, None)
    assert entry.signatures == ()


@pytest.mark.parametrize("key", ["path", "narHash", "narSize", "references"])
def test_required_keys(key: str) -> None:
    entries = [ENTRIES[0], {name: value for name, value in ENTRIES[1].items() if name != key}]
    with pytest.raises(InvalidExportGraph, match=f"^entry 1: {key} is missing"):
        parse(json.dumps(entries))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("path", 1, "path is a number, expected a string"),
        ("path", DEP[1:], "path: store path .* does not begin with '/nix/store/'"),
        ("path", f"{DEP}/bin", "path: .*'/' at position 3"),
        ("path", "\ud800", "path: "),
        ("narHash", [], "narHash is a list, expected a string"),
        ("narHash", "sha256:", "narHash: .*of 0 characters"),
        ("narHash", f"sha1:{'0' * 32}", "narHash: .*is sha1, expected sha256"),
        ("narSize", "176", "narSize is a string, expected a whole number"),
        ("narSize", True, "narSize is a boolean, expected a whole number"),
        ("narSize", 176.0, "narSize is a number, expected a whole number"),
        ("narSize", float("nan"), "narSize is a number, expected a whole number"),
        ("narSize", -1, f"narSize is '-1', expected 0 to {2**64 - 1}"),
        ("narSize", 2**64, f"narSize is '{2**64}', expected 0 to"),
        ("closureSize", {}, "closureSize is an object, expected a whole number"),
        ("registrationTime", -1, "registrationTime is '-1'"),
        ("references", "x", "references is a string, expected a list"),
        ("references", {PLAIN: 1}, "references is an object, expected a list"),
        ("references", [PLAIN, None], r"references\[1\] is null, expected a string"),
        ("references", [PLAIN, PLAIN[11:]], r"references\[1\]: store path .* does not begin with"),
        ("deriver", DEP, "deriver: .*does not end in '.drv'"),
        ("deriver", "", "deriver: "),
        ("signatures", SIGNATURE, "signatures is a string, expected a list"),
        ("signatures", [SIGNATURE, "x"], r"signatures\[1\]: signature 'x' has no"),
        ("ca", "", "ca: content address '' begins with neither"),
        ("ca", 1, "ca is a number, expected a string"),
        ("valid", False, f"valid is false: {DEP} was not in the store"),
    ],
)
def test_bad_values(key: str, value: object, message: str) -> None:
    entries = [ENTRIES[0], {**ENTRIES[1], key: value}]
    for shape in (entries, {"closure": entries}):
        with pytest.raises(InvalidExportGraph, match=f"^entry 1: {message}"):
            parse(json.dumps(shape))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        (b"\xff\xfe\xff", "is no JSON"),
        (b"[\xff]", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"a":' * 100_000, "is no JSON"),
        ("[" + "1" * 100_000 + "]", "is no JSON"),
        ("null", "is null, expected an object or a list"),
        ("1", "is a number, expected an object or a list"),
        ('"x"', "is a string, expected"),
        ("true", "is a boolean, expected"),
        ('{"closure": {}}', "'closure' is an object, expected a list"),
        ('{"closure": null}', "'closure' is null, expected a list"),
        ("[1]", "entry 0 is a number, expected an object"),
        ("[[]]", "entry 0 is a list, expected an object"),
        ('{"x": {}}', "entry 'x': path: store path 'x' does not begin with"),
        (json.dumps({PLAIN: None}), f"entry '{PLAIN}' is null, expected an object"),
        (json.dumps({PLAIN: ENTRIES[1]}), f"entry '{PLAIN}': path is {DEP}, which differs from the key"),
        (json.dumps([ENTRIES[0], ENTRIES[1], ENTRIES[0]]), f"entry 2: {PLAIN} is listed twice"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_shapes(text: str | bytes, message: str) -> None:
    with pytest.raises(InvalidExportGraph) as caught:
        parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.text() | st.binary() | JSON.map(json.dumps))
def test_anything_parses_or_is_refused(data: str | bytes) -> None:
    with contextlib.suppress(InvalidExportGraph):
        parse(data)


@given(st.sampled_from(sorted(ENTRIES[2])), JSON, st.booleans())
def test_any_value_parses_or_is_refused(key: str, value: object, keyed: bool) -> None:
    entry = {**ENTRIES[2], key: value}
    with contextlib.suppress(InvalidExportGraph):
        parse(json.dumps({SELFIE: entry} if keyed else [entry]))
