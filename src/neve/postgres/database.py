"""One database in this process, shared by all services whose addresses name it."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

from neve.errors import NeveError, Unavailable
from neve.postgres import errors
from neve.postgres.address import Target, default, target_of
from neve.postgres.pool import Pool
from neve.postgres.schema import bring_up_to_date, is_up_to_date
from neve.registry import Address
from neve.telemetry import LOGGER

T = TypeVar("T")
RV = TypeVar("RV")

Connection = psycopg.Connection

_LATE_SECONDS = 5.0
"""How much later than the server itself we give up waiting for it."""
_MIGRATION_SECONDS = 24 * 3600.0
"""How long to wait for one step of making older tables new: as long as it takes, but not for ever."""
_MAX_MILLISECONDS = 2**31 - 1
"""What the server takes for a limit: 24 days."""
_LET_IN_SECONDS = 5.0
"""How long to try to get into a server that is starting, or full."""
_PAUSE_SECONDS = 0.05
_UNDONE = 10
"""How often something is begun anew that was undone because of others."""


class Database:
    """What is asked of a database. ``open`` shares it in this process; each ``open`` needs a ``close``.

    Connects when first used. Thread-safe. All that ``read`` and ``write`` raise is of ``neve.errors``.
    """

    _opened: ClassVar[dict[tuple[int, Target], Database]] = {}
    """By process, too: a child has none of the connections of its parent."""
    _opened_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, target: Target) -> None:
        self.target = target
        self.where = target.shown
        """The address for messages."""
        self._users = 1
        self._identity = os.getpid(), target
        self._pool = Pool(self._connect, target.pool, target.timeout)

    @classmethod
    def open(cls, address: Address) -> Database:
        """The database at an address of ``postgresql``. Raises ``InvalidRequest``."""
        target = target_of(address)
        with cls._opened_lock:
            found = cls._opened.get((os.getpid(), target))
            if found is None:
                found = cls(target)
                cls._opened[found._identity] = found
            else:
                found._users += 1
            return found

    def close(self) -> None:
        """The last close ends the connections."""
        with self._opened_lock:
            self._users -= 1
            if self._users:
                return
            self._opened.pop(self._identity, None)
        self._pool.close()

    def statement(self, text: str) -> bytes:
        """SQL in which ``{s}`` stands for the schema."""
        return text.replace("{s}", f'"{self.target.schema}"').encode()

    def read(self, work: Callable[[Connection], T]) -> T:
        """What ``work`` makes of a connection. It changes nothing, so that it can be done once more if the
        connection is lost on the way."""
        return self.repeat(work)

    def repeat(self, work: Callable[[Connection], T]) -> T:
        """As ``write``, but once more if the connection is lost on the way, as soon as the server lets us in
        again, for some seconds: for what comes to the same if it was done before."""
        lost = _Lost()
        try:
            return self._run(work, lost)
        except Unavailable:
            if not lost:
                raise
        LOGGER.debug("%s: asking again after the connection was lost", self.where)
        self._await_return()
        return self._run(work, _Lost())

    def _await_return(self) -> None:
        """Waits for a server that is being started anew."""
        end = time.monotonic() + _LET_IN_SECONDS
        pause = _PAUSE_SECONDS
        while time.monotonic() < end:
            try:
                with self._pool.connection():
                    return
            except Unavailable:
                time.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, 1.0)

    def write(self, work: Callable[[Connection], T]) -> T:
        """What ``work`` makes of a connection, on which every statement is a transaction, but for blocks of
        ``transaction()``. It is done anew if everything was undone because of others, and not if the
        connection is lost: nobody knows what was done then."""
        return self._run(work, _Lost())

    def _run(self, work: Callable[[Connection], T], lost: _Lost) -> T:
        for left in reversed(range(_UNDONE)):
            with self._pool.connection() as connection:
                try:
                    return work(connection)
                except psycopg.Error as error:
                    if error.sqlstate not in errors.DEADLOCKS or not left:
                        raise self._translated(error, connection, lost) from error
            time.sleep(random.uniform(0, _PAUSE_SECONDS))
        raise AssertionError("the last turn returns or raises")

    def _translated(self, error: psycopg.Error, connection: Connection, lost: _Lost) -> NeveError:
        if isinstance(connection, _Patient) and connection.is_late:
            return Unavailable(
                f"{self.where} does not answer within {self.target.timeout:g} s (timeout= in the address)"
            )
        lost.set(connection.broken or connection.closed)
        return errors.translated(error, self.where)

    def _connect(self) -> Connection:
        """A new one, to tables of our version."""
        end = time.monotonic() + _LET_IN_SECONDS
        pause = _PAUSE_SECONDS
        while True:
            try:
                connection = self._new_connection()
                break
            except psycopg.Error as error:
                if not errors.may_be_let_in_soon(error) or time.monotonic() > end:
                    raise errors.not_connected(error, self.where) from error
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, 1.0)
        with _closed_on_failure(connection):
            try:
                if not is_up_to_date(connection, self.target.schema):
                    # A server that holds much takes its time, or one of ours is at it already.
                    connection.seconds = _MIGRATION_SECONDS
                    bring_up_to_date(connection, self.target.schema, self.where)
                    connection.seconds = self._patience
            except psycopg.Error as error:
                raise self._translated(error, connection, _Lost()) from error
        return connection

    @property
    def _patience(self) -> float:
        return self.target.timeout + _LATE_SECONDS

    def _new_connection(self) -> _Patient:
        conninfo: dict[str, Any] = dict(self.target.conninfo)
        if self.target.pooled:
            # What is prepared would be so on another connection. Limits are those of the role.
            conninfo["prepare_threshold"] = None
        else:
            conninfo["options"] = self._options(conninfo.get("options"))
        connection = _Patient.connect(**conninfo, autocommit=True, client_encoding="utf8")
        connection.seconds = self._patience
        # Whoever has waited for a lock looks at what has become of the rows in the meantime, whatever the
        # database has for those who say nothing.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return connection

    def _options(self, given: str | None) -> str:
        milliseconds = min(max(1, round(self.target.timeout * 1000)), _MAX_MILLISECONDS)
        # Who is stopped in the middle of something must not stop all others.
        ours = f"-c statement_timeout={milliseconds} -c idle_in_transaction_session_timeout={milliseconds}"
        # What is said here counts, and not the environment: so that goes in, too.
        return f"{given or default('options') or ''} {ours}".strip()


class _Patient(psycopg.Connection[Any]):
    """A connection that does not wait for ever for a server that has stopped."""

    seconds: float | None = None
    """For one statement."""
    is_late = False
    """Whether a statement took longer. Then it is closed: it would get the answer to this one."""

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        try:
            return super().wait(gen, interval, self.seconds if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.is_late = True
                self.close()
            raise


class _Lost:
    """Whether a connection was lost."""

    def __init__(self) -> None:
        self._lost = False

    def set(self, lost: bool) -> None:
        self._lost = lost

    def __bool__(self) -> bool:
        return self._lost


@contextlib.contextmanager
def _closed_on_failure(connection: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise
