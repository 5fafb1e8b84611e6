"""PostgreSQL, as the place of what is small and must be found by many: no service, only the engine.

::

    address.py    ``postgresql://`` addresses
    database.py   one database in this process: what is asked of it, repeats, one object for all services
    errors.py     what the server and the client library say, as errors of ours
    pool.py       connections, made when needed and kept for the next
    records.py    seals, for what is not addressed by its content
    schema.py     the tables, and how older ones become these
    table.py      what tables of dated records have in common: presence, pages, deleting

The library (psycopg) is loaded with the first address that needs it.
"""

from __future__ import annotations

from neve.errors import Unsupported

try:
    import psycopg as psycopg
except ImportError as error:
    raise Unsupported(
        f"postgresql:// needs packages that are not there ({error}): install neve[postgresql]"
    ) from error
