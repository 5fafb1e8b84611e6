"""``verify``, and what other commands say about a damaged store."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Neve


@pytest.fixture
def path(neve: Neve, tree: Path) -> str:
    return neve("import", tree).line


def _damage(store: Path) -> None:
    """Flips a bit in the middle of the largest pack."""
    pack = max((store / "packs").iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)


def test_an_intact_store(neve: Neve, path: str) -> None:
    done = neve("verify")
    assert done.code == 0
    assert done.out == b""
    assert re.fullmatch(r"neve: read [0-9]+ bytes in [0-9]+ frames: .*1 pathinfos.*\n", done.err)


def test_a_damaged_store(neve: Neve, path: str, tmp_path: Path) -> None:
    _damage(tmp_path / "store")
    done = neve("verify")
    assert done.code == 1
    lines = done.out.decode().splitlines()
    assert lines
    assert any(path in line and "b3:" in line for line in lines)
    assert f"damaged objects: {len(lines)}" in done.err
    reading = neve("cat", f"{path}/large")
    assert reading.code == 1
    assert reading.err.count("\n") == 1
    assert "b3:" in reading.err or ".pack" in reading.err
    assert neve("nar", "export", path).code == 1
    assert neve("export", path, tmp_path / "out").code == 1
    assert not (tmp_path / "out").exists()


def test_rebuild_index(neve: Neve, path: str, tmp_path: Path) -> None:
    nar = neve("nar", "export", path).out
    (tmp_path / "store" / "index" / "data.mdb").write_bytes(b"\0" * 8192)
    assert "neve verify --rebuild-index" in neve("ls", path).failure
    assert "neve verify --rebuild-index" in neve("verify").failure
    done = neve("verify", "--rebuild-index")
    assert done.code == 0
    assert done.out == b""
    assert done.err.startswith("neve: rebuilt the index: ")
    assert neve("nar", "export", path).out == nar


def test_rebuild_index_of_a_damaged_store(neve: Neve, path: str, tmp_path: Path) -> None:
    _damage(tmp_path / "store")
    done = neve("verify", "--rebuild-index")
    assert done.code == 1
    assert path in done.out.decode()


def test_only_a_whole_local_store_has_an_index(neve: Neve, path: str, tmp_path: Path) -> None:
    assert neve("verify", "--rebuild-index", "--store", "memory://").code == 1
    assert neve("verify", "--rebuild-index", "--blob-service-addr", f"local://{tmp_path}/store").code == 2
    assert (
        "is not a neve store" in neve("verify", "--rebuild-index", "--store", f"local://{tmp_path}").failure
    )


def test_repair(neve: Neve, path: str, tmp_path: Path) -> None:
    backup = f"local://{tmp_path}/backup"
    assert neve("mirror", f"local://{tmp_path}/store", backup).code == 0
    nar = neve("nar", "export", path).out
    well = neve("verify", "--repair-from", backup)
    assert (well.code, well.out) == (0, b"")
    assert "repaired" not in well.err
    _damage(tmp_path / "store")
    done = neve("verify", "--repair-from", backup)
    assert (done.code, done.out) == (0, b"")
    lines = done.err.splitlines()
    assert re.fullmatch(r"neve: repaired objects: [1-9][0-9]*", lines[0])
    assert "damage where nothing is in use: pack" in lines[1]
    assert neve("verify").code == 0
    assert neve("verify", "--rebuild-index", "--repair-from", backup, "--nars").code == 0
    assert neve("nar", "export", path).out == nar


def test_what_is_not_repaired(neve: Neve, path: str, tmp_path: Path) -> None:
    backup = f"local://{tmp_path}/backup"
    (tmp_path / "other").write_text("another")
    assert neve("import", "--store", backup, tmp_path / "other").code == 0
    _damage(tmp_path / "store")
    done = neve("verify", "--repair-from", backup)
    assert done.code == 1
    assert all(path in line for line in done.out.decode().splitlines())
    assert "not repaired: " in done.err
    assert "damaged objects: " in done.err


def test_a_report_in_json(neve: Neve, path: str, tmp_path: Path) -> None:
    backup = f"local://{tmp_path}/backup"
    assert neve("mirror", f"local://{tmp_path}/store", backup).code == 0
    assert json.loads(neve("verify", "--json").line) == {"problems": []}
    _damage(tmp_path / "store")
    damaged = neve("verify", "--json")
    assert damaged.code == 1
    [problem, *_] = json.loads(damaged.out)["problems"]
    assert path in problem
    done = neve("verify", "--json", "--repair-from", backup)
    assert done.code == 0
    report = json.loads(done.out)
    assert report.pop("repaired") > 0
    assert report == {"problems": [], "notRepaired": []}


def test_where_nothing_can_be_repaired(neve: Neve, path: str, tmp_path: Path) -> None:
    here = f"local://{tmp_path}/store"
    assert "from itself" in neve("verify", "--repair-from", here).failure
    assert "only an embedded store" in neve("verify", "--store", "memory://", "--repair-from", here).failure
    assert "is not a neve store" in neve("verify", "--repair-from", f"local://{tmp_path}").failure
    assert "binary cache" in neve("verify", "--repair-from", f"nix+file://{tmp_path}").failure
    assert neve("verify", "--repair-from", "nonsense").code == 2
    options = ("--repair-from", here, "--blob-service-addr", here)
    assert neve("verify", *options).code == 2


@pytest.mark.parametrize("part", [0.9, 0.5, 0.01])
def test_a_pack_that_was_cut_off(neve: Neve, path: str, tmp_path: Path, part: float) -> None:
    """As docs/backup.md says: the index anew, contents from the backup, then the paths that were lost."""
    here, backup = f"local://{tmp_path}/store", f"local://{tmp_path}/backup"
    for number in range(5):
        (tmp_path / f"file-{number}").write_bytes(bytes([number]) * 300_000)
        assert neve("import", tmp_path / f"file-{number}").code == 0
    assert neve("mirror", here, backup).code == 0
    pack = max((tmp_path / "store" / "packs").iterdir(), key=lambda file: file.stat().st_size)
    os.truncate(pack, int(pack.stat().st_size * part))
    assert "is truncated" in neve("verify").out.decode()
    assert neve("verify", "--rebuild-index", "--repair-from", backup).code == 0
    assert neve("mirror", backup, here).code == 0
    assert neve("verify", "--nars").code == 0
    assert neve("path-info").out == neve("path-info", "--store", backup).out


def test_a_pack_that_is_gone(neve: Neve, path: str, tmp_path: Path) -> None:
    here, backup = f"local://{tmp_path}/store", f"local://{tmp_path}/backup"
    assert neve("mirror", here, backup).code == 0
    for pack in (tmp_path / "store" / "packs").iterdir():
        pack.unlink()
    assert "is missing" in neve("verify").out.decode()
    assert neve("verify", "--rebuild-index", "--repair-from", backup).code == 0
    assert neve("mirror", backup, here).code == 0
    assert neve("verify", "--nars").code == 0
    assert neve("path-info").out == neve("path-info", "--store", backup).out
