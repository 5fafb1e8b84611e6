"""Collections that a server makes of its own store."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from neve.errors import Unavailable
from neve.store.gc.report import GcReport
from neve.store.gc.rules import Rules
from neve.telemetry import Progress

if TYPE_CHECKING:
    from neve.proto.neve.admin.protos.rpc_admin_pb2 import GcReport as GcReportMessage
    from neve.proto.neve.admin.protos.rpc_admin_pb2 import GcRequest
    from neve.store.remote import RemoteAdmin

_FIELDS = [field.name for field in fields(GcReport) if field.name != "problems"]


def ask_for_collection(remote: RemoteAdmin, rules: Rules, progress: Progress) -> GcReport:
    """Has the server do it. Raises what that raises there, and ``Unavailable`` if it ends early."""
    problems: list[str] = []
    for message in remote.gc(request_message(rules)):
        if message.total:
            progress.start(message.total)
        if message.advance or message.current:
            progress.advance(message.advance, message.current)
        problems.extend(message.problems)
        if message.HasField("report"):
            found = {name: getattr(message.report, name) for name in _FIELDS}
            return GcReport(**found, problems=problems)
    raise Unavailable(f"{remote.url}: Gc: the server ended before it was done")


def request_message(rules: Rules) -> GcRequest:
    """What asks a server for these rules."""
    from neve.proto.neve.admin.protos.rpc_admin_pb2 import GcRequest

    return GcRequest(
        keep=[path.base_name for path in rules.keep or ()],
        only_pinned=rules.only_pinned,
        keep_newer=rules.keep_newer,
        max_size=rules.max_size,
        ignore_missing=rules.ignore_missing,
        grace=rules.grace,
        dry_run=rules.dry_run,
    )


def report_message(report: GcReport) -> GcReportMessage:
    """A report, without its problems."""
    from neve.proto.neve.admin.protos import rpc_admin_pb2

    return rpc_admin_pb2.GcReport(**{name: getattr(report, name) for name in _FIELDS})
