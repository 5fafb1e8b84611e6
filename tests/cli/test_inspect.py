"""``nar export``, ``ls``, ``cat``, ``export``, ``path-info``, ``stats``."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from neve.castore.digest import b3_digest
from neve.castore.node import FileNode
from neve.library import open_store
from neve.nix.store_path import StorePath
from neve.store.path_info import PathInfo
from tests.cli.conftest import Neve, same_trees

MISSING = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1"


@pytest.fixture
def path(neve: Neve, tree: Path) -> str:
    """The store path of the tree."""
    return neve("import", tree).line


def test_ls(neve: Neve, path: str) -> None:
    names = [b"bin", b"empty", b"large", b"na\xffme", b"nothing", b"odd-link", b"text"]
    assert neve("ls", path).out.splitlines() == names
    assert neve("ls", f"{path}/").out.splitlines() == names
    assert neve("ls", path.removeprefix("/nix/store/")).out.splitlines() == names
    assert neve("ls", f"{path}/bin").out == b"alias\nrun\n"
    assert neve("ls", f"{path}/empty").out == b""
    assert neve("ls", f"{path}/bin/alias").out == b"alias\n"
    assert neve("ls", path.encode() + b"/na\xffme").out == b"na\xffme\n"
    assert neve("ls", "-0", f"{path}/bin").out == b"alias\0run\0"


def test_ls_long(neve: Neve, path: str) -> None:
    fields = [line.split(maxsplit=2) for line in neve("ls", "-l", path).out.splitlines()]
    assert fields == [
        [b"dr-xr-xr-x", b"-", b"bin"],
        [b"dr-xr-xr-x", b"-", b"empty"],
        [b"-r--r--r--", b"2097152", b"large"],
        [b"-r--r--r--", b"4", b"na\xffme"],
        [b"-r--r--r--", b"0", b"nothing"],
        [b"lrwxrwxrwx", b"3", b"odd-link -> to\xfe"],
        [b"-r--r--r--", b"6", b"text"],
    ]
    assert neve("ls", "-l", f"{path}/bin/run").out.split() == [b"-r-xr-xr-x", b"17", b"run"]


def test_ls_recursive(neve: Neve, path: str, tree: Path) -> None:
    expected = [
        os.path.relpath(os.path.join(folder, name), os.fsencode(tree))
        for folder, directories, files in os.walk(os.fsencode(tree))
        for name in directories + files
    ]
    listed = neve("ls", "-R", path).out.splitlines()
    assert sorted(listed) == sorted(expected)
    assert listed[:4] == [b"bin", b"bin/alias", b"bin/run", b"empty"]


def test_ls_of_what_is_not_there(neve: Neve, path: str) -> None:
    assert neve("ls", MISSING).failure == f"{MISSING} is not in the store"
    assert neve("ls", f"{path}/none").failure == f"{path}/none does not exist in the store"
    assert neve("ls", f"{path}/text/none").failure == f"{path}/text/none does not exist in the store"
    assert "/etc" in neve("ls", "/etc").failure
    assert "'..' is reserved" in neve("ls", f"{path}/../x").failure
    assert neve("ls", path.encode() + b"/\xff\n").failure == f"{path}/\\xff\\n does not exist in the store"


def test_cat(neve: Neve, path: str, tree: Path) -> None:
    assert neve("cat", f"{path}/text").out == b"Hello\n"
    assert neve("cat", f"{path}/large").out == (tree / "large").read_bytes()
    assert neve("cat", f"{path}/nothing").out == b""
    assert neve("cat", path.encode() + b"/na\xffme", f"{path}/text").out == b"odd\nHello\n"


def test_cat_of_what_is_no_file(neve: Neve, path: str) -> None:
    assert neve("cat", path).failure == f"{path} is a directory, not a file"
    assert neve("cat", f"{path}/bin/alias").failure.endswith("not followed; it points to run")
    assert neve("cat", f"{path}/odd-link").failure.endswith("it points to to\\xfe")
    assert "does not exist" in neve("cat", f"{path}/none").failure


def test_export(neve: Neve, path: str, tree: Path, tmp_path: Path) -> None:
    done = neve("export", path, tmp_path / "out")
    assert done == (0, b"", "")
    assert same_trees(tree, tmp_path / "out")
    assert (tmp_path / "out" / "bin" / "run").stat().st_mode & 0o777 == 0o555
    assert (tmp_path / "out" / "text").stat().st_mtime == 1
    assert "it exists" in neve("export", path, tmp_path / "out").failure
    assert "does not exist" in neve("export", path, tmp_path / "none" / "out").failure


def test_export_of_what_is_below(
    neve: Neve, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for sub in ("bin/", "text", "odd-link"):
        assert neve("export", f"{path}/{sub}").code == 0
    assert neve("export", path).code == 0
    assert neve("export", path.encode() + b"/na\xffme").code == 0
    names = [b"bin", b"na\xffme", b"odd-link", os.path.basename(path).encode(), b"text"]
    assert sorted(os.listdir(b".")) == sorted(names)
    assert os.readlink(b"odd-link") == b"to\xfe"


def test_path_info(neve: Neve, path: str, tree: Path) -> None:
    other = neve("import", tree / "text").line
    nar = neve("nar", "export", path).out
    (line,) = neve("path-info", path).out.decode().splitlines()
    info = json.loads(neve("path-info", "--json", path).line)
    assert line == f"{path}\t{len(nar)}\t{info['narHash']}"
    all_lines = neve("path-info").out.decode().splitlines()
    assert sorted(all_line.split("\t")[0] for all_line in all_lines) == sorted([path, other])
    both = neve("path-info", other, path).out.decode().splitlines()
    assert [both_line.split("\t")[0] for both_line in both] == [other, path]
    documents = [json.loads(json_line) for json_line in neve("path-info", "--json").out.splitlines()]
    assert sorted(document["path"] for document in documents) == sorted([path, other])


def test_path_info_of_what_is_not_there(neve: Neve, path: str) -> None:
    assert neve("path-info", path, MISSING).failure == f"{MISSING} is not in the store"
    for wrong in (f"{path}/bin", "x", "/etc"):
        assert neve("path-info", wrong).code == 2


def test_json_of_each_kind(neve: Neve, path: str, tree: Path) -> None:
    def node(what: str) -> dict[str, object]:
        document = json.loads(neve("path-info", "--json", what).line)
        assert list(document) == [
            *("path", "narHash", "narSize", "references", "deriver", "signatures", "ca", "node"),
        ]
        found: dict[str, object] = document["node"]
        return found

    def digest(data: bytes) -> str:
        return "b3:" + base64.b64encode(b3_digest(data)).decode()

    directory = node(path)
    assert directory["type"] == "directory"
    assert str(directory["digest"]).startswith("b3:")
    assert directory["size"] == 9
    assert node(neve("import", tree / "text").line) == {
        "type": "regular",
        "digest": digest(b"Hello\n"),
        "size": 6,
        "executable": False,
    }
    assert node(neve("import", tree / "bin" / "run").line)["executable"] is True
    assert node(neve("import", tree / "bin" / "alias").line) == {"type": "symlink", "target": "run"}
    odd = node(neve("import", tree / "odd-link").line)["target"]
    assert os.fsencode(str(odd)) == b"to\xfe"


def test_path_info_without_narinfo(neve: Neve, tmp_path: Path) -> None:
    """Other programs may have put it there so."""
    store_path = StorePath.parse(MISSING)
    with open_store(f"local://{tmp_path}/store") as store:
        node = FileNode(store.blobs.put_many([b"x"])[0], 1)
        store.path_infos.put(PathInfo(store_path, node, (b"\0" * 20,)))
    assert neve("path-info").out.decode() == f"{MISSING}\t-\t-\n"
    info = json.loads(neve("path-info", "--json").line)
    assert info["narHash"] is info["narSize"] is info["ca"] is info["deriver"] is None
    assert info["references"] == ["0" * 32]
    assert info["signatures"] == []


def test_stats(neve: Neve, path: str) -> None:
    numbers = json.loads(neve("stats", "--json").line)
    assert numbers["storePaths"] == 1
    assert numbers["narBytes"] == len(neve("nar", "export", path).out)
    assert numbers["blobs"] == 4
    assert numbers["chunks"] > 0
    assert numbers["directories"] == 3
    assert 65536 < numbers["contentBytes"] < 2 * 1024 * 1024 + 100
    assert numbers["diskBytes"] >= numbers["storedBytes"] > 0
    assert numbers["dedupRatio"] >= 1.0
    lines = [line.split(":", 1) for line in neve("stats").out.decode().splitlines()]
    values = {key: value.strip() for key, value in lines}
    assert len(values) == len(numbers)
    assert values["store paths"] == "1"
    assert values["their NARs"].startswith(f"{numbers['narBytes']} bytes (2.0 MiB)")
    # Aligned: all values begin in one column.
    assert len({len(line) - len(line.split(":", 1)[1].lstrip()) for line in map(":".join, lines)}) == 1


def test_reading_makes_no_store(neve: Neve, tmp_path: Path) -> None:
    for command in (["ls", MISSING], ["path-info"], ["stats"], ["verify"], ["nar", "export", MISSING]):
        failure = neve(*command).failure
        assert f"{tmp_path}/store is not a neve store" in failure
        assert "--store" in failure
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("service", ["blob", "directory", "path-info"])
def test_a_service_of_its_own(
    neve: Neve, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    """What one service keeps lies in another store, and is found with the option or the variable."""
    elsewhere = f"local://{tmp_path}/elsewhere"
    path = neve("import", f"--{service}-service-addr", elsewhere, tree).line
    assert neve("nar", "export", path).code == 1
    nar = neve("nar", "export", f"--{service}-service-addr", elsewhere, path).out
    assert len(nar) > 2 * 1024 * 1024
    monkeypatch.setenv(f"{service.replace('-', '_').upper()}_SERVICE_ADDR", elsewhere)
    assert neve("nar", "export", path).out == nar
    assert neve("verify").code == 0
