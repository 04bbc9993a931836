"""SQLAlchemy's side of a pool, and what a pool does with SQLAlchemy's connections.

SQLAlchemy opens, checks, invalidates and rolls back; ``ConnectionPool`` says when a connection may be open, and whose it is.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading

from sqlalchemy.pool import Pool

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections import drivers, server_side, sqlalchemy_users
from perinvoke.environment.connections.entry import Cleaning
from perinvoke.environment.connections.keeper import KEEPER
from perinvoke.environment.connections.network_end import CLOSE_SECONDS, NetworkEnd, closed_in_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from types import FrameType
    from typing import Any

    from perinvoke.environment.connections.connection_pool import ConnectionPool
    from perinvoke.environment.connections.connector import Borrower
    from perinvoke.environment.connections.entry import Entry, Loan
    from perinvoke.environment.connections.figures import Stats

_ENTRY = "perinvoke.entry"  # in a record's record_info, as long as it lives
_CLIENT_STATE = "perinvoke.client_state"  # in its info, as long as the connection lives
# Seconds. A server that lives ends a session within milliseconds; a handler doesn't wait for another.
_CLOSE_IN_HANDLER_SECONDS = 0.1
# From a pool's _do_return_conn up to SQLAlchemy's _finalize_fairy, and one to spare.
_FRAMES = 6

logger = logging.getLogger("perinvoke")


class EnginePool(Pool):
    """SQLAlchemy's side of a pool; lives as long as its engine. ``stats()`` gives the figures of all workers."""

    _sqla_logger_namespace = "sqlalchemy.pool.EnginePool"  # with SQLAlchemy's other pools; else perinvoke's logger has it all

    def __init__(self, creator: Any, lender: ConnectionPool, borrower: Callable[[], Borrower], **options: Any) -> None:
        super().__init__(creator, **options)
        self.lender = lender
        self._borrower = borrower
        # Loans whose connections were lost, and the sessions that used these: by whose loans they were.
        self._bereft: dict[Hashable, list[tuple[Loan, Any]]] = {}

    def stats(self) -> Stats:
        """The figures of all workers of the execution environment. Doesn't block."""
        return self.lender.stats()

    def status(self) -> str:
        """The same in words."""
        stats = self.stats()
        return f"{stats.name}: {stats.open} of {stats.max_connections} open, {stats.in_use} in use, {stats.waiting} workers wait"

    def recreate(self) -> EnginePool:
        """This pool: an engine that is disposed of goes on with the same budget."""
        return self

    def dispose(self) -> None:
        """Close what is idle, soon, and what is in use when it is returned. Doesn't block."""
        self.lender.dispose()

    def _do_get(self) -> Any:
        entry = self.lender.lend(self._borrower())
        entry.connection.record_info[_ENTRY] = entry
        sqlalchemy_users.lent(entry.connection)
        return entry.connection

    def _do_return_conn(self, record: Any) -> None:
        entry: Entry | None = record.record_info.get(_ENTRY)
        if entry is not None:
            loan = entry.loan
            if loan is not None and loan.key is not None and record.dbapi_connection is None:
                self._bereft.setdefault(loan.key, []).append((loan, sqlalchemy_users.session_of(record)))
            self.lender.take_back(entry, dropped=_by_garbage_collector())

    def end_bereft(self, key: Hashable) -> None:
        """Have the sessions begin anew that lost their connections. Not those of threads that are left over."""
        for loan, references in self._bereft.pop(key, ()):
            try:
                if not loan.is_elsewhere():
                    sqlalchemy_users.end_session(references)
            except Exception as error:  # noqa: BLE001  # of somebody's listener; its invocation has ended
                logger.debug("a session that lost its connection of %s can't be rolled back: %r", self.lender.name, error)

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        """Every close of a connection goes through here, also of one that is lost in a handler, which doesn't wait for it."""
        close = super()._close_connection
        seconds = CLOSE_SECONDS if threading.current_thread().name == KEEPER else _CLOSE_IN_HANDLER_SECONDS
        closed_in_order(drivers.fileno(connection), lambda: close(connection, terminate=terminate), seconds)

    def new_record(self) -> Any:
        """A connection that is open, as SQLAlchemy's pools keep them."""
        return self._create_connection()

    def close_opened(self, connection: Any) -> None:
        """Close one that was opened, and whose set-up failed. SQLAlchemy does so from 2.1 on."""
        self._close_connection(connection, terminate=True)


class EngineConnector:
    """What is done with the connections of an engine; lives as long as it. Its connections are SQLAlchemy's records of them."""

    def __init__(self, reset: str | Callable[[Any], object], is_clean: Callable[[Any], bool] | None = None) -> None:
        self.pool: EnginePool
        self.dialect: Any
        self.own_listeners = 0  # SQLAlchemy's own and perinvoke's: the first ones of the event ``connect``
        self.first_words: Callable[[Any, Any], None] | None = None  # perinvoke's among them
        self._reset = reset
        self._is_clean = is_clean  # of a driver's connection, without asking the server; None: nobody knows
        self._cannot_reset = False
        self._just_opened = threading.local()

    def open(self) -> Any:
        """A new record with a connection."""
        with self._closing_what_fails():
            return self.pool.new_record()

    def reopen(self, connection: Any) -> Any:
        """The same record with another connection."""
        connection.invalidate()
        with self._closing_what_fails():
            connection.get_connection()
        return connection

    def opened(self, dbapi_connection: Any) -> Any:
        """Note what the driver has just opened in this thread; it is no record's yet."""
        self._just_opened.connection = dbapi_connection
        return dbapi_connection

    @contextlib.contextmanager
    def _closing_what_fails(self) -> Iterator[None]:
        """Whatever listeners say to a new connection: where they fail, it is closed before its slot is given back."""
        self._just_opened.connection = None
        try:
            yield
        except BaseException:
            if self._just_opened.connection is not None:
                self.pool.close_opened(self._just_opened.connection)
            raise
        finally:
            self._just_opened.connection = None

    def connected(self, dbapi_connection: Any, record: Any) -> None:
        """SQLAlchemy has opened a connection, perhaps in place of a record's earlier one."""
        driver_connection = record.driver_connection or dbapi_connection
        record.info[_CLIENT_STATE] = drivers.client_state(driver_connection)
        entry: Entry | None = record.record_info.get(_ENTRY)
        if entry is not None:
            entry.end = NetworkEnd.of(drivers.fileno(driver_connection))
            entry.note(states.IN_USE)

    def close(self, connection: Any) -> None:
        """Close the record's connection."""
        connection.close()

    def is_open(self, connection: Any) -> bool:
        """Whether the record has a connection: SQLAlchemy takes it away when it is lost or detached."""
        return connection.dbapi_connection is not None

    def is_alive(self, connection: Any) -> bool:
        """Whether the server answers. What the ping may have begun is ended."""
        try:
            if not self.dialect.do_ping(connection.dbapi_connection):
                return False
            self.dialect.do_rollback(connection.dbapi_connection)
        except self.dialect.loaded_dbapi.Error:
            return False
        return True

    def fileno(self, connection: Any) -> int | None:
        """Of the driver's connection."""
        return drivers.fileno(connection.driver_connection)

    def recover(self, connection: Any, *, is_cut: bool) -> None:
        """Have SQLAlchemy roll back and take it from whoever still refers to it."""
        try:
            if not is_cut:
                sqlalchemy_users.end_session(sqlalchemy_users.session_of(connection))
        finally:
            fairy = connection.fairy_ref() if connection.fairy_ref is not None else None
            if fairy is not None and fairy.is_valid:
                fairy.close()
            if fairy is not None and fairy.is_valid:  # used twice, or interrupted before SQLAlchemy had counted it
                fairy.invalidate()
            sqlalchemy_users.let_go(connection)
        if connection.dbapi_connection is not None:
            self.dialect.do_rollback(connection.dbapi_connection)

    def end_bereft(self, key: Hashable) -> None:
        """Have the sessions begin anew that lost their connections."""
        self.pool.end_bereft(key)

    def begin_cleaning(self, connection: Any) -> Cleaning:
        """See whether the option ``reset`` leaves anything to do; psycopg can send it without waiting."""
        drivers.restore_client_state(connection.driver_connection, connection.info.get(_CLIENT_STATE, {}))
        if self._is_clean is not None and self._is_clean(connection.driver_connection):
            return Cleaning.NOTHING
        if callable(self._reset) or self._reset == "discard":
            return Cleaning.BLOCKS
        if self._reset == "rollback" or not server_side.has_session_reset(self.dialect.name):
            return Cleaning.NOTHING
        return Cleaning.SENT if server_side.send_reset(self.dialect, connection.driver_connection) else Cleaning.BLOCKS

    def end_cleaning(self, connection: Any, seconds: float) -> None:
        """Hear the answer, and say again what listeners say to a new connection."""
        with self._told_once(connection):
            server_side.hear_reset(connection.driver_connection, seconds)
        self._set_up_anew(connection)

    def clean(self, connection: Any) -> None:
        """Reset the session, as the option ``reset`` says, and wait for it."""
        if callable(self._reset):
            self._reset(connection.dbapi_connection)
            return
        reset = server_side.discard_all if self._reset == "discard" else server_side.reset_session
        with self._told_once(connection):
            reset(self.dialect, connection.driver_connection)
        drivers.restore_client_state(connection.driver_connection, connection.info.get(_CLIENT_STATE, {}))
        self._set_up_anew(connection)

    def _set_up_anew(self, connection: Any) -> None:
        """What listeners set when the connection was opened, a reset has taken away.

        Not SQLAlchemy's own for psycopg: they set what the client keeps, and would set it twice.
        """
        first = self.own_listeners if self.dialect.driver == "psycopg" else 0
        for listener in itertools.islice(self.pool.dispatch.connect, first, None):
            if listener is not self.first_words:
                listener(connection.dbapi_connection, connection)

    @contextlib.contextmanager
    def _told_once(self, connection: Any) -> Iterator[None]:
        """Warn of a server or driver that knows no reset; not of a server that is gone."""
        try:
            yield
        except Exception as error:
            gone = isinstance(error, TimeoutError) or (
                isinstance(error, self.dialect.loaded_dbapi.Error)
                and self.dialect.is_disconnect(error, connection.dbapi_connection, None)
            )
            if not gone and not self._cannot_reset:
                self._cannot_reset = True
                logger.warning(
                    "perinvoke can't reset the sessions of %s, and replaces its connections after each invocation: %s: %s. "
                    'engine(…, reset="rollback") keeps them, and what invocations leave in them.',
                    self.pool.lender.name,
                    type(error).__name__,
                    error,
                )
            raise


def _by_garbage_collector() -> bool:
    """Whether SQLAlchemy returns a connection that nobody refers to any more: its own ``_checkin`` isn't among the callers."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  # nothing public tells
    for _ in range(_FRAMES):
        if frame is None:
            break
        if frame.f_code.co_name == "_finalize_fairy":
            return frame.f_back is not None and frame.f_back.f_code.co_name != "_checkin"
        frame = frame.f_back
    return False
