"""What addresses tell of where things lie."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from neve.errors import InvalidRequest
from neve.store.places import check_shareable


def nested(scheme: str, **addresses: str) -> str:
    return f"{scheme}://?" + "&".join(f"{name}={quote(url, safe='')}" for name, url in addresses.items())


LOCAL, FAR = "local:///srv/neve", "nix+https://cache.example"


@pytest.mark.parametrize(
    "url",
    [
        *(LOCAL, f"{LOCAL}?mode=ro", "grpc+unix:///run/neve.sock", FAR),
        nested("cache", near=LOCAL, far=FAR),
        # What counts is far: near, each has its own.
        nested("cache", near="memory://", far=LOCAL),
        nested("cache", near="lru://?capacity=10", far="grpc+unix:///run/neve.sock"),
        nested("combined", near=LOCAL, far="grpc+unix:///run/neve.sock"),
        nested("keyfile-signing", inner=LOCAL),
    ],
)
def test_stores_that_processes_can_share(url: str) -> None:
    check_shareable([LOCAL, url])


@pytest.mark.parametrize(
    ("url", "place"),
    [
        *((url, url) for url in ("memory://", "lru://?capacity=10", "local://")),
        ("local://?directory-size-rule=snix", "local://"),
        (nested("cache", near="memory://", far=FAR), "memory://"),
        (nested("cache", near="local://", far=FAR), "local://"),
        (nested("cache", near=LOCAL, far="memory://"), "memory://"),
        (nested("combined", near="memory://", far=LOCAL), "memory://"),
        (nested("keyfile-signing", inner="memory://"), "memory://"),
        (nested("cache", near=nested("keyfile-signing", inner="memory://"), far=FAR), "memory://"),
    ],
)
def test_stores_of_one_process(url: str, place: str) -> None:
    """Each worker would have another store."""
    with pytest.raises(InvalidRequest, match="cannot be shared by several workers") as refused:
        check_shareable([LOCAL, url])
    assert str(refused.value).startswith(place)
    assert url in str(refused.value)
