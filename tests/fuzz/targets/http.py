"""What a client of the binary cache says: addresses, headers, tokens."""

from __future__ import annotations

import re
from typing import Any

from neve.errors import InvalidRequest
from neve.http_cache.exchange import query_parameter
from neve.http_cache.negotiation import (
    GZIP,
    IDENTITY,
    ZSTD,
    chosen_encoding,
    is_known,
    is_wanted,
    range_applies,
)
from neve.http_cache.pages import locations, search, text
from neve.http_cache.ranges import MAX_RANGES, Multipart, parse_ranges
from neve.http_cache.routes import encoded_node, parse_nar_name, parse_node, route_of
from neve.http_cache.small import DEBUG_INFO, LOG, REALISATION
from neve.http_cache.statuses import Refused
from neve.http_cache.tokens import PULL, InvalidTokens, parse_tokens, presented
from neve.nix.store_path import StorePath
from neve.serving.metrics_server import MAX_HEAD_BYTES, answer_to
from neve.store.wire import encode_node
from tests.fuzz.target import Bound, Target
from tests.fuzz.targets.nix import text_of


def header_of(data: bytes) -> str:
    """As a server hands out the value of a header."""
    return data.decode("latin-1")


def _ranges(data: bytes) -> None:
    for size in (0, 1, 1000, 2**63 - 1):
        try:
            found = parse_ranges(header_of(data), size)
        except Refused:
            continue
        if found is None:
            continue
        assert 0 < len(found) <= MAX_RANGES
        assert all(0 <= each.start < each.stop <= size for each in found)
        answer = Multipart(found, size, b"text/plain", b"boundary")
        assert answer.length == sum(each.stop - each.start for each in found) + len(
            b"".join(answer.heads) + answer.tail
        )


def _negotiation(data: bytes) -> None:
    header = header_of(data)
    assert chosen_encoding(header) in (IDENTITY, GZIP, ZSTD)
    for tag in ('"tag"', 'W/"tag"'):
        is_wanted(header, tag)
        range_applies(header, tag)
        assert is_known(f"{header}, {tag}", tag) or '"' in header or header.strip() == "*"


def _node_address(data: bytes) -> None:
    """There is one way to write an address."""
    node = parse_node(text_of(data))
    assert encoded_node(encode_node(node)).encode() == data


def _path(data: bytes) -> None:
    route = route_of(text_of(data))
    if route is None:
        raise InvalidRequest("nothing of a cache")
    parse_nar_name(route.name)
    for kind in (LOG, REALISATION, DEBUG_INFO):
        try:
            name = kind.known_by(route.name)
        except InvalidRequest:
            continue
        assert "/" not in name
        assert name.isascii()


def _query(data: bytes) -> None:
    value = query_parameter(data, "narsize")
    assert value is None or b"narsize" in data or b"%" in data


_HREF = re.compile(r"(\.\./|\./)*[A-Za-z0-9._~%?=&+-]+(/[A-Za-z0-9._~%?=&+-]*)*")


def _page(data: bytes) -> None:
    """The address of a page, with its query. Links lead to nowhere else."""
    path, _, query = data.partition(b"?")
    scope: dict[str, Any] = {"raw_path": path, "path": header_of(path), "query_string": query}
    fields = locations.fields_of(scope)
    locations.number_of(fields, "page")
    search.parse_after(fields.get("after", ""))
    search.exact_place(fields.get("q", ""))
    search.whole_digest(fields.get("q", ""))
    links = locations.links_from(scope)
    store_path, components, _ = locations.asked_for(scope)
    assert _HREF.fullmatch(links.path(store_path, components, page=2)), links.path(store_path, components)
    assert _HREF.fullmatch(links.search(fields.get("q", ""), store_path.digest))
    text.shown_query(fields.get("q", "")).encode()


_STORE_PATH = StorePath(bytes(20), "name")


def _target(data: bytes) -> None:
    """Where a symlink leads, and how its name is shown."""
    for components in ((), (b"bin", b"link")):
        found = locations.resolved(_STORE_PATH, components, data)
        assert found is None or b".." not in found[1]
    text.shown(data).encode()
    header = text.disposition("attachment", data)
    assert "\n" not in header
    assert "\r" not in header
    assert header.isascii()
    for whole in (True, False):
        shown = text.decoded(data, whole=whole)
        assert shown is None or text.honest(shown) is not None


def _token_file(data: bytes) -> None:
    for token in parse_tokens(text_of(data)):
        assert token.may(PULL)
        assert len(token.sha256) == 32


def _authorization(data: bytes) -> None:
    token = presented(header_of(data))
    assert token is None or token


def _scrape(data: bytes) -> None:
    """A request for the figures of a daemon."""
    answer = answer_to(data, lambda: b"figures")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 (200|400|404|405) ", head)
    assert not body or b"content-length: %d\r\n" % len(body) in head


TARGETS = (
    Target("range", _ranges, (), steps=Bound(2000, 200), words=(b"bytes=", b"-", b",", b"0-", b"9" * 19)),
    Target(
        "negotiation", _negotiation, (), words=(b"zstd", b"gzip", b";q=", b"*", b'W/"', b'"tag"', b"0.001")
    ),
    Target("node-address", _node_address, (InvalidRequest,)),
    Target(
        "cache-path",
        _path,
        (InvalidRequest,),
        words=(b"/nar/", b"tvix-castore/", b".narinfo", b".ls", b"/log/", b"/realisations/", b"/debuginfo/"),
    ),
    Target("query", _query, (InvalidRequest,), words=(b"narsize=", b"&", b";", b"%6e", b"=")),
    Target("page", _page, (InvalidRequest,), words=(b"/path/", b"?q=", b"&after=", b"&page=", b"%2f", b"//")),
    Target(
        "symlink",
        _target,
        (),
        memory=Bound(64 * 1024, 200),
        words=(b"/nix/store/", b"../", b"\xe2\x80\xae", b'"'),
    ),
    Target(
        "token-file", _token_file, (InvalidTokens,), words=(b"sha256:", b"pull,push", b"#", b"\x85", b"\n")
    ),
    Target("authorization", _authorization, (), words=(b"Bearer ", b"Basic ", b"=", b"Og==")),
    Target(
        "scrape", _scrape, (), longest=MAX_HEAD_BYTES, words=(b"HEAD ", b"/metrics", b" HTTP/1.1\r\n", b"?")
    ),
)
