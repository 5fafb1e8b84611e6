"""Compares the locked dependencies with a database of known vulnerabilities.

``python scripts/audit.py PIP-AUDIT [--if-reachable]``, where the first is the program of that name.

Exit code 1 if one is known, with its names; 2 if that could not be found out of all of them. With
``--if-reachable`` that is only told: where tests run there may be no way to the database.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LOCK = Path(__file__).parents[1] / "constraints.txt"
SECONDS = 300


class Findings(NamedTuple):
    """What is known of the dependencies."""

    vulnerable: Sequence[str]
    """A line for each that is."""
    unknown: Sequence[str]
    """Names of those that the database does not tell anything about."""
    audited: int


def findings(report: Mapping[str, Any]) -> Findings:
    """Reads what pip-audit reports as JSON."""
    vulnerable, unknown = [], []
    dependencies = report["dependencies"]
    for one in dependencies:
        if "skip_reason" in one:
            unknown.append(one["name"])
        for vulnerability in one.get("vulns", ()):
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            vulnerable.append(f"{one['name']} {one['version']}: {vulnerability['id']}, mended in {fixed}")
    return Findings(vulnerable, unknown, len(dependencies) - len(unknown))


def main(arguments: Sequence[str]) -> int:
    """Runs pip-audit, and says what it found."""
    program, *options = arguments
    command = [program, "--no-deps", "--disable-pip", "--format", "json", "--requirement", str(LOCK)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        found = findings(json.loads(result.stdout))
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        reason = result.stderr.strip().rpartition("\n")[2] if isinstance(error, ValueError) else str(error)
        found = Findings((), ("all",), 0)
        print(f"pip-audit fails: {reason}", file=sys.stderr)
    left_out = ", ".join(found.unknown) if found.audited else "all"
    print(f"Audited {found.audited} dependencies; not audited: {left_out or 'none'}")
    if found.vulnerable:
        print(*found.vulnerable, sep="\n", file=sys.stderr)
        return 1
    return 2 if found.unknown and "--if-reachable" not in options else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
