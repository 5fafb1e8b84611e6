"""``gc`` and ``pin``."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.testing.servers import RunningDaemon, running_daemon
from tests.cli.conftest import Neve

GONE = "/nix/store/" + "2" * 32 + "-gone"


@pytest.fixture
def paths(neve: Neve, tmp_path: Path) -> list[str]:
    found = []
    for number in range(3):
        file = tmp_path / f"file-{number}"
        file.write_bytes(b"%d" % number * 20_000)
        found.append(neve("import", file).line)
    return found


def there(neve: Neve) -> list[str]:
    return sorted(line.split()[0] for line in neve("path-info").out.decode().splitlines())


def report(neve: Neve, *options: str | Path, stdin: bytes = b"") -> dict[str, int]:
    done = neve("gc", "--json", *options, stdin=stdin)
    assert done.code == 0, done.err
    found: dict[str, int] = json.loads(done.out)
    return found


def test_for_people(neve: Neve, paths: list[str]) -> None:
    told = neve("gc", "--dry-run", "--keep", paths[0])
    assert told.code == 0
    assert b"paths would be dropped:" in told.out
    assert there(neve) == sorted(paths)
    done = neve("gc", "--keep", paths[0])
    assert done.code == 0, done.err
    rows = dict(line.split(":", 1) for line in done.out.decode().splitlines())
    assert rows["paths kept"].strip() == "1"
    assert rows["paths dropped"].strip() == "2"
    assert "given back" in rows
    assert there(neve) == paths[:1]


def test_paths_to_keep(neve: Neve, paths: list[str], tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text(f"# what stays\n\n  {paths[0]}\n{Path(paths[1]).name}\n")
    assert report(neve, "--keep", *paths, "--dry-run")["pathsDropped"] == 0
    assert report(neve, "--keep", paths[0], "--keep", paths[1], "--dry-run")["pathsDropped"] == 1
    assert report(neve, "--keep-from", "-", "--dry-run", stdin=paths[2].encode())["pathsDropped"] == 2
    assert report(neve, "--keep-from", listed)["pathsDropped"] == 1
    assert there(neve) == sorted(paths[:2])
    assert report(neve)["pathsDropped"] == 0


def test_by_use(neve: Neve, paths: list[str]) -> None:
    assert report(neve, "--keep-newer", "1h", "--dry-run")["pathsDropped"] == 0
    assert report(neve, "--max-size", "1GiB", "--dry-run")["pathsDropped"] == 0
    assert report(neve, "--max-size", "1", "--dry-run")["pathsDropped"] == 3


def test_pins(neve: Neve, paths: list[str]) -> None:
    assert neve("pin", "add", "one", paths[0]).code == 0
    assert neve("pin", "add", "one", paths[1]).code == 0
    assert neve("pin", "list").out.decode() == f"one\t{paths[0]}\none\t{paths[1]}\n"
    assert json.loads(neve("pin", "list", "--json").line) == {"name": "one", "paths": paths[:2]}
    assert report(neve, "--only-pinned")["pathsDropped"] == 1
    assert there(neve) == sorted(paths[:2])
    assert neve("pin", "remove", "one").code == 0
    assert neve("pin", "list").out == b""
    assert "there is no pin 'one'" in neve("pin", "remove", "one").failure
    assert report(neve, "--only-pinned")["pathsDropped"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["/nix/store/nothing"], "nothing"),
        (["0" * 32 + "-x"], "say --keep before"),
        (["--keep", "x"], "x"),
        (["--keep-newer", "soon"], "'soon' is no time"),
        (["--keep-newer", "5"], "'5' is no time"),
        (["--keep-newer", "1y"], "'1y' is no time"),
        (["--max-size", "much"], "is no size"),
        (["--grace", "30d"], "it must be 0 to"),
        (["--keep-from", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--keep-from", "/dev/null"], "no store path is named"),
    ],
)
def test_wrong_usage(neve: Neve, paths: list[str], options: list[str], message: str) -> None:
    done = neve("gc", *options)
    assert done.code == 2
    assert done.out == b""
    assert message in done.err
    assert there(neve) == sorted(paths)


def test_what_cannot_be_kept(neve: Neve, paths: list[str]) -> None:
    assert "is to be kept and is not in the store" in neve("gc", "--keep", GONE, paths[0]).failure
    failed = neve("gc", "--keep-from", "-", stdin=f"{paths[0]}\nnonsense\n".encode())
    assert "line 2: " in failed.failure
    assert there(neve) == sorted(paths)
    assert neve("gc", "--ignore-missing", "--keep", GONE, paths[0]).code == 0
    assert there(neve) == paths[:1]


def test_stores_that_have_none(neve: Neve, tmp_path: Path) -> None:
    missing = f"local://{tmp_path}/missing"
    assert "is not a neve store" in neve("gc", "--store", missing).failure
    assert "is not a neve store" in neve("pin", "add", "x", GONE, "--store", missing).failure
    assert not (tmp_path / "missing").exists()
    assert "no store path, so nothing would stay" in neve("gc", "--store", "memory://").failure
    assert "only an embedded store" in neve("pin", "list", "--store", "memory://").failure


def test_services_in_several_places(neve: Neve, tmp_path: Path) -> None:
    services = [
        part
        for kind in ("blob", "directory", "path-info")
        for part in (f"--{kind}-service-addr", f"local://{tmp_path}/{kind}")
    ]
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("contents\n")
    (tmp_path / "other").write_text("others\n")
    kept, _ = (neve("import", tmp_path / name, *services).line for name in ("tree", "other"))
    done = neve("gc", "--json", *services, "--keep", kept)
    report = json.loads(done.out)
    assert (report["pathsKept"], report["pathsDropped"], report["blobsDropped"]) == (1, 1, 1)
    assert neve("cat", kept + "/file", *services).out == b"contents\n"
    assert "--keep-from" in neve("gc", "--only-pinned", *services).failure
    assert neve("verify", *services).code == 0
    services[1] += "-mistyped"
    assert "is not a neve store" in neve("gc", *services).failure
    assert not (tmp_path / "blob-mistyped").exists()


def test_problems_are_told(neve: Neve, paths: list[str], tmp_path: Path) -> None:
    contents = random.Random(1).randbytes(30_000)
    (tmp_path / "kept").write_bytes(contents)
    (tmp_path / "dropped").write_bytes(random.Random(2).randbytes(90_000))
    kept = neve("import", tmp_path / "kept").line
    neve("import", tmp_path / "dropped")
    (pack,) = (tmp_path / "store" / "packs").iterdir()
    data = bytearray(pack.read_bytes())
    data[data.index(contents)] ^= 1
    pack.write_bytes(data)
    done = neve("gc", "--json", "--keep", kept)
    assert done.code == 1
    found = json.loads(done.out)
    assert found["pathsDropped"] == 4
    assert len(found["problems"]) == 1
    assert pack.name in found["problems"][0]
    assert found["problems"][0] in done.err
    assert pack.exists()


# Through a daemon.


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(f"local://{tmp_path}/store", folder=tmp_path) as daemon:
        yield daemon


def test_a_daemon_collects_its_own_store(neve: Neve, paths: list[str], daemon: RunningDaemon) -> None:
    url = str(daemon.admin_url)
    assert report(neve, "--store", url, "--dry-run", "--keep", paths[0])["pathsDropped"] == 2
    done = report(neve, "--store", url, "--keep", paths[0])
    assert (done["pathsKept"], done["pathsDropped"]) == (1, 2)
    assert there(neve) == paths[:1]
    assert "is to be kept and is not" in neve("gc", "--store", url, "--keep", GONE).failure
    assert "only an embedded store" in neve("pin", "list", "--store", url).failure


def test_only_the_administration_collects(neve: Neve, paths: list[str], daemon: RunningDaemon) -> None:
    assert "not allowed on this address" in neve("gc", "--store", daemon.url, "--only-pinned").failure
    assert there(neve) == sorted(paths)
