"""A SQLAlchemy engine whose pool is perinvoke's: an ordinary ``Engine``, for any driver that is not asynchronous."""

from __future__ import annotations

import logging

from perinvoke.environment.connections import drivers, server_side, sqlalchemy_users
from perinvoke.errors import MissingExtra, PoolError

try:
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, DisconnectionError, NoSuchModuleError
except ImportError as error:
    raise MissingExtra("engine needs SQLAlchemy, which isn't installed: pip install 'perinvoke[sql]'", extra="sql") from error

from perinvoke.environment.connections.sqlalchemy_pool import EngineConnector, EnginePool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal

    from sqlalchemy import URL, Engine

    from perinvoke.environment.connections.behind_pgbouncer import BehindPgBouncer
    from perinvoke.environment.connections.connection_pool import ConnectionPool
    from perinvoke.environment.connections.connector import Borrower

    TimeOut = float | Literal["deadline"] | None

logger = logging.getLogger("perinvoke")

_MASKED = "***"
# Parts of the names of what a URL's query may hold that nobody should read in a log.
_SECRETS = ("pass", "pwd", "secret", "token", "key", "credential", "odbc_connect")
_POOL_OPTIONS = (
    *("pool", "poolclass", "pool_size", "max_overflow", "pool_timeout", "pool_pre_ping", "pool_recycle", "pool_use_lifo"),
    *("pool_reset_on_return", "lender", "borrower"),
)


def new_engine(
    url: URL,
    *,
    connector: EngineConnector,
    lender: ConnectionPool,
    borrower: Callable[[], Borrower],
    wait_seconds: Callable[[], float],
    statement_timeout: TimeOut,
    lock_timeout: TimeOut,
    behind: BehindPgBouncer | None,
    options: dict[str, Any],
) -> Engine:
    """The engine.

    Args:
        url: where to.
        connector: of its pool.
        lender: its pool.
        borrower: on whose behalf a connection is asked for, now.
        wait_seconds: how long what runs now may wait; infinite without a deadline.
        statement_timeout: what the server is told at each loan, in seconds, or ``"deadline"``.
        lock_timeout: the same for locks.
        behind: the way through a PgBouncer, if one stands between: what is said to a session holds for a transaction at most.
        options: for ``create_engine``.

    Raises:
        PoolError: there is no such dialect, it is asynchronous, or an option contradicts the pool.
        MissingExtra: the driver isn't installed.
    """
    _check_options(options)
    try:
        engine = create_engine(url, poolclass=EnginePool, lender=lender, borrower=borrower, **options)
    except NoSuchModuleError as error:
        raise PoolError(
            f"{hidden(url)}: SQLAlchemy has no dialect or driver {url.drivername!r}, and no package here brings it. Known are "
            "postgresql+psycopg (pip install 'perinvoke[sql,postgresql]'), mysql+pymysql (pip install 'perinvoke[sql,mysql]') "
            "and sqlite, among others.",
            name=hidden(url),
        ) from error
    except ImportError as error:
        raise _missing_driver(url, error) from error
    if engine.dialect.is_async:
        raise PoolError(
            f"{hidden(url)}: {engine.dialect.driver} is an asynchronous driver; engine() makes an ordinary Engine. Name another, "
            "such as psycopg or pymysql.",
            name=hidden(url),
        )
    pool = engine.pool
    assert isinstance(pool, EnginePool)
    connector.pool, connector.dialect = pool, engine.dialect
    _bound_connecting(engine.dialect, connector, wait_seconds, behind)
    connector.first_words = _first_words(engine.dialect, connector, None if behind is not None else lender)
    event.listen(pool, "connect", connector.first_words)
    connector.own_listeners = len(list(pool.dispatch.connect))
    sqlalchemy_users.watch(engine)
    if statement_timeout is not None or lock_timeout is not None:
        _tell_time_outs(engine, wait_seconds, statement_timeout, lock_timeout, pooled=behind is not None)
    return engine


def _bound_connecting(
    dialect: Any, connector: EngineConnector, wait_seconds: Callable[[], float], behind: BehindPgBouncer | None
) -> None:
    """Have connecting end before the deadline.

    Not by the event ``do_connect``: the user's listeners there, which fetch tokens for passwords, come after ours.
    """
    original = dialect.connect
    driver = f"{dialect.name}+{dialect.driver}"

    def connect(*args: Any, **arguments: Any) -> Any:
        seconds = wait_seconds()
        bounded = drivers.bounded(driver, arguments, seconds)
        return connector.opened(
            original(*args, **bounded) if behind is None else behind.connect(original, args, bounded, seconds)
        )

    dialect.connect = connect


def parsed(url: object) -> URL:
    """The URL, whatever a caller passed.

    Raises:
        PoolError: it isn't one.
    """
    try:
        return make_url(url)  # type: ignore[arg-type]  # that is the question
    except (ArgumentError, ValueError) as error:
        raise PoolError(
            "engine's url can't be understood; it must look like postgresql+psycopg://user:password@host/database, with "
            "the names of a database and of its driver (pip install 'perinvoke[sql,postgresql]' brings that one). Special "
            "characters in a password are written as in any URL: urllib.parse.quote_plus(password).",
            name="engine",
        ) from error


def refuse_memory(url: URL) -> None:
    """See that a database is one that several connections can share.

    Raises:
        PoolError: it is SQLite's in memory.
    """
    in_memory = url.database in {None, "", ":memory:"} or url.query.get("mode") == "memory"
    if url.get_backend_name() == "sqlite" and in_memory:
        raise PoolError(
            f"{hidden(url)}: a database in memory belongs to one connection, and is gone with it. Name a file, such as "
            "sqlite:////tmp/app.db; for one in memory use sqlalchemy.create_engine.",
            name=hidden(url),
        )


def hidden(url: URL) -> str:
    """The URL as text, without what nobody should read in a log."""
    secrets = {name: _MASKED for name in url.query if any(part in name.lower() for part in _SECRETS)}
    return url.update_query_dict(secrets).render_as_string(hide_password=True)


def _check_options(options: dict[str, Any]) -> None:
    wrong = [name for name in _POOL_OPTIONS if name in options]
    if wrong:
        raise PoolError(
            f"engine() has a pool of its own, which {', '.join(wrong)} would contradict: max_connections, idle_seconds, "
            "max_age_seconds and check_after_seconds say how it works",
            name="engine",
        )


def _missing_driver(url: URL, error: ImportError) -> MissingExtra:
    database = url.get_backend_name()
    package = drivers.PACKAGES.get((error.name or "").partition(".")[0], error.name or str(error))
    extra = drivers.EXTRAS.get(database, "")
    brings = f"pip install 'perinvoke[sql,{extra}]' brings one for {database}, " if extra else ""
    return MissingExtra(
        f"{hidden(url)}: its driver isn't installed ({error}): {brings}pip install '{package}' this one", extra=extra or "sql"
    )


def _first_words(dialect: Any, connector: EngineConnector, lender: ConnectionPool | None) -> Callable[[Any, Any], None]:
    """The listener that sets up each new session, and sees once in a process whether the server allows the budget.

    Without a ``lender`` there is none that the server counts, and no session of its own.
    """

    def set_up(dbapi_connection: Any, record: Any) -> None:
        connector.connected(dbapi_connection, record)
        if lender is None:
            return
        if not lender.is_limit_known():
            lender.check_limit(_asked(dialect, dbapi_connection))
        server_side.prepare(dialect, dbapi_connection)

    return set_up


def _asked(dialect: Any, dbapi_connection: Any) -> int | None:
    """How many connections the server allows; None where it doesn't say, or not to this user."""
    try:
        return server_side.connection_limit(dialect.name, dbapi_connection)
    except dialect.loaded_dbapi.Error as error:
        logger.debug("a server doesn't tell how many connections it allows: %s", error)
        return None
    finally:
        dialect.do_rollback(dbapi_connection)


def _tell_time_outs(
    engine: Engine, wait_seconds: Callable[[], float], statement_timeout: TimeOut, lock_timeout: TimeOut, *, pooled: bool
) -> None:
    """Have the server told how long statements and locks may take: at each loan, or when a transaction begins behind a pooler."""
    dialect: Any = engine.dialect

    def statements() -> list[str]:
        kind = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        return server_side.time_outs(
            kind,
            statement_seconds=wait_seconds() if statement_timeout == "deadline" else statement_timeout,
            lock_seconds=wait_seconds() if lock_timeout == "deadline" else lock_timeout,
            local=pooled,
        )

    def at_loan(dbapi_connection: Any, _record: Any, _proxy: Any) -> None:
        try:
            server_side.run(dbapi_connection, statements())
            dialect.do_commit(dbapi_connection)  # what SET does in a transaction goes with its rollback
        except dialect.loaded_dbapi.Error as error:
            if dialect.is_disconnect(error, dbapi_connection, None):
                raise DisconnectionError from error  # SQLAlchemy connects anew
            raise

    def at_begin(connection: Any) -> None:
        for statement in statements():
            connection.exec_driver_sql(statement)

    if pooled:
        event.listen(engine, "begin", at_begin)
    else:
        event.listen(engine.pool, "checkout", at_loan)
