"""Addresses of databases: ``postgresql://user@host:port/database?parameters``.

They are those of libpq, PostgreSQL's own client library, which also reads its environment variables
(``PGHOST``, ``PGPASSWORD``, ...), its password file and its service file. A few parameters are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from neve.registry import Address, shown_address

LIBPQ_PARAMETERS = (
    *("host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service", "require_auth"),
    *("connect_timeout", "application_name", "options", "target_session_attrs", "load_balance_hosts"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslcrldir", "sslsni"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "sslnegotiation", "channel_binding"),
    *("requirepeer", "gssencmode", "krbsrvname"),
)
"""What is passed on to libpq as it is. Others change what is sent (``client_encoding``, ``replication``)."""

PARAMETERS = ("schema", "timeout", "pool", "pooler")
"""Our own."""

DEFAULT_SCHEMA = "neve"
DEFAULT_TIMEOUT = 60.0
"""Seconds for one statement. The longest move some megabytes, or delete a thousand records."""
DEFAULT_POOL = 8
"""Connections of one process: a dozen processes share a server with its default of 100."""

_CONNECT_SECONDS = 10
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class Target:
    """Which database, and how to talk to it."""

    shown: str
    """The address for messages, without passwords and parameters."""
    conninfo: tuple[tuple[str, str], ...] = field(repr=False)
    """libpq's parameters, by name."""
    schema: str
    timeout: float
    """Seconds for one statement."""
    pool: int
    """Most connections at once."""
    pooled: bool = False
    """Something in front of the server gives each transaction another of its connections: nothing that is
    said to one of them holds for the next."""


def target_of(address: Address) -> Target:
    """Raises ``InvalidRequest`` naming the address and what is wrong with it. Opens nothing."""
    address.check_parameters(*PARAMETERS, *LIBPQ_PARAMETERS)
    schema = address.parameters.get("schema", DEFAULT_SCHEMA)
    if not _SCHEMA.fullmatch(schema):
        raise address.refuse(
            f"parameter 'schema' is {schema!r}, must have up to 63 lower-case letters, digits and underscores"
        )
    if schema.startswith("pg_"):
        raise address.refuse(f"parameter 'schema' is {schema!r}, such names are PostgreSQL's own")
    timeout = address.seconds("timeout", DEFAULT_TIMEOUT)
    place = address.url.partition("?")[0]
    if re.search("[@/].*@", place.partition("//")[2]):
        # libpq would take the first for the end of the password, and tell the rest as the name of a host.
        raise address.refuse("write @ and / in names and passwords as %40 and %2F")
    return Target(
        shown_address(place),
        _conninfo(address, place),
        schema,
        timeout,
        address.number("pool", DEFAULT_POOL, most=1000),
        address.choice("pooler", "none", "transaction") == "transaction",
    )


def _conninfo(address: Address, place: str) -> tuple[tuple[str, str], ...]:
    given = {name: value for name, value in address.parameters.items() if name in LIBPQ_PARAMETERS}
    try:
        conninfo = {name: str(value) for name, value in conninfo_to_dict(place, **given).items()}
    except (psycopg.Error, ValueError) as error:
        # The reason may repeat what is not to be shown.
        reason = str(error).strip() if shown_address(address.url) == address.url else "malformed"
        raise address.refuse(f"PostgreSQL's client library cannot read it: {reason}") from error
    if "connect_timeout" not in conninfo and not default("connect_timeout"):
        # The library waits for minutes.
        conninfo["connect_timeout"] = str(_CONNECT_SECONDS)
    if "application_name" not in conninfo:
        conninfo["fallback_application_name"] = "neve"
    return tuple(sorted(conninfo.items()))


def default(keyword: str) -> str | None:
    """What libpq takes where nothing is given: from the environment, or built in."""
    for option in Conninfo.get_defaults():
        if option.keyword.decode() == keyword:
            return None if option.val is None else option.val.decode()
    return None
