"""The configuration file: what it says for options, what it must not say, and who tells it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from neve.cli import config_file, options
from neve.cli.commands import cli
from neve.cli.config_file import MAX_FILE_BYTES, ConfigFile
from neve.cli.configuration import COMMON, Configured, all_commands, options_of
from neve.server.daemon import DaemonOptions
from neve.serving.main import WorkerStart
from tests.cli.conftest import Neve, Spawn
from tests.cli.test_process import _without_capabilities

Given = list[tuple[DaemonOptions, WorkerStart]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """What ``neve daemon`` asks for, instead of doing it."""
    calls: Given = []

    def run(chosen: DaemonOptions, _environment: object, _open: object, worker: WorkerStart) -> None:
        calls.append((chosen, worker))

    monkeypatch.setattr("neve.server.daemon.run_daemon", run)
    return calls


class Config:
    """A file that ``NEVE_CONFIG`` names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def says(self, text: str) -> None:
        self.path.write_text(text)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    path = tmp_path / "neve.toml"
    monkeypatch.setenv("NEVE_CONFIG", str(path))
    monkeypatch.delenv("NEVE_STORE")
    return Config(path)


DAEMON = """
[common]
store = "local:///from/the/file"
log-level = "warning"
json = true

[daemon]
listen = ["unix:/a", "[::1]:0"]
admin-listen = "/b"
workers = 3
grace = 1.5
read-only = true
socket-mode = "0666"
socket-group = 0
max-message-bytes = "5MiB"
max-blob-bytes = 4096
stream-idle-seconds = 7

[serve]
priority = 12
"""


def test_options_of_a_command(neve: Neve, config: Config, given: Given) -> None:
    config.says(DAEMON)
    assert neve("daemon").code == 0
    ((chosen, worker),) = given
    assert chosen.listen.addresses == ("unix:/a", "[::1]:0")
    assert chosen.listen.admin_addresses == ("/b",)
    assert (chosen.workers, chosen.settings.grace, chosen.settings.read_only) == (3, 1.5, True)
    assert (chosen.listen.socket_mode, chosen.listen.socket_group) == (0o666, 0)
    limits = chosen.settings.limits
    assert (limits.max_message_bytes, limits.max_blob_bytes) == (5 << 20, 4096)
    assert limits.stream_idle_seconds == 7
    assert worker.store["url"] == "local:///from/the/file"
    # A worker gets what the file said, and does not read it again.
    assert list(worker.command[4:8]) == ["--config=", "--log-level", "warning", "--json"]


def test_who_comes_first(neve: Neve, config: Config, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    config.says('[common]\nstore = "local:///common"\n[daemon]\nstore = "local:///own"\nworkers = 3')
    neve("daemon")
    monkeypatch.setenv("NEVE_STORE", "local:///environment")
    neve("daemon", "--workers", "2")
    neve("daemon", "--store", "local:///line")
    stores = [worker.store["url"] for _, worker in given]
    assert stores == ["local:///own", "local:///environment", "local:///line"]
    assert [chosen.workers for chosen, _ in given] == [3, 2, 3]


def test_groups_of_commands(neve: Neve, config: Config, tmp_path: Path) -> None:
    config.says(
        f'[common]\nstore = "local://{tmp_path}/store"\n[nar.import]\nname = "from-file"\n'
        "[mount]\nshow-xattr = false\n"
    )
    nar = neve("nar", "export", neve("import", __file__).line).out
    assert neve("nar", "import", stdin=nar).line.endswith("-from-file")
    assert neve("nar", "import", "--name", "given", stdin=nar).line.endswith("-given")


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "system.toml"
    monkeypatch.setattr(config_file, "SYSTEM_FILE", str(system))
    users = tmp_path / "xdg" / "neve" / "neve.toml"
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert config_file.find(environment) is None
    system.touch()
    found = config_file.find(environment)
    assert found is not None
    assert found.path == str(system)
    users.parent.mkdir(parents=True)
    users.touch()
    found = config_file.find(environment)
    assert found is not None
    assert found.path == str(users)
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ({}, {"XDG_CONFIG_HOME": "xdg"}):
        found = config_file.find(relative)
        assert found is not None
        assert found.path == str(system)


def test_naming_the_file(neve: Neve, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.says("nonsense")
    other = tmp_path / "other.toml"
    other.write_text('[common]\nstore = "memory://"\n')
    assert neve("--config", other, "path-info").code == 0
    assert "is no TOML" in neve("path-info").err
    assert neve("--config=", "path-info", "--store", "memory://").code == 0
    monkeypatch.setenv("NEVE_CONFIG", "")
    assert neve("path-info", "--store", "memory://").code == 0
    monkeypatch.setenv("NEVE_CONFIG", str(tmp_path / "none.toml"))
    assert neve("path-info").failure == (
        f"cannot read the configuration file {tmp_path}/none.toml: No such file or directory"
    )


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("[common]\nstroe = 'x'", 2, "[common] has no key 'stroe'; did you mean 'store'?"),
        ("[daemon]\n\nworkers=1\n wrokers = 1", 4, "[daemon] has no key 'wrokers'; did you mean 'workers'?"),
        ("[daemon]\nquux = 1", 2, "[daemon] has no key 'quux'"),
        ("[daemon]\nlog-level = 'info'", 2, "has no key 'log-level'; it belongs to [common]"),
        ("[common]\nadmin-listen = '/a'", 2, "has no key 'admin-listen'; it belongs to [daemon]"),
        ("[common]\ntoken-file = '/a'", 2, "has no key 'token-file'; it belongs to [serve]"),
        ("[daemon]\nhelp = true", 2, "[daemon] has no key 'help'"),
        ("[deamon]\nworkers = 1", 1, "there is no section [deamon]; did you mean 'daemon'?"),
        ("[nar.imprt]\nname = 'x'", 1, "there is no section [nar.imprt]; did you mean 'import'?"),
        ("[quux]", 1, "there is no section [quux]; known: archive, cat, common, "),
        ("[daemon-worker]", 1, "there is no section [daemon-worker]"),
        # What works whatever the file says gets nothing from it.
        ("[config.show]\nall = true", 1, "there is no section [config]"),
        ("[man]", 1, "there is no section [man]"),
        ("store = 'memory://'", 1, "there is no section [store]"),
        ("daemon = 3", 1, "daemon is a whole number, must be a table"),
        ("[nar]\nimport = 'x'", 2, "nar.import is a string, must be a table"),
        ("[daemon]\nworkers = '3'", 2, "workers in [daemon] is a string, must be a whole number"),
        ("[daemon]\nworkers = true", 2, "is true or false, must be a whole number"),
        ("[daemon]\nworkers = 3.0", 2, "is a number, must be a whole number"),
        ("[daemon]\nworkers = 1979-05-27", 2, "is a date or a time, must be a whole number"),
        ("[daemon]\nworkers = [3]", 2, "is a list, must be a whole number"),
        ("[daemon]\nworkers = 0", 2, "workers in [daemon]: 0 is not in the range 1<=x<=1000"),
        ("[daemon]\nread-only = 'yes'", 2, "read-only in [daemon] is a string, must be true or false"),
        ("[daemon]\nread-only = 1", 2, "is a whole number, must be true or false"),
        ("[daemon]\ngrace = -1", 2, "grace in [daemon]: -1.0 is not in the range"),
        ("[daemon]\ngrace = nan", 2, "grace in [daemon]: 'nan' is no number of seconds"),
        ("[daemon]\nstream-idle-seconds = inf", 2, "'inf' is no number of seconds"),
        ("[daemon]\ngrace = '1'", 2, "is a string, must be a number"),
        ("[daemon]\nsocket-mode = 0o660", 2, "is a whole number, must be a string"),
        ("[daemon]\nsocket-mode = '999'", 2, "socket-mode in [daemon]: '999' are no permission bits"),
        ("[daemon]\nsocket-group = 'no such group'", 2, "there is no group 'no such group'"),
        ("[daemon]\nmax-blob-bytes = 0", 2, "max-blob-bytes in [daemon]: '0' is no whole number of bytes"),
        ("[daemon]\nmax-blob-bytes = '5 apples'", 2, "'5 apples' is no size"),
        ("[daemon]\nlisten = ['nowhere']", 2, "listen in [daemon]: 'nowhere' is no address to listen on"),
        ("[daemon]\nlisten = [['/a']]", 2, "is a list, must be a string, or a list of such"),
        ("[daemon]\nlisten = 8000", 2, "is a whole number, must be a string, or a list of such"),
        ("[daemon]\nstore = '/srv'", 2, "store in [daemon]: address '/srv' has no scheme"),
        ("[common]\nstore = '/srv'", 2, "store in [common]: address '/srv' has no scheme"),
        ("[common]\nlog-level = 'loud'", 2, "log-level in [common]: 'loud' is not one of"),
        ('[daemon]\ntls-cert = "a\\u0000b"', 2, "a text holds no NUL"),
        ('["daemon"]\n"workers" = 0', 2, "workers in [daemon]: 0 is not in the range"),
        ("daemon.workers = 0", 1, "workers in [daemon]: 0 is not in the range"),
        ("daemon = { workers = 0 }", None, "workers in [daemon]: 0 is not in the range"),
        ("[daemon]\nworkers = 0\n[serve]\nname = '''\n[daemon]\nworkers = 0\n'''", None, "not in the range"),
    ],
)
def test_what_it_must_not_say(
    neve: Neve, config: Config, given: Given, text: str, line: int | None, complaint: str
) -> None:
    config.says(text)
    done = neve("daemon")
    assert done.code == 2
    assert given == []
    assert done.err.count("\n") == 1
    place = f"{config.path}, line {line}: " if line else f"{config.path}: "
    assert done.err.startswith(f"neve: {place}")
    assert complaint in done.err
    # Whoever wants to mend it gets help, and a list of all that is wrong.
    assert neve("daemon", "--help").code == 0
    assert neve("--help").code == 0
    shown = neve("config", "show")
    assert shown.code == 2
    assert complaint in shown.err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[daemon", "is no TOML: Expected ']' at the end of a table declaration"),
        (b"\n\n[daemon]\nworkers = \n", "(at line 4, column 11)"),
        (b"[a]\n[a]", "is no TOML: Cannot declare ('a',) twice"),
        (b"a = 1\n# \xff", ", line 2: this is no UTF-8"),
        (b"a = " + b"[" * 100_000, "nested too deep"),
        (b"a = " + b"9" * 100_000, "is no TOML"),
        (b"#" * (MAX_FILE_BYTES + 1), f"has more than {MAX_FILE_BYTES} bytes"),
    ],
)
def test_files_that_are_no_configuration(neve: Neve, config: Config, content: bytes, complaint: str) -> None:
    config.path.write_bytes(content)
    for command in (["path-info"], ["config", "show"], ["nar", "export", "x"]):
        done = neve(*command)
        assert done.code in (1, 2)
        assert done.out == b""
        assert done.err.startswith("neve: ")
        assert str(config.path) in done.err
        assert complaint in done.err
        assert done.err.count("\n") == 1
    for command in (["--help"], ["--version"], ["ls", "--help"], ["nar", "--help"], ["nar", "export", "-h"]):
        assert neve(*command).code == 0


def test_a_file_that_may_not_be_read(neve: Neve, config: Config, spawn: Spawn) -> None:
    config.says("")
    config.path.chmod(0)
    with spawn("path-info", preexec_fn=_without_capabilities) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert (
        err
        == (
            f"neve: cannot read the configuration file {config.path}: Permission denied; to go without one, "
            "set NEVE_CONFIG to nothing\n"
        ).encode()
    )
    config.path.unlink()
    config.path.mkdir()
    assert "Is a directory" in neve("path-info").failure


def test_a_pipe(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEVE_STORE")
    reading, writing = os.pipe()
    os.write(writing, b'[common]\nstore = "memory://"\n')
    os.close(writing)
    with spawn("--config", f"/dev/fd/{reading}", "path-info", pass_fds=[reading]) as process:
        os.close(reading)
        assert process.communicate() == (b"", b"")
    assert process.returncode == 0


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's file is looked for."""
    monkeypatch.delenv("NEVE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    path = tmp_path / "xdg" / "neve" / "neve.toml"
    path.parent.mkdir(parents=True)
    return path


def test_a_file_that_everybody_may_write_is_not_believed(neve: Neve, found: Path) -> None:
    found.write_text("")
    found.chmod(0o646)
    assert neve("path-info", "--store", "memory://").failure == (
        f"the configuration file {found} can be written by everybody; chmod o-w it"
    )
    # Who names it knows what he does.
    assert neve("--config", found, "path-info", "--store", "memory://").code == 0
    found.chmod(0o664)
    assert neve("path-info", "--store", "memory://").code == 0


@pytest.mark.root
def test_a_file_of_somebody_else_is_not_believed(neve: Neve, found: Path) -> None:
    found.write_text("")
    os.chown(found, 4711, 4711)
    assert neve("path-info", "--store", "memory://").failure == (
        f"the configuration file {found} belongs to user 4711; to trust it, name it with --config"
    )
    assert neve("--config", found, "path-info", "--store", "memory://").code == 0


def test_nobody_waits_for_a_pipe_that_was_not_named(spawn: Spawn, found: Path) -> None:
    os.mkfifo(found)
    with spawn("path-info", "--store", "memory://") as process:
        _, err = process.communicate(timeout=90)
    assert process.returncode == 2
    assert f"{found} is a pipe".encode() in err
    # Nor does a shell that completes for one that is.
    asked = {
        "_NEVE_COMPLETE": "bash_complete",
        "COMP_WORDS": f"neve --config {found} im",
        "COMP_CWORD": "3",
        "NEVE_CONFIG": str(found),
    }
    with spawn(env=os.environ | asked) as process:
        out, err = process.communicate(timeout=90)
    assert (out, err) == (b"plain,import\n", b"")


def test_a_file_may_be_masked(neve: Neve, found: Path) -> None:
    found.symlink_to("/dev/null")
    assert neve("path-info", "--store", "memory://").code == 0


def test_sections_of_other_commands_do_not_stop_one(neve: Neve, config: Config) -> None:
    config.says("[common]\nstore = 'memory://'\n[daemon]\nworkers = 0\n[serve]\nquux = 1\n")
    assert neve("path-info").code == 0
    done = neve("config", "show")
    assert done.code == 2
    assert "workers in [daemon]: 0" in done.err
    assert "[serve] has no key 'quux'" in done.err
    assert done.out.decode().startswith('common.store = "memory://"')


def test_show(neve: Neve, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config.says(DAEMON)
    monkeypatch.setenv("BLOB_SERVICE_ADDR", "grpc+http://me:secret@host:1")
    done = neve("config", "show")
    assert done.err == ""  # The file wants warnings only.
    assert str(config.path) in neve("--log-level", "info", "config", "show").err
    lines = done.out.decode().splitlines()
    assert f'common.store = "local:///from/the/file"  # {config.path}, line 3' in lines
    assert f"daemon.workers = 3  # {config.path}, line 10" in lines
    assert f'daemon.listen = ["unix:/a", "[::1]:0"]  # {config.path}, line 8' in lines
    assert 'common.blob-service-addr = "grpc+http://***@host:1"  # BLOB_SERVICE_ADDR' in lines
    assert b"secret" not in done.out
    monkeypatch.setenv("NEVE_STORE", "memory://")
    shown = neve("config", "show", "common").out.decode()
    assert f'common.store = "memory://"  # NEVE_STORE, not {config.path}, line 3' in shown
    assert "daemon" not in shown
    everything = neve("config", "show", "--all", "daemon", "nar.import").out.decode().splitlines()
    assert "# daemon.tls-cert is not set" in everything
    assert "daemon.insecure = false  # default" in everything
    assert all(line.removeprefix("# ").startswith(("daemon.", "nar.import.")) for line in everything)
    assert "there is no section 'quux'" in neve("config", "show", "quux").err


def test_what_is_shown_can_be_read(neve: Neve, config: Config, given: Given, tmp_path: Path) -> None:
    config.says(
        DAEMON.replace('"unix:/a"', r'"unix:/a \"b\"\\c"').replace("local:///from", "local:///fr\u00f6m")
    )
    shown = neve("config", "show").out.decode()
    assert tomllib.loads(shown) == tomllib.loads(config.path.read_text())
    neve("daemon")
    config.says(shown)
    neve("daemon")
    assert given[0] == given[1]


def test_secrets_are_not_shown(neve: Neve, config: Config) -> None:
    secret = neve("--config=", "key", "generate", "k").line
    config.says(
        '[common]\nstore = "cache://?near=memory%3A%2F%2F&far=nix%2Bhttps%3A%2F%2Fu%3Apass-word%40h%2F"\n'
        f'[serve]\nsign-key = "{secret}"\n'
    )
    shown = neve("config", "show").out.decode()
    assert "pass-word" not in shown
    assert secret.partition(":")[2] not in shown


def test_every_option_has_one_key() -> None:
    root = click.Context(cli)
    for words, command in all_commands(cli):
        assert words[0] != COMMON
        parameters = command.get_params(click.Context(command, parent=root))
        settable = [
            each
            for each in parameters
            if isinstance(each, click.Option) and not each.is_eager and not each.hidden
        ]
        assert len(options_of(command, click.Context(command, parent=root))) == len(settable), words


def _groups(group: click.Group) -> list[click.Group]:
    found = [each for each in group.commands.values() if isinstance(each, click.Group)]
    return [group, *(deeper for each in found for deeper in _groups(each))]


def test_every_group_asks_the_file() -> None:
    plain = {group.name for group in _groups(cli) if not isinstance(group, Configured)}
    assert plain == {"config"}


def test_pins_are_in_the_store_that_the_file_names(neve: Neve, config: Config, tmp_path: Path) -> None:
    config.says(f'[common]\nstore = "local://{tmp_path}/named"\n[pin.list]\njson = true\n')
    path = neve("import", __file__).line
    assert neve("pin", "add", "kept", path).code == 0
    assert json.loads(neve("pin", "list").out) == json.loads(
        neve("--config=", "pin", "list", "--json", "--store", f"local://{tmp_path}/named").out
    )


def test_lines() -> None:
    text = "a = 1\n[b]\n'c d' = 1\r\n[ b . e ] # x\nf.g = 1\n[[h]]\ni = 1\n"
    file = ConfigFile("f", text, {})
    assert file.line_of(["a"]) == 1
    assert file.line_of(["b", "c d"]) == 3
    assert file.line_of(["b", "e"]) == 4
    assert file.line_of(["b", "e", "f"]) == 5
    assert file.line_of(["b", "e", "f", "g"]) == 5
    assert file.line_of(["quux"]) is None
    assert file.place(["quux"]) == "f"


def test_nothing_is_parsed_without_a_file() -> None:
    script = (
        "import sys\nfrom neve.cli.__main__ import main\nmain(['--help'])\nmain(['path-info', '--help'])\n"
    )
    script += "print('tomllib' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"


def test_the_folder_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/neve:/var/lib/other")
    assert options.default_store() == "local:///var/lib/neve"
