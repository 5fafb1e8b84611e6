"""``neve copy``: what is printed and told, and what a copy leaves behind that was ended by force."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from neve.cli import copying
from neve.nix.store_path import StorePath
from tests.cli.conftest import Neve, Spawn
from tests.store.nix_stores import NixStore, store_path


@pytest.fixture(autouse=True)
def _no_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIX_ATTRS_JSON_FILE", raising=False)


@pytest.fixture
def nix_store(tmp_path: Path) -> NixStore:
    return NixStore(tmp_path / "nix-root")


def write(folder: Path, description: Any) -> Path:
    file = folder / "closure.json"
    file.write_text(json.dumps(description))
    return file


def copy(neve: Neve, nix_store: NixStore, *arguments: str | Path) -> Any:
    file = write(nix_store.root, nix_store.closure)
    return neve("copy", "--store-dir-root", nix_store.root, *arguments, file)


def check_printed(out: bytes, nix_store: NixStore, names: Sequence[str]) -> None:
    """Each path once, after what it refers to."""
    lines = out.decode().splitlines()
    assert sorted(lines) == sorted(store_path(name).absolute for name in names)
    for name in names:
        path = store_path(name).absolute
        for reference in nix_store.entries[name]["references"]:
            assert lines.index(reference) <= lines.index(path)


def test_what_is_copied_is_printed(neve: Neve, nix_store: NixStore) -> None:
    names = nix_store.add_many(8)
    result = copy(neve, nix_store)
    assert result.code == 0
    assert result.err == "neve: copied 8 store paths, 0 were in the store\n"
    check_printed(result.out, nix_store, names)
    assert neve("verify", "--nars").code == 0
    for name in names:
        listed = subprocess.check_output(["find", nix_store.place(name), "-mindepth", "1"]).splitlines()
        assert len(neve("ls", "-R", store_path(name).absolute).out.splitlines()) == len(listed)
    again = copy(neve, nix_store)
    assert again.err == "neve: copied 0 store paths, 8 were in the store\n"
    check_printed(again.out, nix_store, names)


def test_everything_described_is_stored(neve: Neve, nix_store: NixStore) -> None:
    signature = f"cache-1:{'A' * 86}=="
    deriver = store_path("a-1.drv").absolute
    nix_store.add("b")
    nix_store.add("a", ["a", "b"], deriver=deriver, signatures=[signature])
    assert copy(neve, nix_store).code == 0
    info = json.loads(neve("path-info", "--json", store_path("a").absolute).line)
    entry = nix_store.entries["a"]
    assert info["narHash"] == entry["narHash"]
    assert info["narSize"] == entry["narSize"]
    assert sorted(info["references"]) == sorted(entry["references"])
    assert (info["deriver"], info["signatures"]) == (deriver, [signature])


@pytest.mark.parametrize("shape", ["list", "closure", "keyed"])
@pytest.mark.parametrize("way", ["argument", "environment", "stdin"])
def test_every_shape_every_way(
    neve: Neve, nix_store: NixStore, shape: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nix_store.add("b")
    nix_store.add("a", ["b"])
    description: Any = nix_store.closure
    if shape == "closure":
        description = {"name": "x", "closure": description, "outputs": {"out": "/nowhere"}}
    elif shape == "keyed":
        description = {entry.pop("path"): entry for entry in [dict(entry) for entry in description]}
    file = write(nix_store.root, description)
    command: list[str | Path] = ["copy", "--store-dir-root", nix_store.root]
    if way == "environment":
        monkeypatch.setenv("NIX_ATTRS_JSON_FILE", str(file))
        result = neve(*command)
    elif way == "stdin":
        result = neve(*command, "-", stdin=file.read_bytes())
    else:
        result = neve(*command, file)
    assert result.code == 0, result.err
    check_printed(result.out, nix_store, ["a", "b"])


def test_one_that_fails_is_told_with_what_follows(neve: Neve, nix_store: NixStore) -> None:
    for name, references in {"good": [], "bad": [], "user": ["bad"], "far": ["user"]}.items():
        nix_store.add(name, references)
    nix_store.entries["bad"]["narHash"] = f"sha256:{'0' * 52}"
    result = copy(neve, nix_store)
    assert result.code == 1
    assert result.out.decode() == f"{store_path('good')}\n"
    assert result.err.startswith(f"neve: {store_path('bad')}: the NAR has ")
    assert result.err.endswith("; left out, because they depend on that: 2\n")
    assert result.err.count("\n") == 1


def test_several_that_fail_are_told_each(neve: Neve, nix_store: NixStore) -> None:
    for name, references in {"bad": [], "worse": [], "user": ["bad"], "good": []}.items():
        nix_store.add(name, references)
    nix_store.entries["bad"]["narSize"] += 8
    nix_store.place("worse").rename(nix_store.root / "elsewhere")
    result = copy(neve, nix_store)
    assert result.code == 1
    assert result.out.decode() == f"{store_path('good')}\n"
    lines = result.err.splitlines()
    assert len(lines) == 3
    assert any(line.startswith(f"neve: {store_path('bad')}: the NAR has ") for line in lines[:2])
    assert f"neve: {nix_store.place('worse')} does not exist" in lines[:2]
    assert (
        lines[2] == "neve: 2 of 4 store paths could not be copied; left out, because they depend on that: 1"
    )
    assert neve("path-info", "--store", os.environ["NEVE_STORE"]).out.count(b"\n") == 1


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (b"", "description of a closure is no JSON"),
        (b"nonsense", "description of a closure is no JSON"),
        (b"[1]", "entry 0 is a number, expected an object"),
        (b'{"closure": 1}', "'closure' is a number, expected a list"),
        (b'{"name": "x", "outputs": {}}', "entry 'name' is a string"),
        (b'[{"path": "/nix/store/x"}]', "entry 0: path: store path base name 'x' has no '-'"),
    ],
)
def test_what_is_no_description(neve: Neve, description: bytes, message: str) -> None:
    assert message in neve("copy", "-", stdin=description).failure


def test_no_description(neve: Neve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = neve("copy")
    assert result.code == 2
    assert "'NIX_ATTRS_JSON_FILE'" in result.err
    assert str(tmp_path / "none") in neve("copy", tmp_path / "none").failure
    monkeypatch.setattr(copying, "MAX_DESCRIPTION_BYTES", 1000)
    assert "more than 1000 bytes" in neve("copy", "/dev/zero").failure


def test_references_to_nowhere_and_circles(neve: Neve, nix_store: NixStore) -> None:
    nix_store.add("a", ["gone"])
    failure = copy(neve, nix_store).failure
    assert (
        failure
        == f"{store_path('a')} refers to {store_path('gone')}, which is neither listed nor in the store"
    )
    nix_store.add("gone", ["a"])
    assert "refer to each other in a circle" in copy(neve, nix_store).failure
    assert neve("path-info").out == b""


def test_nothing_to_copy(neve: Neve) -> None:
    result = neve("copy", "-", stdin=b"[]")
    assert (result.code, result.out) == (0, b"")


def test_a_store_that_is_full_of_something_else(neve: Neve, nix_store: NixStore, tree: Path) -> None:
    """Another path under the same name is not replaced."""
    nix_store.add("a")
    nar = neve("nar", "export", neve("import", tree).line).out
    assert neve("nar", "import", "--store-path", store_path("a").absolute, stdin=nar).code == 0
    assert "is already in the store, with another NAR hash or size" in copy(neve, nix_store).failure


def start(spawn: Spawn, nix_store: NixStore, **options: Any) -> subprocess.Popen[bytes]:
    file = write(nix_store.root, nix_store.closure)
    return spawn("copy", "--store-dir-root", nix_store.root, file, **options)


def test_killed_in_the_middle_and_started_again(neve: Neve, spawn: Spawn, nix_store: NixStore) -> None:
    names = nix_store.add_many(60)
    printed: set[StorePath] = set()
    for round_number in (1, 2, 3):
        process = start(spawn, nix_store)
        assert process.stdout is not None
        for _ in range(12 * round_number):
            line = process.stdout.readline()
            assert line.endswith(b"\n")
            printed.add(StorePath.parse(line.strip()))
        process.kill()
        rest = process.communicate(timeout=60)[0]
        printed |= {StorePath.parse(line.strip()) for line in rest.splitlines(True) if line.endswith(b"\n")}
        check_store(neve, nix_store, printed)
    result = copy(neve, nix_store)
    assert result.code == 0
    present = int(result.err.split(",")[1].split()[0])
    assert len(printed) <= present <= 60
    assert result.err == f"neve: copied {60 - present} store paths, {present} were in the store\n"
    check_printed(result.out, nix_store, names)
    check_store(neve, nix_store, {store_path(name) for name in names})


def check_store(neve: Neve, nix_store: NixStore, printed: set[StorePath]) -> None:
    """Nothing is damaged, what was printed is there, and so is whatever a path refers to."""
    verified = neve("verify", "--nars")
    assert (verified.code, verified.out) == (0, b"")
    infos = [json.loads(line) for line in neve("path-info", "--json").out.splitlines()]
    stored = {info["path"] for info in infos}
    assert {path.absolute for path in printed} <= stored
    for info in infos:
        assert set(info["references"]) <= stored
        assert info["narHash"] == nix_store.entries[StorePath.parse(info["path"]).name]["narHash"]


def test_interrupted_and_started_again(neve: Neve, spawn: Spawn, nix_store: NixStore) -> None:
    names = [*nix_store.add_many(30), "alone"]
    nix_store.add("alone")
    # A file without end, nearly: only the interrupt can end this copy.
    with (nix_store.place(names[0]) / "huge").open("wb") as file:
        file.truncate(1 << 40)
    process = start(spawn, nix_store)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b"neve: interrupted\n"
    (nix_store.place(names[0]) / "huge").unlink()
    result = copy(neve, nix_store)
    assert result.code == 0
    check_printed(result.out, nix_store, names)
    assert neve("verify", "--nars").code == 0


def test_nobody_reads_what_is_printed(neve: Neve, spawn: Spawn, nix_store: NixStore) -> None:
    nix_store.add_many(20)
    process = start(spawn, nix_store)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, b"")
    assert copy(neve, nix_store).code == 0
