"""What ``neve virtiofs`` takes on its command line, and what it makes of it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from neve.cli.options import StoreOptions
from neve.cli.virtiofs import _sessions
from neve.fs.fuse.session import SessionOptions
from neve.fs.vhost.device import DeviceOptions
from neve.fs.vhost.run import GuestOptions
from neve.serving.addresses import UnixAddress
from tests.cli.conftest import Neve


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[GuestOptions]:
    """What the command asks for, instead of doing it."""
    calls: list[GuestOptions] = []
    monkeypatch.setattr("neve.fs.vhost.run.run_virtiofs", lambda options, *_: calls.append(options))
    return calls


def test_defaults(neve: Neve, given: list[GuestOptions]) -> None:
    assert neve("virtiofs", "/run/fs.sock").code == 0
    assert given == [GuestOptions(address=UnixAddress("/run/fs.sock"), socket_mode=0o600)]


def test_everything_given(
    neve: Neve, given: list[GuestOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--threads", "3", "--list-root", "--no-show-xattr", "--tag", "näme", "--unsealed-memory"]
    assert neve("virtiofs", "fs.sock", *options, "--socket-mode", "0666", "--socket-group", "0").code == 0
    device = DeviceOptions(tag="näme".encode(), unsealed_memory=True)
    address = UnixAddress(f"{tmp_path}/fs.sock")
    assert given == [GuestOptions(address=address, socket_mode=0o666, socket_group=0, device=device)]


def test_a_group_may_read_and_write(neve: Neve, given: list[GuestOptions]) -> None:
    neve("virtiofs", "unix:/run/fs.sock", "--socket-group", "0")
    assert given[0].socket_mode == 0o660
    assert given[0].address == UnixAddress("/run/fs.sock")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "missing argument 'SOCKET'"),
        ([""], "the path of the socket is empty"),
        (["/" + "x" * 200], "201 bytes, the path of a socket at most 107"),
        (["s", "--tag", ""], "--tag: '' has not 1 to 36 bytes"),
        (["s", "--tag", "x" * 37], "has not 1 to 36 bytes"),
        (["s", "--threads", "0"], "0 is not in the range"),
        (["s", "--socket-mode", "7"], "'7' are no permission bits"),
    ],
)
def test_wrong_usage(neve: Neve, given: list[GuestOptions], arguments: list[str], reason: str) -> None:
    result = neve("virtiofs", *arguments)
    assert result.code == 2
    assert reason in result.err
    assert given == []


@pytest.mark.parametrize("place", ["missing/fs.sock", "file"])
def test_places_where_no_socket_can_be(neve: Neve, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with_store = ["--store", "memory://"]
    assert (
        f"cannot listen on unix:{tmp_path}/{place}: "
        in neve("virtiofs", tmp_path / place, *with_store).failure
    )
    assert (tmp_path / "file").is_file()


def test_nothing_stays_of_a_front_end_that_has_gone() -> None:
    with _sessions(StoreOptions("memory://"), SessionOptions()) as make:
        session = make()
        known = weakref.ref(session)
        session.close()
        del session
        gc.collect()
        assert known() is None
