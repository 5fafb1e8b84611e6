#!/usr/bin/env python3
"""Names every module and function below ``src`` that outgrew the limits; exits 1 if there is one.

Small modules are how a newcomer finds things. The generated packages are left out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE_LINES = 400
FUNCTION_LINES = 40


def oversized(file: Path) -> Iterator[str]:
    """One line for the module, if it is too long, and for each such function in it."""
    text = file.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines > MODULE_LINES:
        yield f"1: {lines} lines, limit for a module {MODULE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{node.lineno}: {node.name}: {lines} lines, limit for a function {FUNCTION_LINES}"


def main() -> int:
    """Returns the exit code."""
    found = False
    for file in sorted(ROOT.glob("src/**/*.py")):
        if file.name.endswith("_pb2.py"):
            continue
        for problem in oversized(file):
            found = True
            print(f"{file.relative_to(ROOT)}:{problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
