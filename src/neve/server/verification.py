"""What the call Verify answers with in the end."""

from __future__ import annotations

from collections.abc import Iterator

from neve.proto.neve.admin.protos.rpc_admin_pb2 import VerifyResponse
from neve.rpc.status import shortened
from neve.server.telling import PROBLEMS_A_MESSAGE
from neve.store.check import VerifyReport


def verify_conclusion(report: VerifyReport) -> Iterator[VerifyResponse]:
    """The messages that tell a report."""
    problems = [shortened(problem) for problem in report.problems]
    for start in range(0, len(problems), PROBLEMS_A_MESSAGE):
        yield VerifyResponse(problems=problems[start : start + PROBLEMS_A_MESSAGE])
    yield VerifyResponse(summary=shortened(report.summary), done=True)
