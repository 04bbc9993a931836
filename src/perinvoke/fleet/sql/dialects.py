"""Which database a connection speaks to, and what that one calls things.

PostgreSQL, MariaDB, MySQL and SQLite are known. What only speaks like one of them and has no locks to wait for is told apart
where that can be seen: Aurora DSQL by its host's name. A dialect that is none of these is refused, with what works there.
"""

from __future__ import annotations

import enum

from perinvoke.fleet.errors import SqlUseError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy import Connection

ELSEWHERE = (
    "What works with any database is retry_conflicts over a Versioned model; and, as a lock that is kept beside the database, "
    "perinvoke.fleet.dynamodb.LeaseLock, with its fencing token stored in the row"
)
# libpq's PQTRANS_IDLE and PQTRANS_INERROR, and the protocol's letters for them, which pg8000 keeps.
IDLE, FAILED = (0, b"I"), (3, b"E")
# MariaDB has SKIP LOCKED from 10.6 on, NOWAIT and WAIT since 10.3; MySQL has the first two from 8.0.1 on.
_SKIP_LOCKED_SINCE = (10, 6)
_MARIADB_SINCE = (10, 3)
_MYSQL_SINCE = (8, 0, 1)


class Database(enum.Enum):
    """The databases whose locks are known; the value is what people call them."""

    POSTGRESQL = "PostgreSQL"
    MARIADB = "MariaDB"
    MYSQL = "MySQL"
    SQLITE = "SQLite"


def database_of(connection: Connection, what: str) -> Database:
    """Which one a connection speaks to.

    Args:
        connection: any connection of SQLAlchemy's.
        what: the name of what needs a lock there, for the message.

    Raises:
        SqlUseError: one that isn't known, one without locks, or one that is too old.
    """
    dialect = connection.dialect
    version: tuple[Any, ...] = dialect.server_version_info or ()
    if dialect.name == "postgresql":
        if _is_dsql(connection):
            raise SqlUseError(
                f"{what} can't lock in Aurora DSQL: it lets nobody wait, and tells at the commit that two transactions met. "
                f"{ELSEWHERE}."
            )
        return Database.POSTGRESQL
    if dialect.name in ("mysql", "mariadb"):
        found = Database.MARIADB if getattr(dialect, "is_mariadb", False) else Database.MYSQL
        least = _MARIADB_SINCE if found is Database.MARIADB else _MYSQL_SINCE
        if version and version < least:
            raise SqlUseError(f"{what} needs {found.value} {_words(least)} or newer; this is {_words(version)}.")
        return found
    if dialect.name == "sqlite":
        return Database.SQLITE
    raise SqlUseError(
        f"{what} knows the locks of PostgreSQL, MariaDB, MySQL and SQLite; {dialect.name!r} isn't one of them. {ELSEWHERE}."
    )


def refuse_skip(connection: Connection, database: Database, what: str) -> None:
    """Refuse ``wait="skip"`` where the database has no SKIP LOCKED.

    Raises:
        SqlUseError: it hasn't.
    """
    version: tuple[Any, ...] = connection.dialect.server_version_info or ()
    if database is Database.MARIADB and version and version < _SKIP_LOCKED_SINCE:
        raise SqlUseError(
            f'{what}: wait="skip" needs MariaDB {_words(_SKIP_LOCKED_SINCE)} or newer; this is {_words(version)}. '
            'wait="nowait" works there.'
        )


def is_autocommit(connection: Connection, database: Database) -> bool:
    """Whether every statement over this connection is a transaction of its own. Asks the driver, not the server.

    SQLAlchemy's option tells it, and the driver's own, which SQLAlchemy needn't know of: ``connect_args={"autocommit": True}``.
    """
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return True
    driver: Any = connection.connection.dbapi_connection
    if database is Database.SQLITE:
        # isolation_level None: sqlite3 begins nothing by itself; with a listener that sends BEGIN, as SQLAlchemy's manual has it,
        # a transaction is open here. From Python 3.12 on the attribute autocommit may be in its place.
        if getattr(driver, "autocommit", None) is True:
            return True
        return getattr(driver, "isolation_level", "") is None and not in_transaction(connection)
    get = getattr(driver, "get_autocommit", None)  # PyMySQL, mysqlclient: what the server said last
    return bool(get() if callable(get) else getattr(driver, "autocommit", False))


def in_transaction(connection: Connection) -> bool:
    """Whether SQLite itself has a transaction open: sqlite3 begins one before the first write only."""
    driver: Any = connection.connection.driver_connection
    return bool(getattr(driver, "in_transaction", False))


def postgresql_status(connection: Connection) -> object:
    """The transaction's, as the driver heard it last from the server; None where it doesn't tell."""
    driver: Any = connection.connection.driver_connection
    status = getattr(getattr(driver, "info", None), "transaction_status", None)  # psycopg, psycopg2
    return getattr(driver, "_transaction_status", None) if status is None else status  # pg8000


def _is_dsql(connection: Connection) -> bool:
    host = str(connection.engine.url.host or "")
    return ".dsql." in host and host.endswith(".on.aws")


def _words(version: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in version)
