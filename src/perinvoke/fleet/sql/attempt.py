"""One attempt of ``retry_conflicts``: a transaction from its BEGIN to its COMMIT, and what is known of it when it failed.

What may be repeated:

* A conflict that a statement, the flush or COMMIT tells of: the transaction is rolled back, by the database or here.
* A connection that is lost before COMMIT is sent: the server rolls back what it has of it.
* Not what COMMIT has left open (``commits.py``), and nothing else.

A function that catches an error and goes on must not have half of its work committed. PostgreSQL gives up a transaction at any
error, and answers its COMMIT with ROLLBACK, which drivers don't call an error. MySQL and MariaDB take all of it back at a
deadlock, and let the next statement begin another one. SQLAlchemy gives up at a flush that fails. All three are looked for before
COMMIT, and where a later statement fails because of them. COMMIT and ROLLBACK as SQL aren't even sent.
"""

from __future__ import annotations

import contextlib
import enum
import math

from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from perinvoke.fleet.caller import LONGEST_SECONDS
from perinvoke.fleet.errors import SqlUseError, WriteConflict
from perinvoke.fleet.sql.attempt_session import ERRORS, WHAT, AttemptSession, ended, watch
from perinvoke.fleet.sql.commits import came_from_commit, surely_not_committed
from perinvoke.fleet.sql.conflicts import Conflict, conflict_of, sqlstate_of
from perinvoke.fleet.sql.dialects import FAILED, IDLE, Database, database_of, in_transaction, is_autocommit, postgresql_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from sqlalchemy import Connection, Engine

# Seconds. The database's answer that a lock isn't to be had has to be here before time is up.
_ANSWER_SECONDS = 0.1
_IN_FAILED = "25P02"  # PostgreSQL, of a statement in a transaction that is over: an earlier error tells why
_LATER = ("__await__", "gi_frame", "ag_frame")  # what coroutines, tasks and generators have; looked for in the class
# The names of variables in a session of MySQL's; not those of lock_wait.py, which may be in use inside of an attempt.
_MYSQL_SET = (
    "SET @perinvoke_attempt_row = @@SESSION.innodb_lock_wait_timeout, @perinvoke_attempt_table = @@SESSION.lock_wait_timeout, "
    "SESSION innodb_lock_wait_timeout = {0}, SESSION lock_wait_timeout = {0}"
)
_MYSQL_PUT_BACK = (
    "SET SESSION innodb_lock_wait_timeout = @perinvoke_attempt_row, SESSION lock_wait_timeout = @perinvoke_attempt_table"
)


class Verdict(enum.Enum):
    """What is known of an attempt."""

    DONE = "committed"
    CONFLICT = "not committed, because of others"
    LOST = "not committed, because the connection broke"
    UNKNOWN = "perhaps committed"


class Outcome:
    """Of an attempt that is over; lives until the next one.

    Attributes:
        verdict: what is known of it.
        value: what the function returned, if it is done.
        error: the cause, if it isn't.
        told: what kind of conflict that was, in words.
        table: of the row that a stale version was found in, if it was that.
        key: of that row.
    """

    __slots__ = ("error", "key", "table", "told", "value", "verdict")

    def __init__(self, verdict: Verdict, value: object = None, error: BaseException | None = None) -> None:
        self.verdict = verdict
        self.value = value
        self.error = error
        self.told = verdict.value
        self.table: str | None = None
        self.key: object = None


def attempt(
    engine: Engine,
    function: Callable[[Session], Any],
    *,
    isolation: str | None,
    seconds: float,
    options: dict[str, Any],
    sessions: type[AttemptSession],
    again: bool,
) -> Outcome:
    """Call ``function(session)`` in a transaction of its own, and commit.

    Args:
        engine: where.
        function: what is to be done.
        isolation: the transaction's; None: the engine's.
        seconds: how long a lock may be waited for.
        options: for the session.
        sessions: its class.
        again: it isn't the first one. A server that isn't there now comes back, or another one takes over.

    Raises:
        SqlUseError: the function ended its transaction, or went on where there was none any more; or it is asynchronous.
        Exception: whatever else it raises, or its COMMIT is refused with. Nothing was committed then, but for an error of a
            listener of the session's that is called after the COMMIT.
    """
    try:
        one = _Attempt(engine, isolation, sessions, options)
    except Exception as error:
        if again:
            return Outcome(Verdict.LOST, error=error)
        raise
    try:
        try:
            value = one.body(function, seconds)
        except Exception as error:  # noqa: BLE001  # judged, and raised again unless it is to be repeated
            return one.judged(error)
        try:
            Session.commit(one.session)
        except DBAPIError as error:
            return one.judged_commit(error) if came_from_commit(error) else one.judged(error)
        except SQLAlchemyError as error:  # a listener has changed something before the commit, and its flush failed
            return one.judged(error)
        return Outcome(Verdict.DONE, value)
    finally:
        one.close()


class _Attempt:
    """Lives as long as its transaction, and has a connection as long.

    The connection isn't left to the session, which gives it back with the COMMIT: what outlives a transaction is put back first.
    """

    __slots__ = ("_connection", "_database", "_errors", "_put_back", "_root", "_transaction", "session")

    def __init__(self, engine: Engine, isolation: str | None, sessions: type[AttemptSession], options: dict[str, Any]) -> None:
        watch(engine)
        self._errors: list[BaseException] = []
        self._put_back: str | None = None
        self._transaction: Any = None
        self._root: Any = None
        self._connection = engine.connect()
        try:
            level = {} if isolation is None else {"isolation_level": isolation}
            self._connection.execution_options(**{ERRORS: self._errors}, **level)
            self._database = _known(self._connection)
            self.session = sessions(self._connection, options)
        except BaseException:
            self._connection.close()
            raise

    def body(self, function: Callable[[Session], Any], seconds: float) -> object:
        """Everything up to the COMMIT."""
        session, connection = self.session, self._connection
        self._transaction = session.begin()
        session.connection()
        _refuse_autocommit(connection, self._database)
        self._bound_waits(seconds)
        self._root = connection.get_transaction()
        value = function(session)
        _refuse_awaitable(value)
        self._check_open()
        session.flush()
        self._check_in_database()
        return value

    def judged(self, error: Exception) -> Outcome:
        """What an error from before the COMMIT makes of the attempt. Rolls it back.

        Raises:
            Exception: the error itself, where it is none that a repetition could help.
        """
        self._roll_back()
        cause = error.__cause__ if isinstance(error, WriteConflict | _Swallowed) else error
        conflict = None if cause is None else conflict_of(cause)
        if conflict is None:
            cause = self._earlier(error) or cause
            conflict = None if cause is None else conflict_of(cause)
        if conflict is None and isinstance(error, WriteConflict) and isinstance(cause, SQLAlchemyError):
            conflict = Conflict.SERIALIZATION  # create_or_get: what is in the way isn't to be seen by this transaction
        if conflict is not None:
            outcome = Outcome(Verdict.CONFLICT, error=error if isinstance(error, WriteConflict) else cause)
            outcome.told = conflict.value
            if isinstance(cause, StaleDataError):
                outcome.table, outcome.key = self.session.changes.meant_by(cause)
            elif isinstance(error, WriteConflict):
                outcome.table, outcome.key = error.table, error.key
            return outcome
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return Outcome(Verdict.LOST, error=error)
        if isinstance(error, _Swallowed):
            raise SqlUseError(str(error)) from cause
        raise error

    def judged_commit(self, error: DBAPIError) -> Outcome:
        """What an error of COMMIT itself makes of the attempt.

        Raises:
            DBAPIError: the database refuses to commit this, and would again.
        """
        self._roll_back()
        if not surely_not_committed(error):
            return Outcome(Verdict.UNKNOWN, error=error)
        conflict = conflict_of(error)
        if conflict is None:
            raise error
        outcome = Outcome(Verdict.CONFLICT, error=error)
        outcome.told = conflict.value
        return outcome

    def close(self) -> None:
        """Give back the connection, as it was."""
        try:
            self._roll_back()
            with contextlib.suppress(SQLAlchemyError):
                Session.close(self.session)
            if self._put_back is not None and not self._connection.invalidated:
                _run(self._connection, self._put_back)
        except BaseException as error:  # each driver has its own; and after an interrupt nobody else would put it back
            self._connection.invalidate()
            if not isinstance(error, Exception):
                raise
        finally:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.close()

    def _bound_waits(self, seconds: float) -> None:
        """Have the database end each wait for a lock when there is no more time; in SQLite, have it begin."""
        seconds = min(seconds, LONGEST_SECONDS)
        seconds -= min(_ANSWER_SECONDS, seconds / 4)
        milliseconds = max(1, math.floor(seconds * 1000))
        connection = self._connection
        if self._database is Database.POSTGRESQL:
            # SET, not SELECT: that would be the transaction's first query, which SET TRANSACTION must come before.
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
        elif self._database is Database.SQLITE:
            before = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
            self._put_back = f"PRAGMA busy_timeout = {before}"
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {milliseconds}")
            if in_transaction(connection):  # a listener's BEGIN, or the driver's; nothing was done in it
                _run(connection, "ROLLBACK")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif self._database is not None:
            self._put_back = _MYSQL_PUT_BACK
            connection.exec_driver_sql(_MYSQL_SET.format(_whole_seconds(seconds, self._database)))

    def _check_open(self) -> None:
        """See that the session's transaction is the one that was begun, and hasn't failed."""
        is_there = self._connection.invalidated or self._connection.get_transaction() is self._root
        if self._transaction.is_active and self.session.get_transaction() is self._transaction and is_there:
            return
        failed = getattr(self._transaction, "_rollback_exception", None)
        if failed is None:
            raise ended("its transaction's commit() or rollback()")
        self._went_on(failed)

    def _check_in_database(self) -> None:
        """See that the database has that transaction open, too. Asks the driver, not the server."""
        last = self._errors[-1] if self._errors else None
        if self._database is Database.SQLITE:
            if not in_transaction(self._connection):
                self._not_open(last)
        elif self._connection.dialect.name == "postgresql":
            status = postgresql_status(self._connection)
            if status in FAILED:
                self._went_on(last)
            if status in IDLE and self._database is Database.POSTGRESQL:
                self._not_open(None)
        else:
            error = self._given_up()
            if error is not None:
                self._went_on(error)

    def _earlier(self, error: Exception) -> BaseException | None:
        """What ended the transaction before this error, which only tells that it was over: the function had gone on."""
        if isinstance(error, PendingRollbackError):
            failed: BaseException | None = getattr(self._transaction, "_rollback_exception", None)
            return failed
        if sqlstate_of(error) == _IN_FAILED:
            return next((each for each in reversed(self._errors) if sqlstate_of(each) != _IN_FAILED), None)
        # In MySQL and MariaDB the savepoint that is to be rolled back to goes with a deadlock.
        return self._given_up() if isinstance(error, DBAPIError) else None

    def _given_up(self) -> BaseException | None:
        """The conflict at which MySQL or MariaDB took back the whole transaction."""
        if self._database not in (Database.MYSQL, Database.MARIADB):
            return None
        whole = (Conflict.DEADLOCK, Conflict.SERIALIZATION)
        return next((error for error in self._errors if conflict_of(error) in whole), None)

    def _not_open(self, last: BaseException | None) -> NoReturn:
        if last is not None:
            self._went_on(last)
        raise ended("COMMIT or ROLLBACK of its driver's connection")

    def _went_on(self, error: BaseException | None) -> NoReturn:
        raise _Swallowed(
            f"{WHAT}: the function caught an error of the database and went on, but with that error its transaction was over: "
            f"nothing "
            f"of it was committed. Let the error through, or put what may fail into `with session.begin_nested():`. It was: "
            f"{error}"
        ) from error

    def _roll_back(self) -> None:
        """Idempotent; raises nothing: what was raised before tells more."""
        try:
            if self.session.in_transaction():
                Session.rollback(self.session)
        except Exception:  # noqa: BLE001  # each driver has its own; the connection is gone, and with it the transaction
            self._connection.invalidate()


class _Swallowed(Exception):
    """A function has gone on after its transaction was over; the cause tells why."""


def _known(connection: Connection) -> Database | None:
    """Which database; None for one whose locks aren't known, or that has none: Aurora DSQL."""
    try:
        return database_of(connection, WHAT)
    except SqlUseError:
        return None


def _whole_seconds(seconds: float, database: Database) -> int:
    """MariaDB's 0 is NOWAIT. MySQL's least is 1, and InnoDB looks there once in a second who has waited long enough."""
    return max(1, math.floor(seconds - 1)) if database is Database.MYSQL else math.floor(seconds)


def _refuse_autocommit(connection: Connection, database: Database | None) -> None:
    option = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    if option or (database is not None and is_autocommit(connection, database)):
        raise SqlUseError(
            f"{WHAT} needs a transaction, and over this engine every statement is one of its own: its isolation level is "
            f"AUTOCOMMIT, "
            'or its driver was told so. Give retry_conflicts an isolation="READ COMMITTED" or stricter, or an engine without it.'
        )


def _refuse_awaitable(value: object) -> None:
    if any(hasattr(type(value), name) for name in _LATER):
        close = getattr(value, "close", None)
        if callable(close):
            close()  # a coroutine that never runs would only warn, later and elsewhere
        raise SqlUseError(
            f"{WHAT} got {type(value).__name__} from its function, which would run after the transaction is over: pass a "
            f"function that "
            "does its work and returns; of an asynchronous one, run what speaks to the database in a thread (asyncio.to_thread)"
        )


def _run(connection: Connection, statement: str) -> None:
    """Over the driver: SQLAlchemy would begin a transaction."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()
