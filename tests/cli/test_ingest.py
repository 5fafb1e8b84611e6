"""``import``, ``nar import``, ``archive import``."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import tarfile
from pathlib import Path

import pytest

from neve.nix.hashes import CAHash, CAMethod, HashAlgorithm, NixHash
from neve.nix.store_path import content_addressed_path
from tests.cli.conftest import Neve

OTHER = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1"


def test_import_prints_paths_in_the_given_order(neve: Neve, tree: Path) -> None:
    done = neve("import", tree / "text", tree, tree / "bin" / "alias")
    assert done.code == 0
    assert done.err == ""
    lines = done.out.decode().splitlines()
    assert [line[len("/nix/store/") + 33 :] for line in lines] == ["text", "tree-1.0", "alias"]
    assert sorted(lines) == [
        line.split("\t")[0] for line in sorted(neve("path-info").out.decode().splitlines())
    ]


def test_what_is_registered(neve: Neve, tree: Path) -> None:
    path = neve("import", tree).line
    info = json.loads(neve("path-info", "--json", path).line)
    nar = neve("nar", "export", path).out
    sha256 = NixHash(HashAlgorithm.SHA256, hashlib.sha256(nar).digest())
    ca = CAHash.of(CAMethod.NAR, sha256)
    assert content_addressed_path("tree-1.0", ca).absolute == path
    assert info["path"] == path
    assert info["narHash"] == sha256.render()
    assert info["narSize"] == len(nar)
    assert info["ca"] == ca.render()
    assert info["references"] == info["signatures"] == []
    assert info["deriver"] is None


def test_import_stops_at_the_first_failure(neve: Neve, tree: Path) -> None:
    done = neve("import", tree / "text", tree / "missing", tree / "bin")
    assert done.code == 1
    (printed,) = done.out.decode().splitlines()
    assert "missing does not exist" in done.err
    assert [line.split("\t")[0] for line in neve("path-info").out.decode().splitlines()] == [printed]


def test_name_and_exclude(neve: Neve, tree: Path) -> None:
    path = neve("import", "--name", "source", "--exclude", "*.o", "--exclude", "large", tree).line
    assert path.endswith("-source")
    assert b"large" not in neve("ls", path).out.splitlines()
    (tree / "bin" / "x.o").touch()
    assert neve("import", "--name", "source", "--exclude", "*.o", "--exclude", "large", tree).line == path
    assert neve("import", "--name", "source", tree).line != path


def test_the_current_folder_has_a_name(neve: Neve, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert neve("import", ".").line == neve("import", tree).line


def test_flat_and_text(neve: Neve, tree: Path) -> None:
    sha256 = NixHash(HashAlgorithm.SHA256, hashlib.sha256(b"Hello\n").digest())
    flat = content_addressed_path("text", CAHash.of(CAMethod.FLAT, sha256))
    assert neve("import", "--flat", tree / "text").line == flat.absolute
    text = CAHash.of(CAMethod.TEXT, sha256)
    assert neve("import", "--text", tree / "text").line == content_addressed_path("text", text).absolute
    path = neve("import", "--text", "--reference", OTHER, tree / "text").line
    assert path != content_addressed_path("text", text).absolute
    info = json.loads(neve("path-info", "--json", path).line)
    assert info["references"] == [OTHER]
    assert info["ca"] == text.render()


@pytest.mark.parametrize("what", ["bin", "bin/alias"])
@pytest.mark.parametrize("method", ["--flat", "--text"])
def test_only_a_file_is_flat_or_text(neve: Neve, tree: Path, method: str, what: str) -> None:
    assert "only a single file" in neve("import", method, tree / what).failure


def test_stat_cache(neve: Neve, tree: Path, tmp_path: Path) -> None:
    for folder, directories, files in os.walk(os.fsencode(tree)):
        for name in directories + files:
            os.utime(os.path.join(folder, name), (1, 1), follow_symlinks=False)
    path = neve("import", tree).line
    assert neve("import", "--stat-cache", tree).line == path
    assert list((tmp_path / "cache" / "neve" / "stat").iterdir())
    assert neve("import", "--stat-cache", tree).line == path
    (tree / "text").write_text("other")
    assert neve("import", "--stat-cache", tree).line != path


def test_directory_size_rule(neve: Neve, tree: Path) -> None:
    def size(*options: str) -> int:
        path = neve("import", *options, tree).line
        found: int = json.loads(neve("path-info", "--json", path).line)["node"]["size"]
        return found

    nodes = sum(len(directories) + len(files) for _, directories, files in os.walk(tree))
    assert size("--name", "a") == size("--name", "b", "--directory-size-rule", "exact") == nodes
    assert size("--name", "c", "--directory-size-rule", "snix") > nodes


def test_what_cannot_be_imported(neve: Neve, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tree / "bin" / "pipe")
    assert neve("import", tree / "bin" / "pipe").failure.startswith(f"{tree}/bin/pipe is a FIFO; only ")
    assert f"{tree}/bin/pipe is a FIFO" in neve("import", tree).failure
    (tree / "bin" / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tree)  # The address of a socket is short.
        listener.bind("socket")
        assert "socket is a socket; only files, directories and symlinks" in neve("import", tree).failure
    assert "/dev/null is a character device" in neve("import", "/dev/null").failure


@pytest.mark.parametrize("name", ["a b", "", ".", "x" * 212, "ä", ".-x"])
def test_bad_names(neve: Neve, tree: Path, name: str) -> None:
    assert "name" in neve("import", "--name", name, tree / "text").failure


def test_names_that_need_another(neve: Neve, tree: Path) -> None:
    odd = os.path.join(os.fsencode(tree), b"na\xffme")
    failure = neve("import", odd).failure
    assert failure.isascii()
    assert "na\\xffme" in failure
    assert failure.endswith("give a name with --name")
    assert neve("import", "--name", "name", odd).line.endswith("-name")
    (tree / "a b").touch()
    assert "give a name with --name" in neve("import", tree / "a b").failure
    assert "give one with --name" in neve("import", tree / "..").failure


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["import"], "missing argument 'PATH...'"),
        (["import", "--name", "x", "a", "b"], "--name goes with one PATH only"),
        (["import", "--flat", "--text", "a"], "exclude each other"),
        (["import", "--reference", OTHER, "a"], "--reference goes with --text only"),
        (["import", "--text", "--reference", "foo", "a"], "'foo'"),
        (["import", "--directory-size-rule", "odd", "a"], "'odd'"),
        (["nar", "import"], "give either --store-path or --name"),
        (["nar", "import", "--name", "x", "--store-path", OTHER], "give either --store-path or --name"),
        (["nar", "import", "--name", "x", "--deriver", OTHER], "does not end in .drv"),
        (["archive", "import", "-"], "needs a --name"),
        (["archive", "import"], "missing argument"),
    ],
)
def test_wrong_usage(neve: Neve, arguments: list[str], complaint: str) -> None:
    done = neve(*arguments)
    assert done.code == 2
    assert done.out == b""
    assert done.err.count("\n") == 1
    assert complaint in done.err
    assert done.err.endswith(" --help\n")


def test_nar_import(neve: Neve, tree: Path, tmp_path: Path) -> None:
    path = neve("import", tree).line
    nar = neve("nar", "export", path).out
    (tmp_path / "x.nar").write_bytes(nar)
    assert neve("nar", "import", "--name", "tree-1.0", stdin=nar).line == path
    assert neve("nar", "import", "--name", "tree-1.0", "-", stdin=nar).line == path
    assert neve("nar", "import", "--name", "tree-1.0", tmp_path / "x.nar").line == path
    assert neve("nar", "import", "--name", "tree-1.0", "--reference", OTHER, stdin=nar).line != path


def test_nar_import_of_an_input_addressed_path(neve: Neve, tree: Path) -> None:
    nar = neve("nar", "export", neve("import", tree).line).out
    options = ["--store-path", OTHER, "--reference", OTHER, "--deriver", f"{OTHER}.drv"]
    assert neve("nar", "import", *options, stdin=nar).line == OTHER
    info = json.loads(neve("path-info", "--json", OTHER).line)
    assert info["references"] == [OTHER]
    assert info["deriver"] == f"{OTHER}.drv"
    assert info["ca"] is None
    assert neve("nar", "export", OTHER).out == nar
    base_name = OTHER.removeprefix("/nix/store/")
    assert neve("nar", "import", *options[2:], "--store-path", base_name, stdin=nar).line == OTHER
    other = neve("nar", "export", neve("import", tree / "text").line).out
    assert "already in the store" in neve("nar", "import", "--store-path", OTHER, stdin=other).failure


def test_nars_that_are_none(neve: Neve, tree: Path) -> None:
    nar = neve("nar", "export", neve("import", tree).line).out
    for data in (b"", b"x" * 100, nar[:-8], nar + b"\0" * 8):
        assert "invalid NAR" in neve("nar", "import", "--name", "x", stdin=data).failure
    assert "no-such-file: No such file" in neve("nar", "import", "--name", "x", "no-such-file").failure
    assert "Is a directory" in neve("nar", "import", "--name", "x", tree).failure
    assert not list(tree.glob("*-x"))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.bz2", "w:bz2"), (".txz", "w:xz")],
)
def test_archive_import(neve: Neve, tree: Path, tmp_path: Path, suffix: str, mode: str) -> None:
    path = neve("import", tree).line
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:  # type: ignore[call-overload]
        archive.add(tree, ".")
    (tmp_path / f"tree-1.0{suffix}").write_bytes(data.getvalue())
    assert neve("archive", "import", tmp_path / f"tree-1.0{suffix}").line == path
    assert neve("archive", "import", "--name", "tree-1.0", "-", stdin=data.getvalue()).line == path


def test_archives_that_are_none(neve: Neve, tree: Path, tmp_path: Path) -> None:
    assert "tar archive" in neve("archive", "import", tree / "text").failure
    assert "No such file" in neve("archive", "import", tmp_path / "none.tar").failure
    (tmp_path / ".tar").touch()
    assert "empty" in neve("archive", "import", tmp_path / ".tar").failure


def test_input_that_cannot_be_read(neve: Neve) -> None:
    # Nothing is mapped at its beginning.
    failure = neve("nar", "import", "--name", "x", "/proc/self/mem").failure
    assert failure == "cannot read the NAR: Input/output error"
    assert "cannot read the archive" in neve("archive", "import", "--name", "x", "/proc/self/mem").failure


def test_input_that_fails_makes_no_store(neve: Neve, tmp_path: Path) -> None:
    assert neve("nar", "import", "--name", "x", tmp_path / "none.nar").code == 1
    assert neve("archive", "import", tmp_path / "none.tar").code == 1
    assert not (tmp_path / "store").exists()
