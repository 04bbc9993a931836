"""What each database driver calls the things that perinvoke needs of it, and which package brings it.

A driver that isn't here works too: its connections are counted, checked and rolled back, but not watched at the socket.
"""

from __future__ import annotations

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# By the names of SQLAlchemy, dialect+driver: the argument that bounds connecting, and the least whole seconds it takes. psycopg
# and libpq count anything below two seconds as two.
_CONNECT_TIMEOUTS = {
    "postgresql+psycopg": ("connect_timeout", 2),
    "postgresql+psycopg2": ("connect_timeout", 2),
    "mysql+pymysql": ("connect_timeout", 1),
    "mysql+mysqldb": ("connect_timeout", 1),
    "mysql+mysqlconnector": ("connection_timeout", 1),
    "mariadb+pymysql": ("connect_timeout", 1),
    "mariadb+mysqldb": ("connect_timeout", 1),
    "mariadb+mysqlconnector": ("connection_timeout", 1),
    "mariadb+mariadbconnector": ("connect_timeout", 1),
}
# What a handler may change in a driver's connection that no reset of the server's undoes. psycopg; psycopg2; pg8000 and others;
# PyMySQL and mysqlclient, where autocommit is a method.
_CLIENT_STATE = (
    *("autocommit", "isolation_level", "read_only", "readonly", "deferrable"),
    *("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "cursorclass"),
)
# The extra of perinvoke that brings a driver for a database, and what else brings one of those that SQLAlchemy knows.
EXTRAS = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}
PACKAGES = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "pg8000": "pg8000",
    "pymysql": "PyMySQL",
    "MySQLdb": "mysqlclient",
    "mysql": "mysql-connector-python",
    "mysql.connector": "mysql-connector-python",
    "oracledb": "oracledb",
    "mariadb": "mariadb",
    "pyodbc": "pyodbc",
}


def bounded(driver: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The arguments of ``connect``, so that it takes no longer than ``seconds``, as nearly as the driver can count."""
    name, least = _CONNECT_TIMEOUTS.get(driver, ("", 0))
    if not name or seconds == math.inf:
        return arguments
    whole = max(least, math.floor(seconds))
    own = _as_number(arguments.get(name))
    return {**arguments, name: whole if own is None else min(own, whole)}


def fileno(connection: Any) -> int | None:
    """The descriptor of a driver's connection; None where it has none, or none that is known."""
    for owner in (connection, getattr(connection, "_usock", None), getattr(connection, "_sock", None)):  # pg8000, PyMySQL
        ask = getattr(owner, "fileno", None)
        if callable(ask):
            try:
                fd = ask()
            except Exception:  # noqa: BLE001, S112  # closed, or no socket; each driver has an error of its own for that
                continue
            if isinstance(fd, int) and fd >= 0:
                return fd
    return None


def client_state(connection: Any) -> dict[str, Any]:
    """What the driver keeps for itself, and a handler may change. Doesn't ask the server."""
    state = {
        name: getattr(connection, name)
        for name in _CLIENT_STATE
        if not callable(getattr(type(connection), name, None)) and hasattr(connection, name)
    }
    if _has_autocommit_methods(connection):
        state["autocommit"] = bool(connection.get_autocommit())
    return state


def restore_client_state(connection: Any, state: dict[str, Any]) -> None:
    """Bring it back to ``state``, where it was changed. Not inside a transaction."""
    by_method = _has_autocommit_methods(connection)
    for name, value in state.items():
        if name == "autocommit" and by_method:
            if bool(connection.get_autocommit()) is not value:
                connection.autocommit(value)
        elif getattr(connection, name) is not value and getattr(connection, name) != value:
            setattr(connection, name, value)


def _has_autocommit_methods(connection: Any) -> bool:
    return callable(getattr(connection, "get_autocommit", None)) and callable(getattr(connection, "autocommit", None))


def _as_number(value: object) -> int | None:
    """The user's own time-out, which a URL's query has as text; None where there is none. 0 means none to libpq."""
    try:
        return int(float(str(value))) or None
    except ValueError:
        return None
