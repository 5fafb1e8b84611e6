"""The call Gc: what it asks for, and what it answers with in the end."""

from __future__ import annotations

from collections.abc import Iterator

from neve.nix.store_path import StorePath
from neve.proto.neve.admin.protos.rpc_admin_pb2 import GcRequest, GcResponse
from neve.rpc.status import shortened
from neve.server.telling import PROBLEMS_A_MESSAGE
from neve.store.gc.remote import report_message
from neve.store.gc.report import GcReport
from neve.store.gc.rules import Rules


def rules_of(request: GcRequest) -> Rules:
    """Raises ``InvalidRequest``."""
    return Rules(
        keep=[StorePath.parse_base_name(name) for name in request.keep] or None,
        only_pinned=request.only_pinned,
        keep_newer=request.keep_newer if request.HasField("keep_newer") else None,
        max_size=request.max_size if request.HasField("max_size") else None,
        ignore_missing=request.ignore_missing,
        grace=request.grace if request.HasField("grace") else None,
        dry_run=request.dry_run,
    )


def gc_conclusion(report: GcReport) -> Iterator[GcResponse]:
    """The messages that tell a report."""
    problems = [shortened(problem) for problem in report.problems]
    for start in range(0, len(problems), PROBLEMS_A_MESSAGE):
        yield GcResponse(problems=problems[start : start + PROBLEMS_A_MESSAGE])
    yield GcResponse(report=report_message(report))
