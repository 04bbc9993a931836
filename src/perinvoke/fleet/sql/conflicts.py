"""Which errors of a database only say that two transactions met, by the numbers that databases give them; never by their words.

Everything here is pure. A number is looked for where each driver keeps it: psycopg, psycopg2, pg8000 and asyncpg tell an
SQLSTATE; PyMySQL, mysqlclient, MySQL Connector and MariaDB Connector tell MySQL's own number, whose SQLSTATEs say too little (a
lock time-out is HY000, "general error"); sqlite3 tells SQLite's extended result code.

What a conflict leaves of the transaction differs: PostgreSQL ends all of it, always. MySQL and MariaDB end all of it at a
deadlock, and one statement at a lock time-out (unless ``innodb_rollback_on_timeout`` is on). SQLite ends the statement.
"""

from __future__ import annotations

import enum
import sqlite3

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import StaleDataError

from perinvoke.fleet.errors import RowLocked


class Conflict(enum.Enum):
    """How two transactions met."""

    SERIALIZATION = "serialization failure"  # what it has read was changed by others before it wrote
    DEADLOCK = "deadlock"  # each waited for the other, and this one was chosen to give way
    LOCK_TIMEOUT = "lock time-out"  # a lock wasn't to be had in time, or at once
    STALE = "stale version"  # an UPDATE or DELETE found no row with the version that was read
    BUSY = "database busy"  # another connection writes to the SQLite database, or reads what is to be written


# https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_SQLSTATE = {
    "40001": Conflict.SERIALIZATION,
    # Aurora DSQL: 40001, with these in the message; in its first versions they were the code itself.
    "OC000": Conflict.SERIALIZATION,
    "OC001": Conflict.SERIALIZATION,
    "40P01": Conflict.DEADLOCK,
    "55P03": Conflict.LOCK_TIMEOUT,
}
_QUERY_CANCELED = "57014"
# https://mariadb.com/kb/en/mariadb-error-code-reference/ and MySQL's server error reference.
_BY_NUMBER = {
    1205: Conflict.LOCK_TIMEOUT,  # ER_LOCK_WAIT_TIMEOUT; in MariaDB also NOWAIT's
    3572: Conflict.LOCK_TIMEOUT,  # ER_LOCK_NOWAIT, MySQL's
    1213: Conflict.DEADLOCK,  # ER_LOCK_DEADLOCK; also a Galera cluster's when two nodes wrote the same
    1614: Conflict.DEADLOCK,  # ER_XA_RBDEADLOCK
    3058: Conflict.DEADLOCK,  # ER_USER_LOCK_DEADLOCK: of GET_LOCK, MySQL's
    1020: Conflict.SERIALIZATION,  # ER_CHECKREAD: MariaDB's innodb_snapshot_isolation, on since 11.6
    3101: Conflict.SERIALIZATION,  # ER_TRANSACTION_ROLLBACK_DURING_COMMIT: MySQL's group replication
}
# https://www.sqlite.org/rescode.html
_SQLITE_BUSY, _SQLITE_LOCKED, _SQLITE_BUSY_SNAPSHOT = 5, 6, 517
_PRIMARY = 0xFF  # the part of an extended result code that says what kind it is
_MYSQL_DRIVERS = {"pymysql", "MySQLdb", "mysql", "mariadb", "aiomysql", "asyncmy"}


def conflict_of(error: BaseException) -> Conflict | None:
    """The conflict that an error of SQLAlchemy or of a driver tells of; None for all others. Doesn't look at causes.

    ``RowLocked`` is one, too: a lock time-out with its name in place of the database's.
    """
    if isinstance(error, StaleDataError):
        return Conflict.STALE
    if isinstance(error, RowLocked):
        return Conflict.LOCK_TIMEOUT
    told = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(told, sqlite3.Error):
        return _of_sqlite(getattr(told, "sqlite_errorcode", None))
    number = mysql_number_of(told)
    if number is not None:
        return _BY_NUMBER.get(number)
    sqlstate = sqlstate_of(told)
    return None if sqlstate is None else _BY_SQLSTATE.get(sqlstate)


def is_cancelled(error: BaseException) -> bool:
    """Whether PostgreSQL says that it has ended a statement early: by its time-out, or because an administrator asked."""
    return sqlstate_of(error) == _QUERY_CANCELED


def sqlstate_of(error: object) -> str | None:
    """The five characters that PostgreSQL's drivers tell, and newer versions of PyMySQL; None where there are none."""
    told = error.orig if isinstance(error, DBAPIError) else error
    for name in ("sqlstate", "pgcode"):  # psycopg's and asyncpg's; psycopg2's and asyncpg's under SQLAlchemy
        value = getattr(told, name, None)
        if isinstance(value, str):
            return value
    arguments = getattr(told, "args", ())
    fields = arguments[0] if arguments else None
    value = fields.get("C") if isinstance(fields, dict) else None  # pg8000: the fields of the server's message, by their letters
    return value if isinstance(value, str) else None


def mysql_number_of(error: object) -> int | None:
    """MySQL's and MariaDB's number; None for errors of other drivers, and those that tell none."""
    told = error.orig if isinstance(error, DBAPIError) else error
    if not any(kind.__module__.partition(".")[0] in _MYSQL_DRIVERS for kind in type(told).__mro__):
        return None
    arguments = getattr(told, "args", ())
    for value in (getattr(told, "errno", None), arguments[0] if arguments else None):
        if isinstance(value, int):
            return value
    return None


def _of_sqlite(code: int | None) -> Conflict | None:
    if code is None:
        return None
    if code == _SQLITE_BUSY_SNAPSHOT:  # in WAL mode: others have written since this transaction first read; waiting won't help
        return Conflict.SERIALIZATION
    return Conflict.BUSY if code & _PRIMARY in (_SQLITE_BUSY, _SQLITE_LOCKED) else None
