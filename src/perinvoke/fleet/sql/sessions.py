"""What a session has to be like for a lock: one of SQLAlchemy's ORM, not asynchronous, with a transaction to hold the lock in."""

from __future__ import annotations

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session

from perinvoke.fleet.errors import SqlUseError
from perinvoke.fleet.sql.dialects import database_of, is_autocommit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy.orm import Mapper

    from perinvoke.fleet.sql.dialects import Database

    AnySession = Session | scoped_session[Any]


def session_of(given: object, what: str) -> Session:
    """The session that was given; a ``scoped_session``'s own.

    Args:
        given: what a caller has passed.
        what: the name of the function that it was passed to, for the message.

    Raises:
        SqlUseError: it is something else.
    """
    if isinstance(given, scoped_session):
        given = given()
    if isinstance(given, Session):
        return given
    if type(given).__module__.startswith("sqlalchemy.ext.asyncio"):
        raise SqlUseError(
            f"{what} waits, and takes no {type(given).__name__}: await session.run_sync(lambda session: {what}(session, …))"
        )
    if isinstance(given, Connection | Engine):
        raise SqlUseError(
            f"{what} takes a Session, not {type(given).__name__}. Session(connection) makes one over a connection; over Core, "
            "select(…).with_for_update() locks, and the engine's lock_timeout bounds the wait."
        )
    raise SqlUseError(f"{what} takes a sqlalchemy.orm.Session as its first argument, not {type(given).__name__}")


def connection_of(session: Session, what: str, mapper: Mapper[object] | None = None) -> tuple[Connection, Database]:
    """The connection that the session's transaction has, and which database it speaks to. The transaction is begun if need be.

    Raises:
        SqlUseError: there is no transaction and none may be begun, or it is no transaction: autocommit.
    """
    if not session.in_transaction() and not getattr(session, "autobegin", True):
        raise SqlUseError(
            f"{what} holds its lock until the transaction ends, and this session has none: it was made with autobegin=False. "
            "Use it inside `with session.begin():`"
        )
    connection = session.connection(bind_arguments=None if mapper is None else {"mapper": mapper})
    database = database_of(connection, what)
    if is_autocommit(connection, database):
        raise SqlUseError(
            f"{what} holds its lock until the transaction ends, and over this connection every statement is one: its isolation "
            "level is AUTOCOMMIT, or its driver was told so. Use an engine without it, or engine.execution_options("
            'isolation_level="READ COMMITTED").'
            if database.value != "SQLite"
            else f"{what} holds its lock until the transaction ends, and over this connection there is none: sqlite3's "
            "isolation_level is None, or its autocommit True. Leave them as they are, or have a listener send BEGIN."
        )
    return connection, database
