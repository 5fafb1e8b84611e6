"""What an address of a table says. Reading it touches neither the network nor a file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from neve.registry import Address

REQUIRED = ("project_id", "table_name", "family_name")
PARAMETERS = (*REQUIRED, "is_read_only", "channel_size", "timeout", "app_profile_id")

DEFAULT_CHANNELS = 4
MAX_CHANNELS = 64
"""Connections to one server: each carries a hundred calls at once."""

DEFAULT_TIMEOUT = 4.0
"""Seconds to wait for an answer, or the next part of one."""

DEFAULT_APP_PROFILE = "default"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}", re.ASCII)
"""Names of instances, tables and families."""
_PROJECT = re.compile(r"(?:[A-Za-z0-9.-]{1,100}:)?[A-Za-z0-9_.-]{1,100}", re.ASCII)
"""A project may have its domain before a colon."""


@dataclass(frozen=True)
class Target:
    """A parsed address."""

    url: str
    project: str
    instance: str
    table: str
    family: str
    app_profile: str
    reads_only: bool
    channels: int
    timeout: float
    """Seconds."""
    nar_family: str | None = None
    """The family that the map of NARs is in, if there is one."""

    @property
    def table_path(self) -> str:
        """The table, as requests name it."""
        return f"projects/{self.project}/instances/{self.instance}/tables/{self.table}"

    @property
    def shown(self) -> str:
        """For messages."""
        return f"bigtable://{self.instance} (table {self.table}, family {self.family})"


NAR_FAMILY = "nar_family_name"


def target_of(address: Address, *more: str) -> Target:
    """Reads an address, which may have ``more`` parameters. Raises ``InvalidRequest`` naming it."""
    address.check_parameters(*PARAMETERS, *more)
    if not address.host:
        raise address.refuse("the instance is missing; write bigtable://instance?project_id=...")
    if address.path:
        raise address.refuse("a path has no meaning here; write bigtable://instance?project_id=...")
    project, table, family = (address.required(name, name.partition("_")[0].upper()) for name in REQUIRED)
    if not _PROJECT.fullmatch(project):
        raise address.refuse(f"project_id: {project!r} is no name of a project")
    profile = address.parameters.get("app_profile_id", DEFAULT_APP_PROFILE)
    nar_family = address.parameters.get(NAR_FAMILY)
    if nar_family is not None and _name(address, NAR_FAMILY, nar_family) == family:
        raise address.refuse(f"parameter {NAR_FAMILY!r} names the family of the path infos")
    return Target(
        url=address.url,
        project=project,
        instance=_name(address, "the instance", address.host),
        table=_name(address, "table_name", table),
        family=_name(address, "family_name", family),
        app_profile=_name(address, "app_profile_id", profile),
        reads_only=address.choice("is_read_only", "false", "true") == "true",
        channels=address.number("channel_size", DEFAULT_CHANNELS, most=MAX_CHANNELS),
        timeout=address.seconds("timeout", DEFAULT_TIMEOUT),
        nar_family=nar_family,
    )


def _name(address: Address, what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise address.refuse(f"{what}: {name!r} is no name of letters, digits and _ . -")
    return name
