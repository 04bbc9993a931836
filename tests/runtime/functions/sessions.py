"""Functions over databases: one that leaves all kinds of session state, one that moves money, one that tells the pool's figures.

The variable SESSIONS_ENGINE says where connections come from: ``budget`` or ``pgbouncer``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

import perinvoke

if TYPE_CHECKING:
    from collections.abc import Callable

_BUDGET = int(os.environ.get("SESSIONS_BUDGET", "1"))


def _engine() -> sa.Engine:
    if os.environ.get("SESSIONS_ENGINE") == "pgbouncer":
        return perinvoke.engine("pgbouncer://default")
    return perinvoke.engine(os.environ["SESSIONS_URL"], max_connections=_BUDGET)


engine = _engine()
kept: list[Any] = []  # what a handler that forgets to give back a connection has put somewhere


class State(NamedTuple):
    """A kind of session state: a query for what is left of it, what that gives where nothing is, and how it is left."""

    look: str
    clean: object
    leave: str


STATES = {
    "SET": State("SHOW work_mem", "4MB", "SET work_mem = '77MB'"),
    "SET of a custom setting": State("SELECT coalesce(current_setting('app.name', true), '')", "", "SET app.name = 'ann'"),
    "SET SESSION CHARACTERISTICS": State(
        "SHOW default_transaction_read_only", "off", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    ),
    "SET search_path": State("SHOW search_path", '"$user", public', "SET search_path = pg_catalog"),
    "SET ROLE": State("SELECT current_user::text", "postgres", "SET ROLE pg_monitor"),
    "SET SESSION AUTHORIZATION": State("SELECT session_user::text", "postgres", "SET SESSION AUTHORIZATION pg_monitor"),
    "a temporary table": State("SELECT to_regclass('pg_temp.leftover')::text", None, "CREATE TEMP TABLE leftover (id int)"),
    "a session's advisory lock": State(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77", 0, "SELECT pg_advisory_lock(77)"
    ),
    "LISTEN": State("SELECT count(*) FROM pg_listening_channels()", 0, "LISTEN news"),
    "PREPARE": State("SELECT count(*) FROM pg_prepared_statements WHERE from_sql", 0, "PREPARE leftover AS SELECT 1"),
    "a cursor WITH HOLD": State("SELECT count(*) FROM pg_cursors", 0, "DECLARE leftover CURSOR WITH HOLD FOR SELECT 1"),
}


def _leave_transaction() -> None:
    """A transaction that SQLAlchemy doesn't know of, over a connection that is given back in order."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("INSERT INTO note VALUES ('left in a transaction')")


def _forget_connection() -> None:
    """A connection with an open transaction that is never given back, and that the garbage collector doesn't find."""
    connection = engine.connect()
    connection.exec_driver_sql("INSERT INTO note VALUES ('on a forgotten connection')")
    kept.append(connection)


def _raise_in_transaction() -> None:
    """A transaction that has failed, and its connection forgotten."""
    connection = engine.connect()
    kept.append(connection)
    try:
        connection.exec_driver_sql("SELECT 1 / 0")
    except sa.exc.DBAPIError:
        pass


TRANSACTIONS: dict[str, Callable[[], None]] = {
    "a transaction begun by hand": _leave_transaction,
    "a forgotten connection": _forget_connection,
    "a failed transaction": _raise_in_transaction,
}


def state(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Look for what another invocation has left, and leave the same."""
    what = event["what"]
    if what in STATES:
        kind = STATES[what]
        with engine.begin() as connection:
            backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            found = connection.exec_driver_sql(kind.look).scalar_one()
            connection.exec_driver_sql(kind.leave)
        return {"clean": found == kind.clean, "found": str(found), "backend": backend, "worker": os.getpid()}
    with engine.begin() as connection:
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        found = connection.exec_driver_sql(
            "SELECT (SELECT count(*) FROM note), (SELECT count(*) FROM pg_locks WHERE relation = 'note'::regclass"
            " AND mode = 'RowExclusiveLock'), pg_current_xact_id_if_assigned() IS NULL"
        ).one()
    TRANSACTIONS[what]()
    return {"clean": tuple(found) == (0, 0, True), "found": str(found), "backend": backend, "worker": os.getpid()}


def transfer(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """A transaction that takes a while, of a row of the worker's own."""
    seconds = event.get("seconds", 0.0)
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO account VALUES (:id, 1) ON CONFLICT (id) DO UPDATE SET balance = account.balance + 1"),
            {"id": os.getpid()},
        )
        if seconds:
            connection.execute(sa.text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
    time.sleep(event.get("wait_seconds", 0.0))
    return {"worker": os.getpid()}


def stats(event: Any, context: Any) -> dict[str, Any]:
    """The pool's figures over the whole environment."""
    figures = engine.pool.stats()  # type: ignore[attr-defined]  # of perinvoke's pool
    return {name: getattr(figures, name) for name in ("open", "in_use", "waiting", "max_connections", "leaks")}


def both(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """A transaction, or the figures."""
    return stats(event, context) if event.get("stats") else transfer(event, context)
