"""The units in ``contrib/systemd``: systemd takes them, and neve takes what they say."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from neve.cli.commands import cli

UNITS = Path(__file__).parents[2] / "contrib" / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
SERVERS = sorted(set(SERVICES) - {"neve-gc.service"})
ALL = sorted(
    path.name for path in UNITS.iterdir() if path.suffix in (".service", ".socket", ".mount", ".timer")
)

EXPOSURE = {"neve-mount@.service": 45}
"""Most that ``systemd-analyze security`` may say, times ten. Who mounts for others can be locked in less."""
LEAST_EXPOSURE = 20


def values(unit: str, key: str) -> list[str]:
    lines = (UNITS / unit).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def instance(unit: str) -> str:
    return unit.replace("@.", "@mnt-neve.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The units, with the path of a program that is there."""
    for unit in ALL:
        text = (UNITS / unit).read_text()
        (tmp_path / unit).write_text(text.replace("ExecStart=neve ", f"ExecStart={sys.executable} "))
    return tmp_path


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )


@pytest.mark.systemd
@pytest.mark.parametrize("unit", ALL)
def test_systemd_has_no_complaints(folder: Path, unit: str) -> None:
    done = analyze(folder, "verify", "--man=no", f"./{instance(unit)}")
    # Of what else is installed on this machine, nothing is to be said here.
    lines = [line for line in done.stdout.splitlines() if "neve" in line]
    assert lines == []
    assert done.returncode == 0, done.stdout


@pytest.mark.systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_services_are_locked_in(folder: Path, unit: str) -> None:
    threshold = EXPOSURE.get(unit, LEAST_EXPOSURE)
    done = analyze(
        folder, "security", "--offline=yes", "--no-pager", f"--threshold={threshold}", f"./{instance(unit)}"
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.systemd
def test_the_user(tmp_path: Path) -> None:
    shutil.copy(UNITS / "neve.sysusers", tmp_path / "neve.conf")
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", str(tmp_path / "neve.conf")],
        text=True,
        capture_output=True,
    )
    assert "neve" in done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("unit", SERVICES)
def test_neve_takes_the_command(unit: str) -> None:
    (line,) = values(unit, "ExecStart")
    program, name, *arguments = shlex.split(line.replace("%f", "/mnt/neve").replace("%i", "guest"))
    assert program == "neve"
    command = cli.commands[name]
    if "--socket-group" in arguments:  # There need not be such a group here.
        arguments[arguments.index("--socket-group") + 1] = "0"
    with click.Context(cli) as root:
        command.make_context(name, arguments, parent=root)


def test_sockets_go_to_who_asks_for_them() -> None:
    for unit in SERVICES:
        (line,) = values(unit, "ExecStart")
        asked = {word.partition(":")[2] for word in shlex.split(line) if word.startswith("sd-listen:")}
        sockets = [name for each in values(unit, "Sockets") for name in each.split()]
        assert {name for socket in sockets for name in values(socket, "FileDescriptorName")} == asked
        for socket in sockets:
            assert values(socket, "Service") == [unit]


@pytest.mark.parametrize("unit", SERVERS)
def test_services_tell_how_they_are(unit: str) -> None:
    assert values(unit, "Type") == ["notify"]
    assert values(unit, "WatchdogSec") == ["60"]
    assert values(unit, "NoNewPrivileges") == ["yes"]
    # Wrong usage: it would be as wrong the next time.
    assert values(unit, "RestartPreventExitStatus") == ["2"]
    # The grace time, what comes after it, and a little more.
    assert int(values(unit, "TimeoutStopSec")[0]) >= 30 + 10


def test_collections_work_on_the_store_that_is_served() -> None:
    """As its user, for as long as it takes, and at a time that systemd understands."""
    for key in ("User", "Group", "StateDirectory", "StateDirectoryMode", "UMask"):
        assert values("neve-gc.service", key) == values("neve.service", key)
    assert values("neve-gc.service", "Type") == ["oneshot"]
    assert values("neve-gc.service", "TimeoutStartSec") == ["infinity"]
    assert values("neve-gc.service", "Restart") == []
    assert values("neve-gc.timer", "WantedBy") == ["timers.target"]


@pytest.mark.systemd
def test_the_time_of_collections(folder: Path) -> None:
    (time,) = values("neve-gc.timer", "OnCalendar")
    done = analyze(folder, "calendar", time)
    assert done.returncode == 0, done.stdout


def test_the_rules_of_collections_can_be_said_in_the_file(tmp_path: Path) -> None:
    """The lines that the unit proposes."""
    head = (UNITS / "neve-gc.service").read_text().partition("[Unit]")[0].splitlines()
    lines = [line.removeprefix("#").strip() for line in head if line.startswith("#   ")]
    (tmp_path / "neve.toml").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "neve.cli", "--config", str(tmp_path / "neve.toml"), "config", "show"],
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "30d" in done.stdout
    assert "200GiB" in done.stdout


def test_the_mount_unit_is_named_for_its_folder() -> None:
    (folder,) = values("mnt-neve.mount", "Where")
    assert folder.strip("/").replace("/", "-") == "mnt-neve"
