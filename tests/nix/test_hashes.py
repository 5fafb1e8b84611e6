from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.nix.hashes import CAHash, CAMethod, CAType, HashAlgorithm, HashForm, InvalidHash, NixHash

from . import vectors
from .strategies import ca_hashes, nix_hashes

HELLO_HEX = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
HELLO_NIX32 = "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic"
HELLO_BASE64 = "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="
HELLO = NixHash(HashAlgorithm.SHA256, bytes.fromhex(HELLO_HEX))


@pytest.mark.parametrize("vector", vectors.load("hashes.json"), ids=lambda v: v["sri"][:15])
def test_all_forms_agree_with_nix(vector: dict[str, str]) -> None:
    algorithm = HashAlgorithm(vector["algo"])
    value = NixHash(algorithm, bytes.fromhex(vector["base16"]))
    for form in ("base16", "nix32", "base64"):
        text = vector[form]
        assert value.render(HashForm(form), prefix=False) == text
        assert value.render(HashForm(form)) == f"{algorithm}:{text}"
        assert NixHash.parse(f"{algorithm}:{text}") == value
        assert NixHash.parse(f"{algorithm}:{text}", algorithm) == value
        assert NixHash.parse(text, algorithm) == value
    assert value.render(HashForm.SRI) == vector["sri"]
    assert value.render(HashForm.SRI, prefix=False) == vector["sri"]
    assert NixHash.parse(vector["sri"]) == value
    assert NixHash.parse(vector["sri"].rstrip("="), algorithm) == value
    assert str(value) == f"{algorithm}:{vector['nix32']}"


@given(nix_hashes(), st.sampled_from(HashForm))
def test_each_form_converts_to_each(value: NixHash, form: HashForm) -> None:
    assert NixHash.parse(value.render(form)) == value
    assert NixHash.parse(value.render(form, prefix=False), value.algorithm) == value


@pytest.mark.parametrize(
    "text",
    [
        f"sha256:{HELLO_HEX.upper()}",
        f"sha256-{HELLO_BASE64}",
        f"sha256-{HELLO_BASE64[:-1]}",
        # Nix ignores the spare bits of the last character.
        f"sha256-{HELLO_BASE64[:-2]}R=",
        f"sha256:{HELLO_BASE64[:-2]}R=",
    ],
)
def test_reads_what_nix_reads(text: str) -> None:
    assert NixHash.parse(text) == HELLO


def test_sri_padding_may_be_missing_in_part() -> None:
    value = NixHash(HashAlgorithm.SHA512, bytes(range(64)))
    padded = value.render(HashForm.SRI)
    assert padded.endswith("==")
    assert NixHash.parse(padded[:-1]) == value
    assert NixHash.parse(padded[:-2]) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' does not name its algorithm"),
        (HELLO_HEX, "does not name its algorithm"),
        ("sha3:00", "algorithm 'sha3' of 'sha3:00' is none of md5, sha1, sha256, sha512"),
        ("SHA256:00", "algorithm 'SHA256'"),
        (":00", "algorithm ''"),
        ("blake3-AAAA", "algorithm 'blake3'"),
        ("sha256:", r"'' of 0 characters, expected 64 \(base16\), 52 \(nix32\) or 44 \(base64\)"),
        (f"sha256:{HELLO_HEX}0", "of 65 characters"),
        (f"sha256:sha256:{HELLO_HEX}", "of 71 characters"),
        (f"sha1:{HELLO_HEX}", r"of 64 characters, expected 40 \(base16\), 32 \(nix32\) or 28"),
        (f"sha256:{HELLO_HEX[:-1]}g", "'g' at position 63 is not base16"),
        (f"sha256: {HELLO_HEX[1:]}", "' ' at position 0 is not base16"),
        (f"sha256:{HELLO_HEX[:-1]}\u0664", "at position 63 is not base16"),
        (f"sha256:{HELLO_NIX32[:-1]}e", "'e' at position 51 is not nixbase32"),
        (f"sha256:z{HELLO_NIX32[1:]}", "spare bits"),
        (f"sha256:{HELLO_BASE64[:-2]}-=", "'-' at position 42 is not base64"),
        (f"sha256:{HELLO_BASE64[:-2]}_=", "'_' at position 42 is not base64"),
        (f"sha256:={HELLO_BASE64[1:]}", "'=' at position 0 is not base64"),
        (f"sha256:{HELLO_BASE64[:-1]}A", "44 base64 characters without padding, expected 43"),
        (f"sha256:{HELLO_BASE64[:-1]}", "of 43 characters"),
        (f"sha256-{HELLO_BASE64}=", "2 characters of base64 padding, expected 1"),
        (f"sha256-{HELLO_BASE64[:-2]}", "42 base64 characters without padding, expected 43"),
        (f"sha256-{HELLO_HEX}", "64 base64 characters"),
        (f"sha256-{HELLO_BASE64}\n", "'=' at position 43 is not base64"),
        ("sha256-\ud800", r"'\\ud800' at position 0"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(InvalidHash, match=message):
        NixHash.parse(text)


def test_refuses_another_algorithm_than_asked_for() -> None:
    with pytest.raises(InvalidHash, match="is sha256, expected sha1"):
        NixHash.parse(f"sha256:{HELLO_HEX}", HashAlgorithm.SHA1)
    with pytest.raises(InvalidHash, match="is sha256, expected sha512"):
        NixHash.parse(f"sha256-{HELLO_BASE64}", HashAlgorithm.SHA512)


@pytest.mark.parametrize("size", [0, 19, 31, 33, 64])
def test_digest_size_is_checked(size: int) -> None:
    with pytest.raises(InvalidHash, match=f"sha256 digest of {size} bytes, expected 32"):
        NixHash(HashAlgorithm.SHA256, bytes(size))
    with pytest.raises(InvalidHash, match=f"sha256 digest of {size} bytes, expected 32"):
        CAHash(CAType.TEXT_SHA256, bytes(size))


@given(st.text(), st.none() | st.sampled_from(HashAlgorithm))
def test_any_text_parses_or_is_refused(text: str, algorithm: HashAlgorithm | None) -> None:
    with contextlib.suppress(InvalidHash):
        NixHash.parse(text, algorithm)


@given(st.sampled_from(HashAlgorithm), st.sampled_from(":-"), st.binary(max_size=70))
def test_near_misses_parse_or_are_refused(algorithm: HashAlgorithm, separator: str, body: bytes) -> None:
    for text in (body.hex(), base64.b64encode(body).decode(), body.decode("latin-1")):
        try:
            value = NixHash.parse(f"{algorithm}{separator}{text}")
        except InvalidHash:
            continue
        assert len(value.digest) == algorithm.digest_size


CA_TYPES = [
    (0, CAMethod.NAR, HashAlgorithm.SHA256, "fixed:r:sha256:"),
    (1, CAMethod.NAR, HashAlgorithm.SHA1, "fixed:r:sha1:"),
    (2, CAMethod.NAR, HashAlgorithm.SHA512, "fixed:r:sha512:"),
    (3, CAMethod.NAR, HashAlgorithm.MD5, "fixed:r:md5:"),
    (4, CAMethod.TEXT, HashAlgorithm.SHA256, "text:sha256:"),
    (5, CAMethod.FLAT, HashAlgorithm.SHA1, "fixed:sha1:"),
    (6, CAMethod.FLAT, HashAlgorithm.MD5, "fixed:md5:"),
    (7, CAMethod.FLAT, HashAlgorithm.SHA256, "fixed:sha256:"),
    (8, CAMethod.FLAT, HashAlgorithm.SHA512, "fixed:sha512:"),
]


@pytest.mark.parametrize(("number", "method", "algorithm", "prefix"), CA_TYPES)
def test_content_address_types(number: int, method: CAMethod, algorithm: HashAlgorithm, prefix: str) -> None:
    content_hash = NixHash(algorithm, bytes(range(algorithm.digest_size)))
    ca = CAHash(CAType(number), content_hash.digest)
    assert CAHash.of(method, content_hash) == ca
    assert (ca.method, ca.hash) == (method, content_hash)
    text = prefix + content_hash.render(prefix=False)
    assert ca.render() == str(ca) == text
    assert CAHash.parse(text) == ca
    assert CAHash.parse(prefix + content_hash.digest.hex()) == ca


def test_there_are_no_other_content_address_types() -> None:
    assert {int(ca_type) for ca_type in CAType} == {number for number, *_ in CA_TYPES}


@given(ca_hashes())
def test_content_address_round_trip(ca: CAHash) -> None:
    assert CAHash.parse(ca.render()) == ca


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' begins with neither 'fixed:' nor 'text:'"),
        ("fixed", "begins with neither"),
        (f"sha256:{HELLO_NIX32}", "begins with neither"),
        ("fixed:", "no '<algorithm>:'"),
        (f"fixed:{HELLO_NIX32}", "no '<algorithm>:'"),
        (f"fixed:r:sha256-{HELLO_BASE64}", "no '<algorithm>:'"),
        (f"fixed:git:sha1:{'0' * 32}", "algorithm 'git'"),
        (f"fixed:r:r:sha256:{HELLO_NIX32}", "algorithm 'r'"),
        (f"fixed:sha3:{HELLO_NIX32}", "algorithm 'sha3'"),
        (f"text:r:sha256:{HELLO_NIX32}", "algorithm 'r'"),
        (f"text:sha1:{'0' * 32}", "a text is addressed by sha256, not by sha1"),
        (f"fixed:sha1:{HELLO_NIX32}", "of 52 characters"),
        (f"text:sha256:{HELLO_NIX32} ", "of 53 characters"),
        (f"fixed:r:sha256:{HELLO_NIX32[:-1]}u", "'u' at position 51"),
    ],
)
def test_content_address_refuses(text: str, message: str) -> None:
    with pytest.raises(InvalidHash, match=message) as caught:
        CAHash.parse(text)
    assert repr(text) in str(caught.value)


@given(st.text() | st.text("fixedr:ts-ha2561o0", max_size=80))
def test_any_text_is_a_content_address_or_is_refused(text: str) -> None:
    with contextlib.suppress(InvalidHash):
        CAHash.parse(text)
