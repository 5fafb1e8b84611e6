"""The tables, and how those of an older version become these.

A database may be shared with others, so all lies in a schema of its own (``schema=``, by default
``neve``). Whoever connects looks at the version there. If it is an older one, he brings it up to date
under a lock, so that it is done once however many begin at the same time.

===================  ============================================================================
``version``          one row: the number of the last migration
``directories``      digest, the canonical encoding, when it was last put or told to be there
``path_infos``       digest of the store path, ``tvix.store.v1.PathInfo`` (sealed), a number that
                     no other state of any path info has had, when it was last put or told to be
                     there
``path_references``  the digest that is referred to, and the one that refers
``nar_nodes``        ``h`` + sha256: NAR size and node; ``n`` + BLAKE3 of a node: NAR size and
                     sha256 (sealed)
``small_files``      kind, ``/``, name: contents (sealed)
===================  ============================================================================
"""

from __future__ import annotations

import psycopg
from blake3 import blake3

from neve.errors import Unsupported

# Never changed once released, only added to; each is done in a transaction of its own kind: all or nothing.
MIGRATIONS: tuple[str, ...] = (
    """
    create table {s}.directories (
        digest bytea primary key,
        data bytea not null,
        used_at timestamptz not null default now()
    );
    create sequence {s}.revisions;
    create table {s}.path_infos (
        digest bytea primary key,
        data bytea not null,
        revision bigint not null default nextval('{s}.revisions'),
        used_at timestamptz not null default now()
    );
    create table {s}.path_references (
        reference bytea not null,
        referrer bytea not null,
        primary key (reference, referrer)
    );
    create index path_references_by_referrer on {s}.path_references (referrer);
    create table {s}.nar_nodes (key bytea primary key, data bytea not null);
    create table {s}.small_files (key bytea primary key, data bytea not null);
    """,
)


_HAS_VERSION = """
    select from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = %s and c.relname = 'version'
"""


def is_up_to_date(connection: psycopg.Connection, schema: str) -> bool:
    """Whether the tables are what this version of neve takes them for. Raises what psycopg raises."""
    return _version(connection, schema) == len(MIGRATIONS)


def bring_up_to_date(connection: psycopg.Connection, schema: str, where: str) -> None:
    """Makes the tables that, however long it takes. Raises ``Unsupported`` if they were made by a newer
    version, and what psycopg raises."""
    with connection.transaction():
        connection.execute("set local statement_timeout = 0")
        connection.execute("select pg_advisory_xact_lock(%s)", [_lock_number(schema)])
        # Somebody else may have been faster.
        version = _version(connection, schema)
        if version > len(MIGRATIONS):
            raise Unsupported(
                f"{where}: the tables in the schema {schema!r} have version {version}, this neve knows those "
                f"up to {len(MIGRATIONS)}: use a newer neve"
            )
        if version == 0:
            connection.execute(f'create schema if not exists "{schema}"'.encode())
            connection.execute(f'create table "{schema}".version (number int not null)'.encode())
            connection.execute(f'insert into "{schema}".version values (0)'.encode())
        for migration in MIGRATIONS[version:]:
            connection.execute(migration.replace("{s}", f'"{schema}"').encode())
        connection.execute(f'update "{schema}".version set number = {len(MIGRATIONS)}'.encode())


def _version(connection: psycopg.Connection, schema: str) -> int:
    """The number of the last migration, 0 where there are no tables."""
    # Not by to_regclass, which may remember from before the lock that there was none.
    if connection.execute(_HAS_VERSION, [schema]).fetchone() is None:
        return 0
    row = connection.execute(f'select max(number) from "{schema}".version'.encode()).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def _lock_number(schema: str) -> int:
    """What the lock is known by in the whole database."""
    return int.from_bytes(blake3(b"neve schema " + schema.encode()).digest(8), "big", signed=True)
