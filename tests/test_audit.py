"""What is made of a report about known vulnerabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "audit.py"
SAFE = {"name": "safe", "version": "1.0", "vulns": []}
SKIPPED = {"name": "skipped", "skip_reason": "not found"}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"], "aliases": []}]}


def audited(folder: Path, printed: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with a program in the place of pip-audit that prints something."""
    program = folder / "pip-audit"
    program.write_text(f"#!{sys.executable}\nprint({printed!r})\n")
    program.chmod(0o755)
    command = [sys.executable, str(SCRIPT), str(program), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("dependencies", "code", "lenient"),
    [([SAFE], 0, 0), ([SAFE, SKIPPED], 2, 0), ([SAFE, BAD], 1, 1), ([SKIPPED, BAD], 1, 1)],
)
def test_reports(tmp_path: Path, dependencies: list[dict[str, Any]], code: int, lenient: int) -> None:
    report = json.dumps({"dependencies": dependencies, "fixes": []})
    result = audited(tmp_path, report)
    assert result.returncode == code
    assert ("skipped" in result.stdout) == (SKIPPED in dependencies)
    assert ("bad 2.0: CVE-1, mended in 2.1" in result.stderr) == (BAD in dependencies)
    assert audited(tmp_path, report, "--if-reachable").returncode == lenient


def test_no_report(tmp_path: Path) -> None:
    result = audited(tmp_path, "no connection")
    assert result.returncode == 2
    assert "not audited: all" in result.stdout
    assert audited(tmp_path, "", "--if-reachable").returncode == 0
    missing = [sys.executable, str(SCRIPT), str(tmp_path / "missing")]
    assert subprocess.run(missing, capture_output=True, check=False).returncode == 2
