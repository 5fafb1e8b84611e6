from __future__ import annotations

import base64
import contextlib
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.nix import base32
from neve.nix.hashes import CAHash, CAMethod, CAType, HashAlgorithm, InvalidHash, NixHash
from neve.nix.store_path import (
    STORE_DIR,
    InvalidStorePath,
    StorePath,
    check_name,
    content_addressed_path,
    fixed_output_path,
    source_path,
    text_path,
)

from . import vectors
from .strategies import names, store_paths

DIGEST = "00bgd045z0d4icpbc2yyz4gx48ak44la"
HELLO = StorePath(base32.decode(DIGEST), "net-tools-1.60_p20170221182432")
HELLO_ABSOLUTE = f"/nix/store/{DIGEST}-net-tools-1.60_p20170221182432"


def test_forms_of_a_store_path() -> None:
    assert StorePath.parse_base_name(f"{DIGEST}-net-tools-1.60_p20170221182432") == HELLO
    assert StorePath.parse_base_name(f"{DIGEST}-net-tools-1.60_p20170221182432".encode()) == HELLO
    assert StorePath.parse(HELLO_ABSOLUTE) == HELLO
    assert StorePath.parse(HELLO_ABSOLUTE.encode()) == HELLO
    assert HELLO.base_name == f"{DIGEST}-net-tools-1.60_p20170221182432"
    assert HELLO.absolute == str(HELLO) == HELLO_ABSOLUTE


@given(store_paths())
def test_round_trip(path: StorePath) -> None:
    assert StorePath.parse_base_name(path.base_name) == path
    assert StorePath.parse(path.absolute.encode()) == path


@given(st.lists(store_paths(5)))
def test_order_is_that_of_the_base_names(paths: list[StorePath]) -> None:
    assert [path.base_name for path in sorted(paths)] == sorted(path.base_name for path in paths)


@pytest.mark.parametrize(
    ("below", "rest"),
    [
        ("", ""),
        ("/", ""),
        ("//", ""),
        ("/bin/arp", "bin/arp"),
        ("///bin//arp/", "bin//arp/"),
        ("/..", ".."),
        ("/a\nb", "a\nb"),
    ],
)
def test_path_below_a_store_path(below: str, rest: str) -> None:
    assert StorePath.parse_with_rest(HELLO_ABSOLUTE + below) == (HELLO, rest)
    assert StorePath.parse_with_rest((HELLO_ABSOLUTE + below).encode()) == (HELLO, rest.encode())


def test_rest_is_bytes_that_need_not_be_text() -> None:
    assert StorePath.parse_with_rest(HELLO_ABSOLUTE.encode() + b"/a\xff\x80") == (HELLO, b"a\xff\x80")


NAMES = ["a", ".a", "...", ".a-b", "..a-", "-", "--", "A+_?=.-9", "x" * 211]
OLD_NAMES = [".-", ".-a", "..-", "..-a"]


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    check_name(name, strict=True)
    assert StorePath.parse_base_name(f"{DIGEST}-{name}", strict=True).name == name


@pytest.mark.parametrize("name", OLD_NAMES)
def test_names_that_only_reading_tolerates(name: str) -> None:
    text = f"{STORE_DIR}/{DIGEST}-{name}"
    assert StorePath.parse(text).name == name
    assert StorePath.parse_with_rest(f"{text}/x")[0].name == name
    assert source_path(name, bytes(32), strict=False).name == name
    message = "of a new store path begins with"
    with pytest.raises(InvalidStorePath, match=message):
        StorePath.parse(text, strict=True)
    with pytest.raises(InvalidStorePath, match=message):
        StorePath.parse_with_rest(text, strict=True)
    for ca_type in CAType:
        with pytest.raises(InvalidStorePath, match=message):
            content_addressed_path(name, CAHash(ca_type, bytes(ca_type.algorithm.digest_size)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "name is empty"),
        (".", r"name must not be '\.'"),
        ("..", r"name must not be '\.\.'"),
        ("x" * 212, "of 212 characters, the limit is 211"),
        ("a b", "' ' at position 1"),
        ("a/b", "'/' at position 1"),
        ("ab\n", r"'\\n' at position 2"),
        ("ab\0", r"'\\x00' at position 2"),
        ("é", "'é' at position 0"),
        ("a\u0661", "at position 1"),
        ("a\udcff", r"'\\udcff' at position 1"),
        ("a~", "'~' at position 1"),
        ("x" * 300 + "!", "'!' at position 300"),
    ],
)
def test_refused_names(name: str, message: str) -> None:
    with pytest.raises(InvalidStorePath, match=message):
        check_name(name)
    with pytest.raises(InvalidStorePath, match=message):
        StorePath(bytes(20), name)
    with pytest.raises(InvalidStorePath, match=message):
        StorePath.parse_base_name(f"{DIGEST}-{name}")
    with pytest.raises(InvalidStorePath, match=message):
        source_path(name, bytes(32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' does not begin with '/nix/store/'"),
        ("/nix/store", "does not begin with"),
        ("/nix/stores/x", "does not begin with"),
        (f"{DIGEST}-a", "does not begin with"),
        (f"/gnu/store/{DIGEST}-a", "does not begin with"),
        (f" /nix/store/{DIGEST}-a", "does not begin with"),
        ("/nix/store/", "'' has no '-' at position 32"),
        (f"/nix/store//{DIGEST}-a", "no '-' at position 32"),
        (f"/nix/store/{DIGEST}", "no '-' at position 32"),
        (f"/nix/store/{DIGEST[1:]}-ab", "no '-' at position 32"),
        (f"/nix/store/{DIGEST}0-a", "no '-' at position 32"),
        (f"/nix/store/{DIGEST}-", "name is empty"),
        (f"/nix/store/e{DIGEST[1:]}-a", "'e' at position 0 is not nixbase32"),
        (f"/nix/store/{DIGEST[:-1]}A-a", "'A' at position 31 is not nixbase32"),
        (f"/nix/store/{DIGEST}-a/", "'/' at position 1"),
        (f"/nix/store/{DIGEST}-a/b", "'/' at position 1"),
    ],
)
def test_refused_paths(text: str, message: str) -> None:
    with pytest.raises(InvalidStorePath, match=message):
        StorePath.parse(text)
    with pytest.raises(InvalidStorePath, match=message):
        StorePath.parse(text.encode())


def test_refused_bytes() -> None:
    with pytest.raises(InvalidStorePath, match="'é' at position 1"):
        StorePath.parse_base_name(DIGEST.encode() + b"-a\xe9")


@pytest.mark.parametrize("size", [0, 19, 21, 32])
def test_digest_has_20_bytes(size: int) -> None:
    with pytest.raises(InvalidStorePath, match=f"digest of {size} bytes, expected 20"):
        StorePath(bytes(size), "a")


@given(st.text() | st.binary())
def test_anything_parses_or_is_refused(text: str | bytes) -> None:
    for parse in (StorePath.parse_base_name, StorePath.parse, StorePath.parse_with_rest):
        with contextlib.suppress(InvalidStorePath):
            parse(text)


@given(st.text(), st.booleans())
def test_near_misses_parse_or_are_refused(text: str, strict: bool) -> None:
    try:
        path, rest = StorePath.parse_with_rest(f"{STORE_DIR}/{DIGEST}-{text}", strict=strict)
    except InvalidStorePath:
        return
    assert path.digest == HELLO.digest
    assert text.startswith(path.name)
    assert text.endswith(rest)
    assert not rest.startswith("/")


def test_deriver_names() -> None:
    derivation = StorePath(bytes(20), "a.drv")
    assert derivation.without_drv() == StorePath(bytes(20), "a")
    assert derivation.without_drv().with_drv() == derivation
    assert StorePath(bytes(20), "a.drv.drv").without_drv() == derivation
    with pytest.raises(InvalidStorePath, match=r"0-a' does not end in '\.drv'"):
        StorePath(bytes(20), "a").without_drv()
    with pytest.raises(InvalidStorePath, match="name is empty"):
        StorePath(bytes(20), ".drv").without_drv()
    with pytest.raises(InvalidStorePath, match="212 characters"):
        StorePath(bytes(20), "x" * 208).with_drv()


@pytest.mark.parametrize(
    "vector", vectors.load("store_paths.json"), ids=lambda v: f"{v['kind']}-{v['path'][11:19]}"
)
def test_calculations_agree_with_nix(vector: dict[str, Any]) -> None:
    expected = StorePath.parse(vector["path"])
    name = vector["name"]
    if vector["kind"] == "text":
        digest = hashlib.sha256(vector["contents"].encode()).digest()
        references = [StorePath.parse(path) for path in vector["references"]]
        assert text_path(name, digest, references) == expected
        ca = CAHash(CAType.TEXT_SHA256, digest)
        assert content_addressed_path(name, ca, references) == expected
        return
    content_hash = NixHash(HashAlgorithm(vector["algo"]), bytes.fromhex(vector["digest_base16"]))
    recursive = vector["recursive"]
    assert fixed_output_path(name, content_hash, recursive=recursive) == expected
    ca = CAHash.of(CAMethod.NAR if recursive else CAMethod.FLAT, content_hash)
    assert content_addressed_path(name, ca) == expected


@pytest.mark.parametrize("tree", vectors.load("trees.json"), ids=lambda tree: tree["name"])
def test_paths_of_trees_agree_with_nix(tree: dict[str, Any]) -> None:
    nar_hash = NixHash.parse(tree["nar_sha256_nix32"], HashAlgorithm.SHA256)
    assert source_path(tree["name"], nar_hash.digest).absolute == tree["store_path"]
    if "store_path_flat" in tree:
        contents = base64.b64decode(tree["tree"]["contents_b64"])
        flat = NixHash(HashAlgorithm.SHA256, hashlib.sha256(contents).digest())
        assert fixed_output_path(tree["name"], flat, recursive=False).absolute == tree["store_path_flat"]


def test_some_trees_have_a_flat_path() -> None:
    assert sum("store_path_flat" in tree for tree in vectors.load("trees.json")) >= 2


# Printed by `nix store make-content-addressed` (2.8) for a small closure with references.
PLAIN = "/nix/store/h8p9yw7bfmcc1cal00vck4i5ycdpi2zp-plain.txt"
DEP = "/nix/store/1sffglxy9rk34540nw767r7x00xj6x9p-dep"


@pytest.mark.parametrize(
    ("path", "ca", "references", "self_reference"),
    [
        (PLAIN, "19r39kx95jfxbwj6b9xbhla2llbz60r2gfcviq63gv5q7k0kqyp4", [], False),
        (DEP, "152qxdn7xlsg2g5rjsif1lbpnmpnqmz7kn3aia5pmfqd0lcdr7xd", [PLAIN], False),
        (
            "/nix/store/bla8n6dxfnl8fczazxcqgcq4mlbzd6pc-alone",
            "1q89hlralkdmz1dipn885ali083wbphs6ib41bw60zn9qyijdblx",
            [],
            True,
        ),
        (
            "/nix/store/ilsmcs91whmzixqd4lnik45wc94jkbyq-selfie",
            "19d82x0ylzjy7wmlyhzlfvg1lrwx15qm6q6q5v2c9x7drcnj47yz",
            [PLAIN, DEP, PLAIN],
            True,
        ),
    ],
)
def test_references_agree_with_nix(path: str, ca: str, references: list[str], self_reference: bool) -> None:
    expected = StorePath.parse(path)
    calculated = content_addressed_path(
        expected.name,
        CAHash.parse(f"fixed:r:sha256:{ca}"),
        [StorePath.parse(reference) for reference in references],
        self_reference=self_reference,
    )
    assert calculated == expected


@given(st.lists(store_paths(5), min_size=1, max_size=4, unique=True), st.randoms(), names(10))
def test_order_of_references_does_not_matter(paths: list[StorePath], random: Any, name: str) -> None:
    shuffled = paths * 2
    random.shuffle(shuffled)
    for calculate in (source_path, text_path):
        path = calculate(name, bytes(32), paths, strict=False)
        assert path == calculate(name, bytes(32), shuffled, strict=False)
        assert path != calculate(name, bytes(32), strict=False)


@pytest.mark.parametrize("ca_type", CAType)
def test_which_paths_may_have_references(ca_type: CAType) -> None:
    ca = CAHash(ca_type, bytes(ca_type.algorithm.digest_size))
    if ca_type is not CAType.NAR_SHA256:
        with pytest.raises(InvalidStorePath, match=f"{ca} cannot refer to itself: 'a'"):
            content_addressed_path("a", ca, self_reference=True)
    if ca_type not in (CAType.NAR_SHA256, CAType.TEXT_SHA256):
        with pytest.raises(InvalidStorePath, match=f"cannot have references: 'a' refers to {HELLO}"):
            content_addressed_path("a", ca, [HELLO])


@pytest.mark.parametrize("size", [0, 20, 31, 33])
def test_calculations_check_the_digest(size: int) -> None:
    with pytest.raises(InvalidHash, match=f"of {size} bytes, expected 32"):
        source_path("a", bytes(size))
    with pytest.raises(InvalidHash, match=f"of {size} bytes, expected 32"):
        text_path("a", bytes(size))
