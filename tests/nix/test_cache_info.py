from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import InvalidRequest, LimitExceeded, NeveError
from neve.nix.cache_info import MAX_CACHE_INFO_BYTES, CacheInfo, ForeignStoreDir, InvalidCacheInfo

from . import vectors


def test_reproduces_nix_to_the_byte() -> None:
    files = sorted(vectors.VECTORS.glob("cache-*/nix-cache-info"))
    assert len(files) == 5
    for file in files:
        assert CacheInfo.parse(file.read_bytes()) == CacheInfo()
        assert CacheInfo().render().encode() == file.read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n", CacheInfo(True, 40)),
        ("Priority: 0\nStoreDir: /nix/store\n", CacheInfo(False, 0)),
        ("StoreDir: /nix/store\nWantMassQuery: 0\n", CacheInfo()),
        ("StoreDir: /nix/store\nWantMassQuery: yes\n", CacheInfo()),
        ("StoreDir: /nix/store\nPriority: -1", CacheInfo(priority=-1)),
        ("\nStoreDir: /nix/store \r\n\r\nPriority: 30\r\n", CacheInfo(priority=30)),
        ("StoreDir: /nix/store\nOdd: 1\nOdd: 2\n", CacheInfo()),
    ],
)
def test_parses(text: str, expected: CacheInfo) -> None:
    assert CacheInfo.parse(text) == CacheInfo.parse(text.encode()) == expected


def test_render() -> None:
    assert CacheInfo(True, 39).render() == "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 39\n"


@given(st.builds(CacheInfo, st.booleans(), st.none() | st.integers(-1000, 10**9 - 1)))
def test_round_trip(info: CacheInfo) -> None:
    assert CacheInfo.parse(info.render()) == info


@pytest.mark.parametrize("store_dir", ["/gnu/store", "/nix/store/", "", "/nix", "nix/store", "/NIX/STORE"])
def test_foreign_store_directory(store_dir: str) -> None:
    with pytest.raises(ForeignStoreDir, match=f"StoreDir is '{store_dir}', expected '/nix/store'"):
        CacheInfo.parse(f"StoreDir: {store_dir}\nPriority: 40\n")
    assert issubclass(ForeignStoreDir, InvalidRequest)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "StoreDir is missing"),
        ("Priority: 40\n", "StoreDir is missing"),
        ("<!DOCTYPE html>\n", "line 1: expected 'Key: value', got '<!DOCTYPE html>'"),
        ("StoreDir: /nix/store\nStoreDir: /nix/store\n", "line 2: StoreDir was given already"),
        ("StoreDir: /nix/store\nPriority: 1\n\nPriority: 1\n", "line 4: Priority was given already"),
        ("StoreDir: /nix/store\nPriority: high\n", "Priority is 'high', expected a number"),
        ("StoreDir: /nix/store\nPriority: \u0661\n", "Priority is '\u0661', expected a number"),
        ("StoreDir: /nix/store\nPriority: 1_0\n", "Priority is '1_0'"),
        ("StoreDir: /nix/store\nPriority: " + "9" * 5000, "Priority is '999.*5000 long"),
        ("StoreDir:/nix/store\n", "line 1: expected a space after 'StoreDir:', got '/nix/store'"),
        (b"StoreDir: \xff\n", "nix-cache-info is no UTF-8 at byte 10"),
    ],
)
def test_refuses(text: str | bytes, message: str) -> None:
    with pytest.raises(InvalidCacheInfo, match=message):
        CacheInfo.parse(text)


def test_size_limit() -> None:
    with pytest.raises(LimitExceeded, match=f"nix-cache-info of .* the limit is {MAX_CACHE_INFO_BYTES}"):
        CacheInfo.parse("StoreDir: /nix/store\n" + "\n" * MAX_CACHE_INFO_BYTES)


@given(st.text() | st.binary() | st.text().map(lambda text: f"StoreDir: /nix/store\n{text}"))
def test_anything_parses_or_is_refused(data: str | bytes) -> None:
    with contextlib.suppress(NeveError):
        CacheInfo.parse(data)
