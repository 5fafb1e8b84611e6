"""``--scan-references`` of ``import`` and ``nar import``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Neve
from tests.cli.test_with_nix import nix

OWN = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello"
ABSENT = "/nix/store/v1i4dxgs94whbh07mjmpy4wlm46kikp6-plain.txt"


def references(neve: Neve, path: str) -> list[str]:
    found: list[str] = json.loads(neve("path-info", "--json", path).line)["references"]
    return found


@pytest.fixture
def dependency(neve: Neve, tree: Path) -> str:
    return neve("import", tree).line


@pytest.fixture
def user(tmp_path: Path, dependency: str) -> Path:
    """A tree that mentions what is in the store, what is not, and itself."""
    root = tmp_path / "user"
    root.mkdir()
    (root / "script").write_text(f"#!{dependency}/bin/run\n")
    (root / "link").symlink_to(f"{ABSENT}/x")
    (root / "own").write_text(f"prefix={OWN}\n")
    return root


def nar(neve: Neve, place: Path) -> bytes:
    return neve("nar", "export", neve("import", place, "--name", "plain").line).out


def test_a_nar_with_a_path_of_its_own(neve: Neve, user: Path, dependency: str) -> None:
    command = ("nar", "import", "--store-path", OWN, "--scan-references")
    assert neve(*command, stdin=nar(neve, user)).line == OWN
    assert sorted(references(neve, OWN)) == sorted([OWN, dependency])


def test_without_scanning_nothing_is_found(neve: Neve, user: Path) -> None:
    assert neve("nar", "import", "--store-path", OWN, stdin=nar(neve, user)).line == OWN
    assert references(neve, OWN) == []


def test_candidates_instead_of_the_store(neve: Neve, user: Path, dependency: str, tmp_path: Path) -> None:
    contents = nar(neve, user)
    command = ("nar", "import", "--scan-references", "--name", "x")
    path = neve(*command, "--reference-candidate", ABSENT, stdin=contents).line
    assert references(neve, path) == [ABSENT]
    file = tmp_path / "candidates"
    file.write_text(f"{dependency}\n\n{ABSENT[11:]}\n")
    path = neve(*command, "--reference-candidates", file, stdin=contents).line
    assert sorted(references(neve, path)) == sorted([ABSENT, dependency])
    file.write_text("")
    path = neve(*command, "--reference-candidates", file, stdin=contents).line
    assert references(neve, path) == []
    path = neve(*command, "--reference-candidates", file, "--reference-candidate", OWN, stdin=contents).line
    assert references(neve, path) == [OWN]


def test_what_is_stated_and_what_is_found(neve: Neve, user: Path, dependency: str) -> None:
    command = ("nar", "import", "--scan-references", "--name", "x", "--reference", ABSENT)
    path = neve(*command, stdin=nar(neve, user)).line
    assert sorted(references(neve, path)) == sorted([ABSENT, dependency])


def test_a_tree(neve: Neve, user: Path, dependency: str) -> None:
    plain = neve("import", user).line
    scanned = neve("import", "--scan-references", user).line
    assert scanned != plain
    assert references(neve, scanned) == [dependency]
    assert references(neve, plain) == []
    contents = neve("nar", "export", plain).out
    assert neve("nar", "import", "--name", "user", "--scan-references", stdin=contents).line == scanned


def test_one_path_may_refer_to_the_one_before(neve: Neve, tree: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_text("first")
    path = neve("import", first, "--store", "memory://").line
    second = tmp_path / "second"
    second.write_text(path)
    result = neve("import", "--scan-references", first, second)
    assert result.code == 0
    lines = result.out.decode().splitlines()
    assert lines[0] == path
    assert references(neve, lines[1]) == [path]
    only = neve("import", "--scan-references", "--reference-candidate", ABSENT, first, second)
    assert references(neve, only.out.decode().splitlines()[1]) == []


def test_a_text(neve: Neve, tmp_path: Path, dependency: str) -> None:
    text = tmp_path / "text"
    text.write_text(f"{dependency}\n")
    stated = neve("import", "--text", "--reference", dependency, text).line
    assert neve("import", "--text", "--scan-references", text).line == stated
    assert neve("import", "--text", "--scan-references", "--reference", dependency, text).line == stated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scan-references", "--flat"], "--scan-references does not go with --flat"),
        (["--scan-references", "--stat-cache"], "--scan-references does not go with --stat-cache"),
        (["--reference-candidate", OWN], "candidates for references go with --scan-references"),
        (["--reference-candidates", "x"], "candidates for references go with --scan-references"),
        (["--scan-references", "--reference-candidate", "nonsense"], "nonsense"),
    ],
)
def test_wrong_usage(neve: Neve, tree: Path, options: list[str], message: str) -> None:
    result = neve("import", *options, tree)
    assert result.code == 2
    assert message in result.err
    if "--flat" not in options and "--stat-cache" not in options:
        result = neve("nar", "import", "--name", "x", *options, stdin=b"")
        assert result.code == 2
        assert message in result.err


def test_files_that_list_no_store_paths(neve: Neve, tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "candidates"
    command = ("import", "--scan-references", "--reference-candidates", file, tree)
    assert str(file) in neve(*command).failure
    file.write_text(f"{OWN}\nnonsense\n")
    assert f"{file}, line 2: store path base name b'nonsense'" in neve(*command).failure
    file.write_text(f"{OWN}/bin/hello\n")
    assert f"{file}, line 1: " in neve(*command).failure
    assert "/dev/zero, line 1: " in neve(*command[:3], "/dev/zero", tree).failure
    assert neve("path-info").out == b""


@pytest.mark.nix
def test_what_nix_finds(neve: Neve, tmp_path: Path) -> None:
    """A closure that Nix has made: its own scanning has found the references that are stated."""
    root = tmp_path / "nix"
    expression = """
      let plain = builtins.toFile "plain" "no references";
      in builtins.toFile "user" "refers to ${plain}"
    """
    evaluate = ("nix-instantiate", "--store", f"local?root={root}", "--eval", "--read-write-mode")
    user = nix(*evaluate, "--expr", expression).strip('"')
    plain = nix("nix-store", "--store", f"local?root={root}", "--query", "--references", user)
    for path in (plain, user):
        contents = subprocess.check_output(["nix-store", "--dump", f"{root}{path}"])
        command = ("nar", "import", "--store-path", path, "--scan-references")
        assert neve(*command, stdin=contents).line == path
    assert references(neve, user) == [plain]
    assert references(neve, plain) == []
