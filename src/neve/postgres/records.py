"""Seals for records that are not addressed by their content: a database may be damaged, too, or written to
by others."""

from __future__ import annotations

from blake3 import blake3

from neve.errors import Corrupt

SEAL_SIZE = 16
"""Bytes."""


def seal(table: str, key: bytes, data: bytes) -> bytes:
    """``data`` with a 16-byte checksum over table, key and data behind it."""
    return data + _check(table, key, data)


def unseal(table: str, key: bytes, sealed: bytes) -> bytes:
    """Takes the seal off. Raises ``Corrupt`` naming the key if it does not fit."""
    data = sealed[:-SEAL_SIZE]
    if len(sealed) < SEAL_SIZE or sealed[-SEAL_SIZE:] != _check(table, key, data):
        raise Corrupt(f"the row of {key.hex()} in the table {table} does not match its seal")
    return data


def _check(table: str, key: bytes, data: bytes) -> bytes:
    hasher = blake3(b"%b\0%b" % (table.encode(), len(key).to_bytes(4, "little")))
    hasher.update(key)
    hasher.update(data)
    return hasher.digest(SEAL_SIZE)
