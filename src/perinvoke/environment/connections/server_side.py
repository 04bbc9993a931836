"""What is said to a database server about its sessions, in its own dialect of SQL; and what it is asked once.

* A session is cleaned between invocations: in PostgreSQL by what DISCARD ALL is short for, less the statements that the driver
  has prepared for itself; in MySQL and MariaDB by COM_RESET_CONNECTION. Others know no such thing: there, only what isn't
  committed is rolled back.
* PostgreSQL (from 14 on) looks every ``DEAD_CLIENT_CHECK_MS`` whether the client of a running statement is still there, so that
  the statement of a killed worker doesn't run on. MySQL and MariaDB can't: there it runs to its end. Its slot stays taken as long
  as the kernel remembers the dead worker's socket, which is a minute.
"""

from __future__ import annotations

import math
import time

from perinvoke.environment.connections.network_end import is_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

DEAD_CLIENT_CHECK_MS = 100
_DEAD_CLIENT_CHECK = f"SET client_connection_check_interval = {DEAD_CLIENT_CHECK_MS}"
_DEAD_CLIENT_CHECK_SINCE = (14,)
# Of the manual's page on DISCARD. In one message, so in one round trip; what was prepared by hand comes back as its answer, to
# which the others add no rows: pg8000 keeps the rows of all.
_CLEAN = (
    *(
        "CLOSE ALL",
        "SET SESSION AUTHORIZATION DEFAULT",
        "RESET ALL",
        "UNLISTEN *",
        "SELECT WHERE pg_advisory_unlock_all()::text IS NULL",
    ),
    *("DISCARD TEMP", "DISCARD SEQUENCES"),
)
# Of PgBouncer's manual, on transaction pooling.
_KEPT_BY_POOLER = ("client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings", "application_name", "IntervalStyle")
_PREPARED_BY_HAND = "SELECT name FROM pg_prepared_statements WHERE from_sql"
_cannot_look: set[int] = set()  # dialects, each of which lives as long as its engine
# libpq's PQTRANS_IDLE, PGRES_COMMAND_OK and PGRES_TUPLES_OK.
_IDLE, _SUCCESSES = 0, (1, 2)
# mysql_com.h; no driver but mysql-connector has a name for it.
_COM_RESET_CONNECTION = 0x1F
_MYSQL = ("mysql", "mariadb")

_LIMITS = {
    # PostgreSQL keeps some for superusers; the role's and the database's own limits are -1 for none.
    "postgresql": (
        "SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, "
        "(SELECT CASE WHEN rolconnlimit < 0 THEN 2147483647 ELSE rolconnlimit END FROM pg_roles WHERE rolname = current_user), "
        "(SELECT CASE WHEN datconnlimit < 0 THEN 2147483647 ELSE datconnlimit END FROM pg_database "
        "WHERE datname = current_database()))"
    ),
    "mysql": "SELECT LEAST(@@max_connections, IF(@@max_user_connections = 0, 2147483647, @@max_user_connections))",
}
_LIMITS["mariadb"] = _LIMITS["mysql"]


def has_session_reset(dialect: str) -> bool:
    """Whether the database can reset a session."""
    return dialect == "postgresql" or dialect in _MYSQL


def prepare(dialect: Any, connection: Any) -> None:
    """Set up a new session, a DB-API connection's. Blocks for a round trip."""
    words = _first_words(dialect)
    if words and hasattr(connection, "autocommit"):
        try:
            _run_outside_transactions(connection, *words)
        except dialect.loaded_dbapi.Error:  # a server on another system, or one that only speaks like PostgreSQL
            _cannot_look.add(id(dialect))


def _first_words(dialect: Any) -> list[str]:
    looks = dialect.name == "postgresql" and (dialect.server_version_info or ()) >= _DEAD_CLIENT_CHECK_SINCE
    return [_DEAD_CLIENT_CHECK] if looks and id(dialect) not in _cannot_look else []


def discard_all(dialect: Any, connection: Any) -> None:
    """DISCARD ALL, which takes the driver's own prepared statements, too. Blocks for two round trips."""
    if hasattr(connection, "prepare_threshold"):
        connection.prepare_threshold = None  # psycopg would go on using what is gone
    _run_outside_transactions(connection, "DISCARD ALL", *_first_words(dialect))
    _drop_notifications(connection)


def send_reset(dialect: Any, connection: Any) -> bool:
    """Tell PostgreSQL to reset a session, over psycopg, and don't wait for it; ``hear_reset`` does. False: not possible here."""
    libpq = getattr(connection, "pgconn", None)
    if dialect.name != "postgresql" or libpq is None or libpq.transaction_status != _IDLE:
        return False
    libpq.send_query("; ".join((*_CLEAN, *_first_words(dialect), _PREPARED_BY_HAND)).encode("ascii"))
    libpq.flush()  # a kernel's buffer takes that much; what it didn't take would go with the next
    return True


def hear_reset(connection: Any, seconds: float) -> None:
    """Hear what PostgreSQL answers to ``send_reset``. Waits for it so long; mostly it is there.

    Raises:
        TimeoutError: it isn't.
        OSError: the connection is lost, or the server refused.
    """
    libpq = connection.pgconn
    until = time.monotonic() + seconds
    by_hand: list[str] = []
    while (result := _next_result(libpq, until)) is not None:
        if result.status not in _SUCCESSES:
            raise OSError(f"the server answered: {result.error_message.decode('utf-8', 'replace')}")
        by_hand += [result.get_value(row, 0).decode() for row in range(result.ntuples)]
    _deallocate(connection, by_hand)
    while libpq.notifies() is not None:
        pass
    _drop_notifications(connection)


def _next_result(libpq: Any, until: float) -> Any:
    while libpq.is_busy():
        if not is_readable(libpq.socket, max(0.0, until - time.monotonic())):
            raise TimeoutError("the server has not answered in time")
        libpq.consume_input()
    return libpq.get_result()


def _deallocate(connection: Any, names: Sequence[str]) -> None:
    if names:
        quoted = [name.replace('"', '""') for name in names]
        _run_outside_transactions(connection, *(f'DEALLOCATE "{name}"' for name in quoted))


def clean_postgresql(connection: Any, first_words: Sequence[str] = ()) -> None:
    """All that DISCARD ALL does, but for what the driver has prepared; then say ``first_words``. Blocks for a round trip."""
    by_hand = _run_outside_transactions(connection, "; ".join((*_CLEAN, *first_words, _PREPARED_BY_HAND)))
    _deallocate(connection, [str(name) for (name,) in by_hand])
    _drop_notifications(connection)


def kept_by_pooler(connection: Any) -> tuple[Any, ...]:
    """The settings that PgBouncer keeps for each client, as the driver was told them last. Doesn't ask the server."""
    if hasattr(connection, "get_parameter_status"):  # psycopg2
        return tuple(connection.get_parameter_status(name) for name in _KEPT_BY_POOLER)
    return tuple(connection.info.parameter_status(name) for name in _KEPT_BY_POOLER)


def reset_kept_by_pooler(connection: Any) -> None:
    """Bring them back to what they were. Blocks for a round trip."""
    _run_outside_transactions(connection, "RESET ALL")


def reset_session(dialect: Any, connection: Any) -> None:
    """Bring the session back to how it was when it was opened and ``prepare``d. Blocks for a round trip, in MySQL for some.

    Raises:
        NotImplementedError: the driver has no way; a new connection does.
    """
    if dialect.name == "postgresql":
        clean_postgresql(connection, _first_words(dialect))
    elif hasattr(connection, "cmd_reset_connection"):
        _reset_mysql_connector(connection)
    elif hasattr(connection, "_execute_command") and hasattr(connection, "_read_ok_packet"):  # PyMySQL, which has no name for it
        connection._execute_command(_COM_RESET_CONNECTION, b"")  # noqa: SLF001  # the same
        connection._read_ok_packet()  # noqa: SLF001  # the same
        connection.set_character_set(connection.charset, connection.collation)
        _set_up_pymysql(connection)
    else:
        raise NotImplementedError(f"{type(connection).__module__} can't reset a session")


def _reset_mysql_connector(connection: Any) -> None:
    """It says what it says when it connects again; but for the database, which a reset leaves as it was changed to."""
    if not connection.cmd_reset_connection():
        raise NotImplementedError("the server doesn't know COM_RESET_CONNECTION")
    if connection._database:  # noqa: SLF001  # the one that it was connected to; its property asks the server
        connection.cmd_init_db(connection._database)  # noqa: SLF001  # the same


def _set_up_pymysql(connection: Any) -> None:
    """What PyMySQL says when it connects, a reset has taken away; the database that was changed to, it has left."""
    if connection.db:
        connection.select_db(connection.db)
    if connection.sql_mode is not None:
        run(connection, [f"SET sql_mode={connection.escape(connection.sql_mode)}"])
    if connection.init_command is not None:
        run(connection, [connection.init_command])
        connection.commit()
    if connection.autocommit_mode is not None:
        connection.autocommit(connection.autocommit_mode)


def connection_limit(dialect: str, connection: Any) -> int | None:
    """How many connections the server allows this user; None where it doesn't say. Blocks for a round trip."""
    query = _LIMITS.get(dialect)
    if query is None:
        return None
    cursor = connection.cursor()
    try:
        cursor.execute(query)
        row = cursor.fetchone()
    finally:
        cursor.close()
    return int(row[0]) if row and row[0] is not None else None


def time_outs(dialect: str, *, statement_seconds: float | None, lock_seconds: float | None, local: bool = False) -> list[str]:
    """What sets the session's time-outs, or with ``local`` the transaction's; infinite: none. Nothing where there are none.

    MySQL has a time-out for statements that read only; MariaDB one for all.
    """
    statements = []
    if dialect == "postgresql":
        command = "SET LOCAL" if local else "SET"
        if statement_seconds is not None:
            statements.append(f"{command} statement_timeout = {_milliseconds(statement_seconds)}")
        if lock_seconds is not None:
            statements.append(f"{command} lock_timeout = {_milliseconds(lock_seconds)}")
    elif dialect in _MYSQL:
        if statement_seconds is not None:
            seconds = 0.0 if statement_seconds == math.inf else max(0.001, statement_seconds)
            statements.append(
                f"SET SESSION max_statement_time = {seconds:.3f}"
                if dialect == "mariadb"
                else f"SET SESSION max_execution_time = {round(seconds * 1000)}"
            )
        if lock_seconds is not None:
            whole = 1_073_741_824 if lock_seconds == math.inf else max(1, math.floor(lock_seconds))  # its largest value
            statements.append(f"SET SESSION innodb_lock_wait_timeout = {whole}")
    return statements


def run(connection: Any, statements: Sequence[str]) -> list[Any]:
    """Execute statements over a DB-API connection; the rows of the last one, if it has some. Blocks for a round trip each."""
    cursor = connection.cursor()
    # psycopg prepares what is executed often; a reset takes that away, and behind a pooler it may never have been there.
    is_psycopg = hasattr(connection, "prepare_threshold")
    options = {"prepare": False} if is_psycopg else {}
    try:
        for statement in statements:
            cursor.execute(statement, **options)
        while is_psycopg and cursor.nextset():
            pass  # other drivers keep the last answer only
        return list(cursor.fetchall()) if cursor.description else []
    finally:
        cursor.close()


def _run_outside_transactions(connection: Any, *statements: str) -> list[Any]:
    """DISCARD refuses to run inside a transaction, and what SET does in one goes with its rollback."""
    if not hasattr(connection, "autocommit"):  # which isn't in DB-API
        raise NotImplementedError(f"{type(connection).__module__} has no autocommit")
    before = connection.autocommit
    connection.rollback()  # nothing may be open when autocommit is switched
    if not before:
        connection.autocommit = True
    status = getattr(connection, "get_transaction_status", None)
    if callable(status) and status():  # psycopg2 doesn't see what was begun by hand
        run(connection, ["ROLLBACK"])
    try:
        return run(connection, statements)
    finally:
        if not before:
            connection.autocommit = False


def _drop_notifications(connection: Any) -> None:
    """What LISTEN has brought and nobody has read."""
    notifies = getattr(connection, "notifies", None)
    if isinstance(notifies, list):  # psycopg2
        notifies.clear()
    elif callable(notifies) and not getattr(connection, "_notify_handlers", None):  # psycopg; with handlers none are kept
        for _ in notifies(timeout=0):
            pass


def _milliseconds(seconds: float) -> int:
    return 0 if seconds == math.inf else max(1, math.floor(seconds * 1000))
