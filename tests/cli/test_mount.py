"""``neve mount`` and ``mount.neve``: what they say, and for whom they work."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from neve.cli.mount_helper import _UsageError, command_line, parse
from tests.fs.mounts import NEVE, is_mounted, mounting, remove, run, until
from tests.fs.samples import imported

NOBODY = 65534


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "mounted"
    folder.mkdir()
    yield folder
    remove(folder)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"local://{tmp_path}/store"


@pytest.fixture
def base_name(tmp_path: Path, store: str) -> str:
    (tmp_path / "hello").write_text("Hello\n")
    return imported(store, tmp_path / "hello")


def failure(result: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line of a command that failed."""
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("neve: ")
    return result.stderr[6:-1]


def as_nobody(tmp_path: Path) -> Sequence[str]:
    """The program for a user who may do nothing; he can get at what lies in ``tmp_path``."""
    for folder in (tmp_path, *tmp_path.parents):
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o005 != 0o005:
            folder.chmod(mode | 0o055)
    for where, _, files in os.walk(tmp_path / "store"):
        for name in (".", *files):
            os.chown(os.path.join(where, name), NOBODY, NOBODY)
    return sys.executable, "-m", "tests.fs.as_user", str(NOBODY)


# Places where nothing can be mounted; nothing is, so this needs no kernel that can.


def test_a_place_that_is_not_there(store: str, base_name: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    message = failure(run(*NEVE, "mount", missing, "--store", store))
    assert message == f"{missing} does not exist; make it first: mkdir {missing}"


def test_a_place_that_is_no_folder(store: str, base_name: str, tmp_path: Path) -> None:
    message = failure(run(*NEVE, "mount", tmp_path / "hello", "--store", store))
    assert message == f"{tmp_path}/hello is no folder, so nothing can be mounted there"


@pytest.mark.parametrize("background", [(), ("--background",)])
def test_a_place_that_is_not_empty(
    store: str, base_name: str, tmp_path: Path, background: tuple[str, ...]
) -> None:
    message = failure(run(*NEVE, "mount", tmp_path, "--store", store, *background))
    assert message == f"{tmp_path} is not empty; name another folder, or hide its contents with --nonempty"


@pytest.mark.parametrize("background", [(), ("--background",)])
def test_a_store_that_is_not_there(tmp_path: Path, place: Path, background: tuple[str, ...]) -> None:
    message = failure(run(*NEVE, "mount", place, "--store", f"local://{tmp_path}/none", *background))
    assert f"{tmp_path}/none" in message
    assert not is_mounted(place)


def test_wrong_usage(place: Path) -> None:
    for arguments in (("--threads", "0"), ("--threads", "many"), ("--unknown",), ("another",)):
        assert "see: neve mount --help" in failure(run(*NEVE, "mount", place, *arguments), 2)


@pytest.mark.fuse
class TestWithTheKernel:
    def test_a_place_that_is_busy(self, store: str, base_name: str, place: Path) -> None:
        with mounting(store, place):
            message = failure(run(*NEVE, "mount", place, "--store", store))
            busy = "a file system (fuse.neve) is mounted there already; umount it first"
            assert message == f"{place} is busy: {busy}"

    def test_over_what_is_there(self, store: str, base_name: str, place: Path) -> None:
        (place / "hidden").touch()
        with mounting(store, place, "--nonempty") as mount:
            assert not (place / "hidden").exists()
            assert mount.path(base_name).read_text() == "Hello\n"
        assert (place / "hidden").exists()

    def test_odd_places(self, store: str, base_name: str, tmp_path: Path) -> None:
        """With a space, a comma, a backslash, and through a link; the source has a comma too."""
        folder = tmp_path / "a b,c\\d\u00e9"
        folder.mkdir()
        (tmp_path / "link").symlink_to(folder)
        with mounting(f"{store}?mode=ro", folder) as mount:
            assert mount.path(base_name).read_text() == "Hello\n"
        try:
            result = run(*NEVE, "mount", tmp_path / "link", "--store", store, "--background")
            assert result.returncode == 0, result.stderr
            assert (folder / base_name).read_text() == "Hello\n"
        finally:
            remove(folder)

    def test_without_the_device(self, store: str, base_name: str, place: Path) -> None:
        script = 'mount -t tmpfs tmpfs /dev && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *NEVE]
        message = failure(run(*command, "mount", place, "--store", store))
        assert message == "/dev/fuse is not there: this kernel has no FUSE, or needs: modprobe fuse"

    def test_a_root_that_may_not_mount(self, store: str, base_name: str, place: Path) -> None:
        command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *NEVE]
        message = failure(run(*command, "mount", place, "--store", store))
        assert message == f"cannot mount at {place}: Operation not permitted; is this a container?"


@pytest.mark.fuse
class TestAsAnotherUser:
    def test_it_works(self, store: str, base_name: str, tmp_path: Path, place: Path) -> None:
        program = as_nobody(tmp_path)
        os.chown(place, NOBODY, NOBODY)
        with mounting(store, place, "--list-root", program=program) as mount:
            result = run("ls", place, user=NOBODY, group=NOBODY, extra_groups=[])
            assert (result.stdout, result.stderr) == (f"{base_name}\n", "")
            cat = run("cat", mount.path(base_name), user=NOBODY, group=NOBODY, extra_groups=[])
            assert cat.stdout == "Hello\n"
            # It is for this user only, not even for root.
            assert "Permission denied" in run("ls", place).stderr
            mount.process.send_signal(signal.SIGINT)
            assert mount.ended() == 0, mount.log
            assert not is_mounted(place)
        with mounting(store, place, program=program) as mount:
            result = run("fusermount3", "-u", place, user=NOBODY, group=NOBODY, extra_groups=[])
            assert result.stderr == ""
            assert mount.ended() == 0

    def test_while_files_are_open(self, store: str, base_name: str, tmp_path: Path, place: Path) -> None:
        program = as_nobody(tmp_path)
        os.chown(place, NOBODY, NOBODY)
        with mounting(store, place, program=program) as mount:
            command = ["tail", "-f", str(mount.path(base_name))]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, user=NOBODY, group=NOBODY, extra_groups=[]
            ) as reader:
                assert reader.stdout is not None
                assert reader.stdout.readline() == b"Hello\n"
                mount.process.terminate()
                assert mount.ended() == 0
                assert not is_mounted(place)
                reader.kill()

    def test_where_he_may_not(self, store: str, base_name: str, tmp_path: Path, place: Path) -> None:
        message = failure(run(*as_nobody(tmp_path), "mount", place, "--store", store))
        assert message.startswith(f"cannot mount at {place}: ")
        assert "user has no write access to mountpoint" in message

    def test_without_the_helper(self, store: str, base_name: str, tmp_path: Path, place: Path) -> None:
        os.chown(place, NOBODY, NOBODY)
        environment = os.environ | {"PATH": "/nonexistent"}
        result = run(*as_nobody(tmp_path), "mount", place, "--store", store, env=environment)
        message = "only root can mount without fusermount3, and it is not installed (Debian: fuse3)"
        assert failure(result) == message

    def test_for_others(self, store: str, base_name: str, tmp_path: Path, place: Path) -> None:
        os.chown(place, NOBODY, NOBODY)
        # Without a line in /etc/fuse.conf, whatever there is on this machine.
        script = 'mount --bind /dev/null /etc/fuse.conf && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *as_nobody(tmp_path)]
        result = run(*command, "mount", place, "--store", store, "--allow-other")
        assert failure(result) == "--allow-other needs a line user_allow_other in /etc/fuse.conf"


@pytest.mark.fuse
def test_root_lets_others_in_if_that_is_wanted(store: str, base_name: str, tmp_path: Path) -> None:
    as_nobody(tmp_path)
    for options, code in (((), 1), (("--allow-other",), 0)):
        with mounting(store, tmp_path / "mounted", *options) as mount:
            result = run("cat", mount.path(base_name), user=NOBODY, group=NOBODY, extra_groups=[])
            assert result.returncode == code


def servers_of(place: Path) -> list[int]:
    """The processes with ``place`` in their command line."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(place) in command.split(b"\0"):
                found.append(int(process.name))
    return found


@pytest.mark.fuse
def test_in_the_background(store: str, base_name: str, place: Path) -> None:
    # The pipes are closed when it returns, else this would wait for ever.
    result = run(*NEVE, "mount", place, "--store", store, "--background")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == f"neve: mounted {store} at {place}\n"
    assert (place / base_name).read_text() == "Hello\n"
    (server,) = servers_of(place)
    assert os.getsid(server) == server
    assert os.readlink(f"/proc/{server}/cwd") == "/"
    assert run("umount", place).returncode == 0
    until(lambda: not servers_of(place))


@pytest.mark.fuse
def test_no_collection_takes_what_it_shows(store: str, base_name: str, place: Path, tmp_path: Path) -> None:
    """What was looked at stays as long as it is mounted, with all that lies below; the rest goes."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("Contents\n")
    shown, other = imported(store, tree), imported(store, tree / "file")
    collection = (*NEVE, "gc", "--store", store, "--only-pinned", "--grace", "0s")
    with mounting(store, place) as mount:
        assert os.path.exists(mount.path(shown))
        assert run(*collection).returncode == 0
        assert (place / shown / "file").read_text() == "Contents\n"
        assert not os.path.exists(mount.path(other))
    assert run(*collection).returncode == 0
    assert run(*NEVE, "path-info", "--store", store).stdout == ""


@pytest.mark.fuse
def test_in_the_background_it_hears_signals(store: str, base_name: str, place: Path) -> None:
    assert run(*NEVE, "mount", place, "--store", store, "--background").returncode == 0
    (server,) = servers_of(place)
    os.kill(server, signal.SIGTERM)
    until(lambda: not servers_of(place))
    assert not is_mounted(place)


AUTOMOUNT = """
import ctypes, fcntl, os, struct, subprocess, sys
folder, file, *command = sys.argv[1:]
reading, writing = os.pipe()
options = f"fd={writing},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
if ctypes.CDLL(None).mount(b"auto", os.fsencode(folder), b"autofs", 0, options.encode()):
    sys.exit("no autofs")
os.close(writing)
trigger = os.open(folder, os.O_RDONLY)
looker = subprocess.Popen(["cat", f"{folder}/{file}"], process_group=0)
try:
    (token,) = struct.unpack_from("<8xI", os.read(reading, 4096))
    subprocess.run(command, check=True, timeout=60)
    fcntl.ioctl(trigger, 0x9360, token)  # Ready.
    looker.wait(60)
finally:
    looker.kill()
    os.close(trigger)
    subprocess.run(["umount", folder])
"""


@pytest.mark.fuse
@pytest.mark.skipif(
    "autofs" not in Path("/proc/filesystems").read_text(), reason="this kernel has no automounts"
)
def test_it_is_mounted_when_somebody_looks(store: str, base_name: str, place: Path) -> None:
    """As systemd does for x-systemd.automount: whoever is not of its process group waits for the mount, so
    the one that mounts has to be."""
    command = ["unshare", "--mount", sys.executable, "-c", AUTOMOUNT, str(place), base_name]
    result = run(*command, *NEVE, "mount", "--background", place, "--store", store, start_new_session=True)
    assert (result.returncode, result.stdout) == (0, "Hello\n")
    assert result.stderr == f"neve: mounted {store} at {place}\n"
    until(lambda: not servers_of(place))


HELPER = (sys.executable, "-m", "neve.cli.mount_helper")


def test_what_the_helper_makes_of_options() -> None:
    options = "rw,noatime,_netdev,nofail,x-systemd.automount,allow_other,threads=4,list_root,noexec"
    call = parse(["local:///srv/neve", "/mnt", "-v", "-o", options, "-t", "neve"])
    assert command_line(call) == [
        *("--log-level", "info", "mount", "--background", "--store", "local:///srv/neve"),
        *("--allow-other", "--threads", "4", "--list-root", "--noexec", "--", "/mnt"),
    ]
    address = "nix+https://cache.example.org?trusted-public-keys=a:b"
    call = parse(["grpc+unix:///s", "-sn", "/mnt", "-o", f"path_info_service_addr={address},unheard_of"])
    assert command_line(call) == [
        *("--log-level", "warning", "mount", "--background", "--store", "grpc+unix:///s"),
        *("--path-info-service-addr", address, "--", "/mnt"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: "),
        (["local:///s"], "usage: "),
        (["local:///s", "/mnt", "more"], "usage: "),
        (["local:///s", "/mnt", "-o"], "-o takes a value"),
        (["local:///s", "/mnt", "-x"], "unknown option -x"),
        (["local:///s", "/mnt", "-N", "1"], "mounting in another namespace"),
        (["local:///s", "/mnt", "-o", "ro,unheard_of"], "unknown option 'unheard_of'"),
        (["local:///s", "/mnt", "-o", "threads"], "unknown option 'threads'"),
        (["local:///s", "/mnt", "-o", "remount"], "unknown option 'remount'"),
    ],
)
def test_what_the_helper_refuses(arguments: list[str], message: str) -> None:
    with pytest.raises(_UsageError, match=message):
        command_line(parse(arguments))
    result = run(*HELPER, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("mount.neve: ")
    assert message in result.stderr


def test_codes_of_the_helper(tmp_path: Path, place: Path) -> None:
    result = run(*HELPER, f"local://{tmp_path}/none", place)
    assert result.returncode == 32
    assert result.stderr.count("\n") == 1
    assert run(*HELPER, "local:///s", place, "-o", "threads=none").returncode == 1
    assert run(*HELPER, "local:///s", place, "-f").returncode == 0


@pytest.mark.fuse
def test_a_line_of_fstab(store: str, base_name: str, tmp_path: Path, place: Path) -> None:
    """By mount(8), in a namespace in which it finds the helper."""
    helper = tmp_path / "mount.neve"
    helper.write_text(f'#!/bin/sh\nexec {sys.executable} -m neve.cli.mount_helper "$@"\n')
    helper.chmod(0o755)
    (tmp_path / "fstab").write_text(
        f"{store} {place} neve ro,nofail,_netdev,allow_other,x-systemd.requires=x.service 0 0\n"
    )
    script = """
set -e
mount -t tmpfs tmpfs /usr/sbin
cp "$1/mount.neve" /usr/sbin
mount --fstab "$1/fstab" "$2"
cat "$2/$3"
findmnt --noheadings --output SOURCE,FSTYPE "$2"
umount "$2"
"""
    result = run("unshare", "--mount", "sh", "-c", script, "sh", tmp_path, place, base_name)
    assert result.stderr == ""
    assert result.stdout.split() == ["Hello", store, "fuse.neve"]
    until(lambda: not servers_of(place))
