"""``engine`` and ``pool``: connections that all workers of the execution environment count together."""

from __future__ import annotations

import functools
import hashlib
import re
import threading

from perinvoke.environment.connections.budgets import budgets, checked
from perinvoke.environment.connections.connection_pool import ConnectionPool
from perinvoke.environment.connections.plain import PlainConnector, PlainPool
from perinvoke.environment.names import encoded_length, is_text
from perinvoke.errors import PoolError
from perinvoke.invocation.context import running
from perinvoke.sharing.asker import borrower, settings, wait_seconds
from perinvoke.sharing.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any, Literal, TypeGuard

    from sqlalchemy import URL, Engine

    from perinvoke.environment.connections.behind_pgbouncer import BehindPgBouncer
    from perinvoke.environment.connections.connector import Connector

    Reset = Literal["session", "discard", "rollback"] | Callable[[Any], object]
    TimeOut = float | Literal["deadline"] | None

# Seconds. A minute: most functions are busy or they aren't; an idle connection costs the server some MiB.
_IDLE_SECONDS = 60.0
# Half an hour: load balancers and server upgrades want connections to end now and then.
_MAX_AGE_SECONDS = 1_800.0
# A connection that broke in silence is found by a round trip; one that the server closed is seen without, at every loan.
_CHECK_AFTER_SECONDS = 5.0
_PGBOUNCER = "pgbouncer"
_PORTS = {"postgresql": 5432, "mysql": 3306}  # what a URL means that names none
# Connections from the workers to PgBouncer, which cost it two KiB each. More than an environment has workers, mostly.
_PGBOUNCER_CLIENTS = 250
_PGBOUNCER_DRIVERS = ("psycopg", "psycopg2")
_RESETS = ("session", "discard", "rollback")
_MAX_NAME_BYTES = 200  # arbitrary
_MAX_TIME_OUT_SECONDS = 86_400  # a day, as for all time-outs
_READABLE = 40  # characters of a directory's name

_engines: dict[Hashable, Engine] = {}
_lock = threading.Lock()  # two threads' first calls make one engine


def engine(
    url: str | URL,
    *,
    max_connections: int | None = None,
    name: str | None = None,
    idle_seconds: float = _IDLE_SECONDS,
    max_age_seconds: float = _MAX_AGE_SECONDS,
    check_after_seconds: float = _CHECK_AFTER_SECONDS,
    reset: Reset = "session",
    statement_timeout: TimeOut = None,
    lock_timeout: TimeOut = None,
    **options: Any,
) -> Engine:
    """A SQLAlchemy ``Engine`` whose connections are counted over all workers of this execution environment.

    There are never more than ``max_connections`` of them, whatever dies when. A worker keeps its connection from one
    invocation to the next; it gives it up when it was idle for long, or when others wait. Waiting is fair between workers and
    ends before the deadline, with ``PoolTimeout``. Connecting ends by then, too, where the driver can be told. Called again with
    the same arguments it returns the same engine, which lives as long as the process; make it at init. A forked child has
    connections of its own. Needs the extra ``sql`` and a driver.

    Between invocations a session is reset. What an invocation forgot to return is rolled back, returned and reported with the
    line that took it. ``engine.pool.stats()`` gives the figures of all workers.

    ``pgbouncer://NAME``, or ``pgbouncer://NAME/DATABASE``, goes to the PgBouncer that ``perinvoke-pgbouncer`` runs beside the
    workers. That one keeps the budget and resets sessions.

    Args:
        url: as for ``create_engine``; of a driver that is not asynchronous.
        max_connections: the budget, over all workers. All engines of one user and database must be given the same.
        name: names the budget, where one user and database is to have several.
        idle_seconds: an idle connection is closed after so long.
        max_age_seconds: an older one is replaced.
        check_after_seconds: one that was idle for longer is tried out before it is lent. That the server has closed it is seen
            without that.
        reset: what happens to a session between invocations, besides the rollback. ``"session"``: one round trip at the end of
            each invocation that used it: in PostgreSQL all that DISCARD ALL does, but for plans and statements that the driver
            has prepared; COM_RESET_CONNECTION in MySQL and MariaDB; nothing in others. ``"discard"``: DISCARD ALL itself, in
            PostgreSQL. Listeners of the event ``connect`` are called again after both. ``"rollback"``: nothing more. A function
            is called with the DB-API connection.
        statement_timeout: how long a statement may take, as the server is told at each loan: seconds, or ``"deadline"`` for what
            is left until the margin. PostgreSQL, MariaDB, and what only reads in MySQL. One round trip.
        lock_timeout: the same for waiting for a lock.
        **options: for ``create_engine``, but for those of its pool.

    Raises:
        PoolError: the URL, a number or an option is wrong, or other engines go by another budget. From the first connection: the
            server allows fewer.
        MissingExtra: SQLAlchemy or the driver isn't installed.
        PoolTimeout: from using it: all connections were in use for as long as the invocation could wait.
    """
    from perinvoke.environment.connections import sqlalchemy_engine as sql  # noqa: PLC0415  # optional dependency: SQLAlchemy
    from perinvoke.environment.connections.sqlalchemy_pool import EngineConnector  # noqa: PLC0415  # the same

    parsed = sql.parsed(url)
    hidden = sql.hidden(parsed)
    sql.refuse_memory(parsed)
    _check_name(name)
    _check_reset(hidden, reset)
    _check_time_out(hidden, "statement_timeout", statement_timeout)
    _check_time_out(hidden, "lock_timeout", lock_timeout)
    times = _times(hidden, idle_seconds, max_age_seconds, check_after_seconds)
    behind = _behind_pgbouncer(parsed, hidden)
    count = checked(_PGBOUNCER_CLIENTS if behind is not None and max_connections is None else max_connections, hidden)
    key = (
        parsed,
        count,
        name,
        *times.values(),
        _hashable(reset),
        statement_timeout,
        lock_timeout,
        settings().root,
        _as_key(options),
    )
    with _lock:
        if key not in _engines:
            connector = EngineConnector(reset) if behind is None else EngineConnector(behind.reset, behind.is_clean)
            lender = _new_lender(connector, _budget_name(parsed, name), count, told=hidden, times=times)
            try:
                _engines[key] = sql.new_engine(
                    parsed if behind is None else sql.parsed(f"postgresql+{behind.driver}://"),
                    connector=connector,
                    lender=lender,
                    borrower=borrower,
                    wait_seconds=_wait_seconds,
                    statement_timeout=statement_timeout,
                    lock_timeout=lock_timeout,
                    behind=behind,
                    options=options,
                )
            except BaseException:
                budgets.remove(lender.holdings)  # the next one may want another number
                raise
        return _engines[key]


def pool(
    create: Callable[[], Any],
    *,
    max_connections: int,
    close: Callable[[Any], object] | None = None,
    check: Callable[[Any], object] | None = None,
    reset: Callable[[Any], object] | None = None,
    name: str | None = None,
    idle_seconds: float = _IDLE_SECONDS,
    max_age_seconds: float = _MAX_AGE_SECONDS,
    check_after_seconds: float = _CHECK_AFTER_SECONDS,
) -> PlainPool:
    """A pool of connections of any kind (Redis, Mongo, gRPC), counted over all workers, as ``engine`` counts a database's.

    ``with the_pool.connection() as client:`` lends one; ``the_pool.stats()`` gives the figures of all workers. Make it at init.
    One that an invocation did not return is closed and reported with the line that took it.

    Args:
        create: makes a connection; its time-outs are its own.
        max_connections: the budget, over all workers.
        close: closes one; None: its own method ``close``, if it has that.
        check: tries one out that was idle; False, or whatever it raises, replaces it. None: it is believed to work, unless its
            ``fileno()`` shows that the server has hung up.
        reset: removes what an invocation left in it; where it raises, the connection is replaced. It should not hang: others of
            the same budget are cleaned and closed by the same thread.
        name: names the budget in all workers. None: where ``create`` is defined.
        idle_seconds: an idle connection is closed after so long.
        max_age_seconds: an older one is replaced.
        check_after_seconds: one that was idle for longer is tried out before it is lent.

    Raises:
        PoolError: a function or a number is wrong, or another pool of the same name has another budget.
    """
    _check_name(name)
    told = name or _where(create)
    functions: dict[str, Any] = {"create": create, "close": close, "check": check, "reset": reset}
    for what, function in functions.items():
        if not callable(function) and (function is not None or what == "create"):
            raise PoolError(f"{what} of pool {told} is of type {type(function).__name__}; it must be a function", name=told)
    count = checked(max_connections, told)
    times = _times(told, idle_seconds, max_age_seconds, check_after_seconds)
    connector = PlainConnector(create, name=told, close=close, check=check, reset=reset)
    return PlainPool(_new_lender(connector, _file_name("pool", told), count, told=told, times=times), borrower)


def _new_lender(connector: Connector, name: str, count: int, *, told: str, times: dict[str, float]) -> ConnectionPool:
    budget = budgets.share(name, count, Root(settings()), told=told)
    lender = ConnectionPool(connector, budget, name=told, **times)
    budgets.add(lender.holdings)
    return lender


def _wait_seconds() -> float:
    return wait_seconds(running())


def _check_reset(hidden: str, reset: object) -> None:
    if not callable(reset) and reset not in _RESETS:
        raise PoolError(
            f"reset of {hidden} is {reset!r}; allowed are {', '.join(map(repr, _RESETS))}, or a function", name=hidden
        )


def _check_name(name: object) -> None:
    if name is not None and not (is_text(name) and encoded_length(str(name)) <= _MAX_NAME_BYTES):
        raise PoolError(f"a pool's name is {name!r}; allowed is text of up to {_MAX_NAME_BYTES} bytes, or None", name=repr(name))


def _check_time_out(hidden: str, what: str, value: object) -> None:
    if value is not None and value != "deadline" and not (_is_number(value) and 0 < value <= _MAX_TIME_OUT_SECONDS):
        raise PoolError(
            f"{what} of {hidden} is {value!r}; allowed are seconds above 0, up to {_MAX_TIME_OUT_SECONDS}, 'deadline', or None",
            name=hidden,
        )


def _times(told: str, idle_seconds: object, max_age_seconds: object, check_after_seconds: object) -> dict[str, float]:
    times: dict[str, Any] = {
        "idle_seconds": idle_seconds,
        "max_age_seconds": max_age_seconds,
        "check_after_seconds": check_after_seconds,
    }
    for what, value in times.items():
        if not (_is_number(value) and value >= 0):  # refuses nan
            raise PoolError(f"{what} of {told} is {value!r}; allowed are seconds from 0 on", name=told)
    return times


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _budget_name(url: URL, name: str | None) -> str:
    """The budget's name: the one given, or one for each user and database, whatever the driver and its options."""
    if name is not None:
        return _file_name(f"engine-{name}", name)
    backend = {"mariadb": "mysql"}.get(url.get_backend_name(), url.get_backend_name())
    host, user = url.host or url.query.get("host") or url.query.get("unix_socket"), url.username or url.query.get("user")
    who = f"{backend} {user} {host} {url.port or _PORTS.get(backend)} {url.database}"
    return _file_name(f"{backend}-{host or 'local'}-{url.database or ''}", who)


def _where(create: object) -> str:
    """Where a function is defined: the same in all workers."""
    function: Any = create
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    line = "" if code is None else f":{code.co_firstlineno}"
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}{line}"


def _file_name(readable: str, exact: str) -> str:
    """A name for a directory, for people to read and unique."""
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', readable).strip('-.')[:_READABLE]}-{hashlib.sha256(exact.encode()).hexdigest()[:12]}"


def _as_key(options: dict[str, Any]) -> Hashable:
    """The options as a key; what has no value to compare counts by what it looks like."""
    return tuple(sorted((name, _hashable(value)) for name, value in options.items()))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple(sorted((str(name), _hashable(inner)) for name, inner in value.items()))
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return repr(type(value)), value


def _behind_pgbouncer(url: URL, hidden: str) -> BehindPgBouncer | None:
    if url.get_backend_name() != _PGBOUNCER:
        return None
    from perinvoke.environment.connections.behind_pgbouncer import BehindPgBouncer  # noqa: PLC0415  # only who goes there needs it

    driver = url.drivername.partition("+")[2] or "psycopg"
    if url.username or url.password or url.port or url.query or driver not in _PGBOUNCER_DRIVERS:
        raise PoolError(
            f"{hidden} can't be understood; it must look like pgbouncer://NAME or pgbouncer://NAME/DATABASE, for psycopg, or "
            "pgbouncer+psycopg2://NAME. PgBouncer itself knows the user and the password.",
            name=hidden,
        )
    return BehindPgBouncer(settings().root, url.host or "default", url.database or None, driver)
