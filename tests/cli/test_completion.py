"""Completion: what is offered, at what price, and that real shells take it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neve.cli.completion import SHELLS
from tests.cli.conftest import Neve


@pytest.fixture
def asked(neve: Neve, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(neve, monkeypatch)


class Asked:
    """What a shell is told."""

    def __init__(self, neve: Neve, monkeypatch: pytest.MonkeyPatch) -> None:
        self._neve = neve
        self._monkeypatch = monkeypatch

    def __call__(self, line: str) -> list[str]:
        with self._monkeypatch.context() as patch:
            words = line.split()
            patch.setenv("COMP_WORDS", line)
            patch.setenv("COMP_CWORD", str(len(words) if line.endswith(" ") else len(words) - 1))
            patch.setenv("_NEVE_COMPLETE", "bash_complete")
            done = self._neve()
        assert done.err == ""
        return [each.partition(",")[2] for each in done.out.decode().splitlines() if each]


def test_commands_and_options(asked: Asked) -> None:
    assert asked("neve im") == ["import"]
    assert asked("neve nar ") == ["export", "import"]
    assert "daemon" in asked("neve ")
    assert "daemon-worker" not in asked("neve ")
    assert asked("neve --log-level ") == ["debug", "info", "warning", "error"]
    assert asked("neve daemon --tls-c") == ["--tls-cert", "--tls-client-ca"]
    assert asked("neve daemon --max-n") == ["--max-nar-bytes"]
    assert asked("neve completion ") == list(SHELLS)


def test_store_paths(asked: Asked, neve: Neve, tree: Path, tmp_path: Path) -> None:
    paths = sorted([neve("import", tree).line, neve("import", tree / "text").line])
    assert asked("neve ls ") == paths
    assert asked("neve nar export /nix/st") == paths
    assert asked("neve path-info x ") == paths
    for path in paths:
        assert asked(f"neve cat {path[:-2]}") == [path]
        base_name = path.removeprefix("/nix/store/")
        assert asked(f"neve sign --key k {base_name[:4]}") == [base_name]
    assert asked("neve ls /nix/store/nothing") == []
    # Whatever names the store counts.
    other = f"local://{tmp_path}/other"
    path = neve("import", "--store", other, __file__).line
    assert asked(f"neve ls --store {other} ") == [path]
    assert asked(f"neve ls --path-info-service-addr {other} ") == [path]
    config = tmp_path / "neve.toml"
    config.write_text(f'[ls]\nstore = "{other}"\n')
    os.environ.pop("NEVE_STORE")
    assert asked(f"neve --config {config} ls ") == [path]
    assert asked(f"neve --config {config} path-info ") != [path]


@pytest.mark.parametrize(
    "store", ["local:///none", "memory://", "grpc+unix:///none", "nonsense", "local://", "sled:///x", "%"]
)
def test_stores_that_are_not_asked(asked: Asked, store: str) -> None:
    assert asked(f"neve ls --store {store} /nix") == []


def test_a_broken_store_or_configuration_is_not_for_here(
    asked: Asked, neve: Neve, tree: Path, tmp_path: Path
) -> None:
    path = neve("import", tree).line
    config = tmp_path / "neve.toml"
    for text in ("[", "[quux]", "[ls]\nstore = 3\n"):
        config.write_text(text)
        assert asked(f"neve --config {config} im") == ["import"]
        assert asked(f"neve --config {config} ls ") == [path]
        for shell in SHELLS:
            assert neve("--config", config, "completion", shell).code == 0
    (tmp_path / "store" / "store.json").write_text("{")
    assert asked("neve ls ") == []


@pytest.mark.parametrize("line", ["neve ls ", "neve im", "neve daemon --m", "neve serve --m"])
def test_what_it_loads(neve: Neve, tree: Path, line: str) -> None:
    neve("import", tree)
    script = """
import sys
from neve.cli.__main__ import main
main([])
print(*sys.modules, file=sys.stderr)
"""
    words = line.split()
    environment = os.environ | {
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) if line.endswith(" ") else len(words) - 1),
        "_NEVE_COMPLETE": "bash_complete",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout
    loaded = set(done.stderr.split())
    assert "neve" in loaded
    assert not loaded & {"grpc", "uvicorn", "starlette", "rich", "cryptography", "tomllib", "opentelemetry"}


def test_unknown_shells(neve: Neve) -> None:
    done = neve("completion", "csh")
    assert done.code == 2
    assert "'csh' is not one of" in done.err


BASH = """
source "$1"
COMP_WORDS=(neve "${@:2}"); COMP_CWORD=$(($# - 1))
_neve_completion neve
printf '%s\n' "${COMPREPLY[@]}"
"""

# The completion system needs a line editor; what is handed to it is written instead.
ZSH = """
compdef() { }
_describe() { local each; for each in ${(P)3}; do print -r -- ${each%%:*}; done }
compadd() { print -rl -- ${(P)argv[-1]} }
script=$1; shift
words=(neve "$@"); CURRENT=$(($# + 1))
service=neve
(( $+commands[neve] )) || exit 1
source $script
_neve_completion
"""

FISH = 'source $argv[1]; complete --do-complete "$argv[2]"'


@pytest.mark.completion
@pytest.mark.parametrize("shell", SHELLS)
def test_real_shells(neve: Neve, tree: Path, tmp_path: Path, shell: str) -> None:
    path = neve("import", tree).line
    script = tmp_path / f"script.{shell}"
    script.write_bytes(neve("completion", shell).out)
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "neve"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m neve.cli "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def offered(*words: str) -> list[str]:
        if shell == "fish":
            command = ["fish", "--no-config", "-c", FISH, str(script), " ".join(["neve", *words])]
        elif shell == "zsh":
            command = ["zsh", "-f", "-c", ZSH, "zsh", str(script), *words]
        else:
            command = ["bash", "--norc", "-c", BASH, "bash", str(script), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.stderr == ""
        return [line.partition("\t")[0] for line in done.stdout.splitlines() if line]

    assert offered("imp") == ["import"]
    assert offered("nar", "") == ["export", "import"]
    assert offered("nar", "export", path[:-3]) == [path]
    assert offered("daemon", "--tls-cl") == ["--tls-client-ca"]
