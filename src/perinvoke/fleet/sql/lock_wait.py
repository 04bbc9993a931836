"""How long a lock is waited for, and how each database is told so: the wait ends in the database, not only in the client.

A wait never takes longer than was asked, nor until an invocation's deadline: it ends before the interrupt, with time for the
answer. What is set for it is put back as it was.

* PostgreSQL: ``lock_timeout``, in milliseconds, for this transaction. It counts for each lock anew, and who queues for a row
  takes two: its place at the head, and then the row. So ``statement_timeout`` goes along with it; one that was set before and
  is shorter stays. After an error of the database's there is nothing to put back: the transaction is over, or the savepoint, and
  with it what was set in it.
* MariaDB: ``WAIT n``, in whole seconds; it counts for locks of the table, too. The fraction that remains is waited for by
  asking again with NOWAIT, in pauses with jitter, so that it is never rounded up. Who asks so has no place in the queue.
* MySQL: the same, with ``innodb_lock_wait_timeout`` and ``lock_wait_timeout`` of the session in place of ``WAIT n``. InnoDB there
  looks once in a second whether somebody has waited long enough, so one second less is waited inside.
* SQLite: ``busy_timeout``, in milliseconds. Whoever waits has no place in a queue there.
* NOWAIT and SKIP LOCKED don't wait for rows. A table that is being altered they do wait for, until the deadline, except for
  MariaDB's NOWAIT.
"""

from __future__ import annotations

import contextlib
import math
import time

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from perinvoke.fleet.caller import LONGEST_SECONDS
from perinvoke.fleet.errors import RowLocked, SqlUseError
from perinvoke.fleet.patience import REAL_CLOCK, Patience
from perinvoke.fleet.sql.conflicts import Conflict, conflict_of, is_cancelled
from perinvoke.fleet.sql.dialects import FAILED, Database, postgresql_status
from perinvoke.sharing.asker import asker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Literal, TypeVar

    from sqlalchemy import Connection

    T = TypeVar("T")
    Wait = float | Literal["deadline", "nowait", "skip"]

# Seconds. Outside an invocation nobody else sets a bound, and no wait is without one. Arbitrary; leases have the same.
_NO_DEADLINE_SECONDS = 30.0
# Seconds, and a part of what is left where that is little. A wait until the deadline ends so long before it: the database's
# answer has to be here before the handler is interrupted, and the handler's own before the deadline. All waiters of an
# environment get it at the same moment, and with 16 workers on one core that takes a while.
_ANSWER_SECONDS, _ANSWER_PART = 0.5, 1 / 8
_MAX_SECONDS = 86_400.0  # a day, as for all time-outs
# Seconds: between two questions with NOWAIT. The first is a round trip or some, the last what one may come late by.
_FIRST_PAUSE_SECONDS = 0.02
_LAST_PAUSE_SECONDS = 0.1
# How much longer than the lock's a statement's time-out is, in milliseconds, so that the one that tells more comes first.
_AFTER_LOCK_MS = 25
_CONFLICTS = (Conflict.LOCK_TIMEOUT, Conflict.BUSY)

# The earlier values are read before new ones are set: a query's list of results has no order that PostgreSQL promises.
_POSTGRESQL_SET = text(
    "WITH before AS MATERIALIZED ("
    "SELECT current_setting('lock_timeout') AS lock, current_setting('statement_timeout') AS statement) "
    "SELECT lock, statement, set_config('lock_timeout', CAST(:lock_ms AS text), true), "
    "set_config('statement_timeout', CAST(CAST(least(nullif(extract(epoch FROM CAST(statement AS interval)) * 1000, 0), "
    "CAST(:statement_ms AS numeric)) AS bigint) AS text), true) FROM before"
)
_POSTGRESQL_PUT_BACK = text(
    "SELECT set_config('lock_timeout', CAST(:lock AS text), true), "
    "set_config('statement_timeout', CAST(:statement AS text), true)"
)
_MYSQL_PUT_BACK = "SET SESSION innodb_lock_wait_timeout = @perinvoke_row, SESSION lock_wait_timeout = @perinvoke_table"


class LockWait:
    """One wait for one lock; begins when it is made, and lives until it is over.

    Args:
        wait: ``"deadline"``, ``"nowait"``, ``"skip"`` or seconds.
        what: that is to be locked, for the error: a model's name.
        key: of it.
        skip: whether ``"skip"`` is allowed.

    Raises:
        SqlUseError: ``wait`` is none of these.
    """

    __slots__ = ("_patience", "at_once", "bound_seconds", "key", "skip", "what")

    def __init__(self, wait: Wait, *, what: str, key: object, skip: bool = True) -> None:
        self.what = what
        self.key = key
        self.skip = wait == "skip" and skip
        self.bound_seconds = _until_deadline()  # of what can't be had without a wait: a table that is being altered
        named = {"deadline": self.bound_seconds, "nowait": 0.0, "skip" if skip else "nowait": 0.0}
        seconds = named[wait] if isinstance(wait, str) and wait in named else _checked(wait, skip=skip)
        self.at_once = seconds == 0
        self._patience = Patience(
            min(seconds, self.bound_seconds) if asker().request_id is not None else seconds,
            REAL_CLOCK,
            first_seconds=_FIRST_PAUSE_SECONDS,
            last_seconds=_LAST_PAUSE_SECONDS,
        )

    def left(self) -> float:
        """Seconds; never below 0."""
        return self._patience.left()

    def pause(self) -> float | None:
        """How long to pause before the next question; None when it would come too late."""
        return None if self.at_once else self._patience.pause()

    def row_locked(self, database: Database) -> RowLocked:
        """The error that tells that the wait was in vain."""
        waited = self._patience.waited_seconds()
        who = "another connection is writing to the database" if database is Database.SQLITE else "another transaction holds it"
        return RowLocked(
            f"{self.what} {self.key!r} couldn't be locked within {waited:.3g} seconds: {who}. {_NEXT[database]}",
            what=self.what,
            key=self.key,
            waited_seconds=waited,
        )


_GOES_ON = "Nothing was changed and the transaction goes on; try again later, in a new one."
_NEXT = {
    Database.POSTGRESQL: "Roll the transaction back and try again later; where a lock is taken inside "
    "`with session.begin_nested():`, only that part is lost.",
    Database.MARIADB: _GOES_ON,
    Database.MYSQL: _GOES_ON,
    Database.SQLITE: _GOES_ON,
}


def wait_in_database(
    connection: Connection, database: Database, wait: LockWait, attempt: Callable[[str], T], *, table: str | None = None
) -> T | None:
    """Call ``attempt`` with what comes after FOR UPDATE, maybe several times, so that the database waits as ``wait`` says.

    Blocks for that long, and some round trips: two besides the attempt's in PostgreSQL and MySQL, none in MariaDB.

    Args:
        connection: where the attempt asks.
        database: which one that is.
        wait: how long.
        attempt: locks.
        table: one that exists, as it is written in SQL; in SQLite a write to no row of it makes a reading transaction a writing
            one.

    Returns:
        What ``attempt`` has; None where another connection writes to a SQLite database and that was to be skipped.

    Raises:
        RowLocked: it took too long.
        DBAPIError: what else goes wrong.
    """
    if database is Database.POSTGRESQL:
        return _wait_in_postgresql(connection, wait, attempt)
    if database is Database.SQLITE:
        return _wait_in_sqlite(connection, wait, attempt, table)
    if database is Database.MARIADB and not wait.skip:
        return _wait_in_rounds(wait, database, attempt)
    with mysql_time_outs(connection, wait.left() or wait.bound_seconds):
        return _wait_in_rounds(wait, database, attempt)


def _wait_in_postgresql(connection: Connection, wait: LockWait, attempt: Callable[[str], T]) -> T:
    seconds = wait.bound_seconds if wait.at_once else wait.left()
    clause = "SKIP LOCKED" if wait.skip else "NOWAIT" if wait.at_once or not seconds else ""
    with postgresql_time_outs(connection, wait, seconds):
        return attempt(clause)


@contextlib.contextmanager
def postgresql_time_outs(connection: Connection, wait: LockWait, seconds: float) -> Iterator[None]:
    """Have PostgreSQL end waits inside the block after so many seconds, as ``RowLocked``. Blocks for two round trips."""
    milliseconds = max(1, math.floor(seconds * 1000))
    values = {"lock_ms": str(milliseconds), "statement_ms": milliseconds + _AFTER_LOCK_MS}
    lock, statement, *_ = connection.execute(_POSTGRESQL_SET, values).one()
    before = {"lock": lock, "statement": statement}
    began = time.monotonic()
    try:
        yield
    except Exception as error:
        # Cancelled by the time-out that was set here; not by a shorter one of the caller's own, nor by an administrator.
        is_ours = is_cancelled(error) and time.monotonic() - began >= milliseconds / 1000
        if is_ours or conflict_of(error) in _CONFLICTS:
            raise wait.row_locked(Database.POSTGRESQL) from error
        # What a listener raises, or the driver before it asks the server, leaves the transaction as it was.
        if not connection.invalidated and postgresql_status(connection) not in FAILED:
            with contextlib.suppress(SQLAlchemyError):
                connection.execute(_POSTGRESQL_PUT_BACK, before)
        raise
    connection.execute(_POSTGRESQL_PUT_BACK, before)


@contextlib.contextmanager
def mysql_time_outs(connection: Connection, seconds: float) -> Iterator[None]:
    """Have MySQL or MariaDB end waits inside the block after so many seconds, at least one. Blocks for two round trips."""
    whole = max(1, _whole_seconds(seconds, Database.MYSQL))
    connection.exec_driver_sql(
        "SET @perinvoke_row = @@SESSION.innodb_lock_wait_timeout, @perinvoke_table = @@SESSION.lock_wait_timeout, "
        f"SESSION innodb_lock_wait_timeout = {whole}, SESSION lock_wait_timeout = {whole}"
    )
    try:
        yield
    except BaseException:
        # An interrupt inside a statement loses the connection, and with it what was set; one inside a pause doesn't.
        if not connection.invalidated:
            with contextlib.suppress(SQLAlchemyError):
                connection.exec_driver_sql(_MYSQL_PUT_BACK)
        raise
    connection.exec_driver_sql(_MYSQL_PUT_BACK)


def _wait_in_rounds(wait: LockWait, database: Database, attempt: Callable[[str], T]) -> T:
    """Whole seconds in the database, once; what remains by asking again."""
    whole = _whole_seconds(wait.left(), database)
    while True:
        waits = f"WAIT {whole}" if database is Database.MARIADB else ""
        try:
            return attempt("SKIP LOCKED" if wait.skip else waits if whole >= 1 else "NOWAIT")
        except DBAPIError as error:
            pause = wait.pause() if conflict_of(error) is Conflict.LOCK_TIMEOUT else None
            if pause is None and conflict_of(error) in _CONFLICTS:
                raise wait.row_locked(database) from error
            if pause is None:
                raise
        time.sleep(pause)
        whole = 0


def _wait_in_sqlite(connection: Connection, wait: LockWait, attempt: Callable[[str], T], table: str | None) -> T | None:
    milliseconds = math.floor(wait.left() * 1000)
    before = int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {milliseconds}")
    try:
        _begin_writing(connection, table)
        return attempt("")
    except DBAPIError as error:
        if conflict_of(error) not in _CONFLICTS:
            raise
        if wait.skip:
            return None
        raise wait.row_locked(Database.SQLITE) from error
    finally:
        if not connection.invalidated:  # an interrupt inside a statement loses the connection
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {before}")


def _begin_writing(connection: Connection, table: str | None) -> None:
    """Make the transaction the one that writes.

    sqlite3 begins none before the first write, unless it was told otherwise. One that was begun, by BEGIN, by a savepoint or by
    ``autocommit=False``, and has not written yet, becomes the writing one by a write that changes nothing.
    """
    driver: Any = connection.connection.driver_connection
    if not getattr(driver, "in_transaction", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif table is not None:
        connection.exec_driver_sql(f"DELETE FROM {table} WHERE 0")  # noqa: S608  # a quoted name, of a mapped table


def _whole_seconds(seconds: float, database: Database) -> int:
    """How many seconds may be waited inside MySQL or MariaDB, which count whole ones."""
    return math.floor(seconds - (1.0 if database is Database.MYSQL else 0.0))


def _until_deadline() -> float:
    who = asker()
    if who.request_id is None:
        return _NO_DEADLINE_SECONDS
    bound = min(who.wait_seconds(), LONGEST_SECONDS)
    return bound - min(_ANSWER_SECONDS, bound * _ANSWER_PART)


def _checked(wait: object, *, skip: bool) -> float:
    if isinstance(wait, int | float) and not isinstance(wait, bool) and 0 <= wait <= _MAX_SECONDS:  # also refuses nan
        return wait
    words = '"deadline", "nowait", "skip"' if skip else '"deadline", "nowait"'
    raise SqlUseError(f"wait is {wait!r}; allowed are {words}, or seconds from 0 to {_MAX_SECONDS:.0f}")
