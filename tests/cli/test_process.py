"""What only a process of its own shows: signals, closed and full outputs, permissions, start-up."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Neve, Spawn

HEAVY = ("blake3", "cryptography", "google", "lmdb", "neve.library", "rich", "tarfile", "zstandard")

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def test_start_is_quick() -> None:
    """Nothing is imported that a command may not need."""
    code = f"import sys, neve.cli.program; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"[]\n"


def test_module_and_script_are_the_same(spawn: Spawn) -> None:
    script = Path(sys.executable).with_name("neve")
    if not script.exists():
        pytest.skip("neve is not installed as a script here")
    out, _ = spawn("--help").communicate()
    assert subprocess.check_output([script, "--help"]) == out


@pytest.fixture
def big_tree(tmp_path: Path) -> Path:
    """Takes many seconds to import, the last file alone."""
    root = tmp_path / "big"
    generator = random.Random(1)
    for i in range(20):
        (root / f"{i:02}").mkdir(parents=True)
        for j in range(20):
            (root / f"{i:02}" / f"{j}").write_bytes(generator.randbytes(3000))
    with open(root / "zz-sparse", "wb") as file:
        file.truncate(1 << 36)
    return root


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _has_open(process: subprocess.Popen[bytes], name: str) -> bool:
    folder = f"/proc/{process.pid}/fd"
    try:
        return any(os.readlink(f"{folder}/{fd}").endswith(name) for fd in os.listdir(folder))
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_import(
    neve: Neve, spawn: Spawn, big_tree: Path, tree: Path, number: signal.Signals
) -> None:
    kept = neve("import", tree).line
    with spawn("import", big_tree) as process:
        _wait_for(lambda: _has_open(process, "zz-sparse"))
        process.send_signal(number)
        out, err = process.communicate(timeout=90)
    assert process.returncode == 128 + number
    assert out == b""
    assert err == b"neve: interrupted\n"
    assert neve("verify").code == 0
    assert [line.split(b"\t")[0] for line in neve("path-info").out.splitlines()] == [kept.encode()]
    (big_tree / "zz-sparse").unlink()
    assert neve("import", big_tree).code == 0
    assert neve("verify").code == 0


def test_interrupted_export_leaves_nothing(neve: Neve, spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    with open(tmp_path / "many" / "a", "wb") as file:
        file.truncate(1 << 29)
    path = neve("import", tmp_path / "many").line
    (tmp_path / "here").mkdir()
    with spawn("export", path, tmp_path / "here" / "out") as process:
        _wait_for(lambda: bool(os.listdir(tmp_path / "here")))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=90)
    assert process.returncode == 130
    assert os.listdir(tmp_path / "here") == []


def test_a_stuck_command_ends_after_an_interrupt() -> None:
    code = """
import sys, time
from neve.cli import interrupts, program
from neve.cli.__main__ import main

def stuck(_):
    while True:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass

program.run = stuck
with interrupts.grace(float(sys.argv[1])):
    sys.exit(main([]))
"""
    for grace, signals in (("0.1", 1), ("60", 2)):
        command = [sys.executable, "-c", code, grace]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            for _ in range(signals):
                process.send_signal(signal.SIGINT)
                time.sleep(0.05)
            assert process.wait(timeout=90) == 130


def test_ignored_signals_stay_ignored() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    command = """
import os, signal, sys
from neve.cli import program
from neve.cli.__main__ import main

def hang_up(_):
    os.kill(os.getpid(), signal.SIGHUP)
    return 0

program.run = hang_up
sys.exit(main([]))
"""
    assert subprocess.run([sys.executable, "-c", command], preexec_fn=ignore).returncode == 0
    done = subprocess.run([sys.executable, "-c", command], capture_output=True)
    assert done.returncode == 128 + signal.SIGHUP


def test_nobody_reads_on(neve: Neve, spawn: Spawn, tree: Path) -> None:
    path = neve("import", tree).line
    for arguments in (["nar", "export", path], ["cat", f"{path}/large"]):
        with spawn(*arguments) as process:
            assert process.stdout is not None
            assert len(process.stdout.read(100)) == 100
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == b""
        assert process.returncode == 1


def test_nobody_reads_at_all(neve: Neve, spawn: Spawn, tree: Path) -> None:
    path = neve("import", tree).line
    for arguments in (["ls", path], ["path-info"], ["import", str(tree)], ["--version"]):
        reading, writing = os.pipe()
        os.close(reading)
        with spawn(*arguments, stdout=writing) as process:
            os.close(writing)
            _, err = process.communicate()
        assert err == b""
        assert process.returncode == 1


def test_full_output(neve: Neve, spawn: Spawn, tree: Path) -> None:
    path = neve("import", tree).line
    for arguments in (["ls", path], ["nar", "export", path], ["path-info", "--json"]):
        with open("/dev/full", "wb") as full, spawn(*arguments, stdout=full) as process:
            _, err = process.communicate()
        assert process.returncode == 1
        assert err == b"neve: cannot write the output: No space left on device\n"


def test_closed_streams(neve: Neve, tree: Path) -> None:
    path = neve("import", tree).line
    command = f"{sys.executable} -m neve.cli"

    def shell(line: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["sh", "-c", line], capture_output=True)

    done = shell(f"{command} ls {path} >&-")
    assert done.returncode == 1
    assert done.stderr == b"neve: cannot write the output: stdout is closed\n"
    assert shell(f"{command} ls {path} 2>&-").stdout == neve("ls", path).out
    assert shell(f"{command} ls {path}/none 2>&-").returncode == 1
    done = shell(f"{command} nar import --name x <&-")
    assert done.returncode == 2
    assert b"stdin is closed" in done.stderr
    assert neve("verify").code == 0


def _without_capabilities() -> None:
    """Root may no longer do what permissions forbid."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")


def test_unreadable(neve: Neve, spawn: Spawn, tree: Path, tmp_path: Path) -> None:
    def fail(*arguments: str | Path) -> str:
        with spawn(*arguments, preexec_fn=_without_capabilities) as process:
            out, err = process.communicate()
        assert process.returncode == 1
        assert out == b""
        assert err.count(b"\n") == 1
        return err.decode()

    path = neve("import", tree).line
    (tree / "text").chmod(0)
    assert fail("import", tree) == f"neve: cannot read {tree}/text: Permission denied\n"
    assert f"{tree}/text: Permission denied" in fail("nar", "import", "--name", "x", tree / "text")
    (tree / "text").chmod(0o644)
    (tree / "bin").chmod(0)
    assert fail("import", tree) == f"neve: cannot read {tree}/bin: Permission denied\n"
    (tree / "bin").chmod(0o755)
    (tmp_path / "closed").mkdir(mode=0o555)
    assert "Permission denied" in fail("export", path, tmp_path / "closed" / "out")
    assert "Permission denied" in fail("import", "--store", f"local://{tmp_path}/closed/store", tree)


def test_reading_needs_no_permission_to_write(neve: Neve, spawn: Spawn, tree: Path, tmp_path: Path) -> None:
    path = neve("import", tree).line
    nar = neve("nar", "export", path).out
    for folder, directories, files in os.walk(tmp_path / "store"):
        for name in directories + files:
            file = Path(folder, name)
            file.chmod(0o555 if file.is_dir() else 0o444)
    (tmp_path / "store").chmod(0o555)
    with spawn("nar", "export", path, preexec_fn=_without_capabilities) as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, nar, b"")
    with spawn("import", "/etc/hostname", preexec_fn=_without_capabilities) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert b"Permission denied" in err
