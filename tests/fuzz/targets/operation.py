"""What an operator's files say, what the service manager does, and what a store keeps for collections."""

from __future__ import annotations

import fcntl
import functools
import io
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from neve.cli import config_file
from neve.cli.collecting import AgeType, _listed
from neve.cli.commands import cli
from neve.cli.configuration import Configuration, section_values
from neve.errors import Corrupt, InvalidRequest
from neve.packstore.layout import USES_DIR
from neve.packstore.notes import END_NOTE, NotesReader
from neve.serving.manager import ServiceManager
from neve.store import pins
from tests.fuzz.closing import opened
from tests.fuzz.target import Bound, Target
from tests.fuzz.targets.disk import folder
from tests.fuzz.targets.nix import text_of

_DAEMON = ("daemon",)


@functools.cache
def _memory_file() -> int:
    return os.memfd_create("neve.toml")


@functools.cache
def _daemon() -> click.Context:
    """Of a command whose options are of every type."""
    root = click.Context(cli, info_name="neve")
    return click.Context(cli.commands["daemon"], parent=root, info_name="daemon")


def _check_lines(file: config_file.ConfigFile, table: Mapping[str, Any], above: tuple[str, ...]) -> None:
    """What a line is said to hold stands in it."""
    lines = file.text.split("\n")
    for key, value in table.items():
        keys = (*above, key)
        if (number := file.line_of(keys)) is not None:
            assert key in lines[number - 1], (keys, number)
        assert "\n" not in file.place(keys)
        if isinstance(value, dict):
            _check_lines(file, value, keys)


def _config_file(data: bytes) -> None:
    """Also what it says for a command: values that its options take."""
    os.ftruncate(_memory_file(), 0)
    os.pwrite(_memory_file(), data, 0)
    file = config_file.read(f"/proc/self/fd/{_memory_file()}")
    _check_lines(file, file.tables, ())
    configuration, context = Configuration(file), _daemon()
    try:
        configuration.check_sections(cli)
        for values in section_values(configuration, _DAEMON, context.command, context):
            for value in values.values():
                assert isinstance(value, bool | str | tuple)
    except click.UsageError as error:
        if not error.message.startswith(file.path):
            raise AssertionError(f"it does not name the file: {error.message}") from error
        raise InvalidRequest(error.message) from error


@functools.cache
def _listener() -> tuple[socket.socket, str]:
    """Where a service manager would listen."""
    listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    listener.bind("")  # Linux finds a name that is no path.
    listener.setblocking(False)
    return listener, "@" + listener.getsockname()[1:].decode()


def _notify(data: bytes) -> None:
    """Three variables, a line each, then a status. Whatever that is, the manager understands what it is
    told."""
    *values, status = (text_of(data).split("\n", 3) + [""] * 4)[:4]
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    environment = {name: value.replace("\0", "") for name, value in zip(names, values, strict=True)}
    manager = ServiceManager(environment)
    assert not environment
    assert manager.beat_seconds is None or 0 < manager.beat_seconds < 1e9
    listener, name = _listener()
    ServiceManager({"NOTIFY_SOCKET": name}).ready(status)
    told = listener.recv(65536).decode()
    assert re.fullmatch(r"READY=1\nSTATUS=[^\n]{0,200}", told), told


@functools.cache
def _store_of_notes() -> Path:
    path = folder("notes")
    (path / USES_DIR).mkdir()
    return path


def _notes(data: bytes) -> None:
    """A file of notes that is in use. Each note that is read is whole."""
    store = _store_of_notes()
    with (store / USES_DIR / "1-a.uses").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(data)
        file.flush()
        reader = NotesReader(store, 3600)
        found = reader.news()
        assert sum(map(len, found.values())) <= len(data) // 33
        assert all(len(key) == 32 for keys in found.values() for key in keys)
        assert END_NOTE[0] not in found
        assert not reader.news()


def _pin(data: bytes) -> None:
    """A name, and a path in each line."""
    name, _, paths = data.partition(b"\n")
    pin = pins._decode(name, paths)
    assert pin.name.encode() == name
    assert "\n".join(path.base_name for path in pin.paths).encode() == paths


def _kept(data: bytes) -> None:
    for path in _listed([io.BytesIO(data)]):
        assert path.absolute.encode() in data or path.base_name.encode() in data


def _age(data: bytes) -> None:
    try:
        assert AgeType().convert(text_of(data), None, None) >= 0
    except click.BadParameter as error:
        raise InvalidRequest(str(error)) from error


_HEAD = b"neve-use\1\1" + bytes(54)
_PATH = b"00000000000000000000000000000000-name"

TARGETS = (
    Target(
        "config-file",
        _config_file,
        (InvalidRequest,),
        memory=Bound(512 * 1024, 2000),
        steps=Bound(30_000, 400),
        words=(
            *(b"[daemon]\n", b"[common]\n", b"[nar.import]\n", b"listen = ['unix:/x']\n", b"workers = 4\n"),
            *(
                b"store='memory://'\n",
                b"grace = 1.5\n",
                b'"""',
                b"[[",
                b"{a=1}",
                b"'work''ers'",
                b"1979-05-27",
            ),
            *(b"max-message-bytes='1GiB'\n", b"socket-mode='0660'\n", b"true", b"\\u0000", b"\r\n", b"#"),
        ),
    ),
    Target(
        "notify",
        _notify,
        (),
        memory=Bound(256 * 1024, 64),
        words=(b"@a\n", b"/run/x\n", b"1000000\n", b"READY=1", b"\x85", b"\xe2\x80\xa8"),
    ),
    # A block of notes is read at once.
    Target("notes", _notes, (), memory=Bound(1_200_000, 200), words=(_HEAD, END_NOTE, bytes(33))),
    Target("age", _age, (InvalidRequest,), words=(b"12h", b"1.5", b" D", b"\xd9\xa1")),
    Target("pin", _pin, (Corrupt,), words=(_PATH, b"\n")),
    Target("kept-list", _kept, (InvalidRequest,), words=(_PATH, b"/nix/store/", b"# ", b"\n")),
)
