"""What options, variables and fstab say: the owner's, or copied from somebody's page."""

from __future__ import annotations

import os

import click

from neve.castore.ingest.exclude import exclude_globs
from neve.cli import mount_helper
from neve.cli.server_options import ModeType, SizeType
from neve.errors import InvalidRequest
from neve.fs.fuse import mounting
from neve.registry import nested_addresses, parse_address, shown_url
from neve.rpc.target import target_of
from neve.serving.addresses import TcpAddress, UnixAddress, parse_listen_address
from neve.serving.sockets import passed_names
from neve.store.composition import KINDS, InvalidComposition, parse
from neve.store.substitute.address import trusted_keys
from tests.fuzz.target import Bound, Target
from tests.fuzz.targets.nix import text_of


def _address(data: bytes) -> None:
    """Also those within it. Nobody is shown the password."""
    text = text_of(data)
    assert "s3cret" not in shown_url(f"{text.partition('://')[0]}://user:s3cret@host/path".replace("\0", ""))
    shown = shown_url(
        f"{text.partition('://')[0]}://host/path?secret_access_key=s3cret&x=1".replace("\0", "")
    )
    assert "s3cret" not in shown
    address = parse_address(text)
    str(address.refuse("reason")).encode("utf-8", "surrogateescape")
    os.fsencode(address.path)
    for nested in nested_addresses(text).values():
        parse_address(nested)


_GRPC = ("grpc+http", "grpc+https", "grpc+unix")


def _grpc(data: bytes) -> None:
    address = parse_address("grpc+" + text_of(data))
    if address.scheme not in _GRPC:
        raise address.refuse("another scheme leads elsewhere")
    target = target_of(address)
    assert target.name.isascii()
    assert target.name.isprintable()


def _listen(data: bytes) -> None:
    address = parse_listen_address(text_of(data))
    assert parse_listen_address(str(address)) == address
    if isinstance(address, UnixAddress):
        assert os.path.isabs(address.path)
    elif isinstance(address, TcpAddress):
        assert 0 <= address.port < 65536


def _keys(data: bytes) -> None:
    trusted_keys(parse_address("nix+https://host?trusted-public-keys=" + text_of(data)))


def _passed(data: bytes) -> None:
    """The number of sockets in one line, their names in the next."""
    count, _, names = text_of(data).partition("\n")
    assert len(passed_names(count, names)) == int(count)


def _size(data: bytes) -> None:
    text = text_of(data)
    for kind in (SizeType(), ModeType()):
        try:
            assert kind.convert(text, None, None) >= 0
        except click.BadParameter as error:
            raise InvalidRequest(str(error)) from error


def _mount(data: bytes) -> None:
    """An argument in each line."""
    call = mount_helper.parse(text_of(data).split("\n"))
    arguments = mount_helper.command_line(call)
    assert arguments[-2:] == ["--", call.directory]


def _excluded(data: bytes) -> None:
    """A path, and a pattern in each line."""
    path, *patterns = data.split(b"\n")
    exclude = exclude_globs([text_of(pattern) for pattern in patterns])
    assert exclude is None or isinstance(exclude(path), bool)


def _mount_table(data: bytes) -> None:
    """A field of the kernel's table of mounts, which has blanks and line breaks escaped."""
    escaped = b"".join(b"\\%03o" % byte if byte in b" \n\t\\" else bytes((byte,)) for byte in data)
    assert mounting._unescaped(escaped) == data


def _composition(data: bytes) -> None:
    """Whatever it describes has an address, which the registry can read; no service is opened."""
    composition = parse(data.decode("utf-8", "replace"), "store.toml")
    for kind in filter(composition.has_root, KINDS):
        for each in (composition, composition.for_reading()):
            parse_address(each.url(kind))
            assert nested_addresses(each.url(kind)).keys() == each.root(kind).parts.keys()


_PATTERNS = Bound(256 * 1024, 1000)
"""Regular expressions."""

TARGETS = (
    Target(
        "address",
        _address,
        (InvalidRequest,),
        memory=Bound(128 * 1024, 300),
        words=(b"near=", b"far=", b"local:///", b"nix+https://", b"user:pass@", b"?", b"&", b"%40", b"[::1]"),
    ),
    Target(
        "grpc-address",
        _grpc,
        (InvalidRequest,),
        memory=Bound(128 * 1024, 200),
        words=(b"unix:///", b"https://", b"http://", b"?timeout=", b"&wait-connect=", b"%25"),
    ),
    Target("listen-address", _listen, (InvalidRequest,), words=(b"unix:", b"sd-listen:", b"[::1]", b":8000")),
    Target("trusted-keys", _keys, (InvalidRequest,), words=(b"key-1:", b"+", b"%20", b"=")),
    Target("passed-sockets", _passed, (InvalidRequest,), memory=Bound(128 * 1024, 64), words=(b":",)),
    Target(
        "composition",
        _composition,
        (InvalidComposition,),
        memory=Bound(256 * 1024, 2000),
        steps=Bound(3000, 300),
        words=(
            *(b"[blobservices.root]\n", b"[directoryservices.x]\n", b"[pathinfoservices.'a b']\n"),
            *(b"type='cache'\n", b"near='x'\n", b"far='memory://'\n", b"type = 'local'\n", b"path='/x'\n"),
            *(b"type='nix'\n", b"public_keys=['a']\n", b"negative_ttl=1\n", b'"""', b"{a=1}", b"[["),
        ),
    ),
    Target("size", _size, (InvalidRequest,), words=(b"GiB", b"0.5", b" ")),
    Target(
        "mount-options", _mount, (InvalidRequest,), words=(b"-o\n", b"allow_other,", b"ro", b"-s\n", b"x-")
    ),
    Target(
        "exclude",
        _excluded,
        (),
        words=(b"*", b"**", b"[!", b"]", b"?", b"/", b"(?"),
        memory=_PATTERNS,
        longest=256,
    ),
    Target("mount-table", _mount_table, (), memory=Bound(64 * 1024, 300), words=(b"\\040", b"\\777")),
)
