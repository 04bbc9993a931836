"""``retry_conflicts``: a transaction that is done again when it met another one, until there is no more time.

What holds:

* What the function did in the database is committed once, or not at all. It is called again after a conflict: a serialization
  failure (40001, also those that COMMIT tells of, as in Aurora DSQL), a deadlock (40P01, MySQL's 1213), a lock that wasn't to be
  had (55P03, 1205, ``RowLocked``), a stale version (``Versioned``), SQLite that was busy, and MariaDB's snapshot isolation
  (1020). It is also called again when the connection broke before COMMIT was sent: the server rolls that back. A server that
  can't be reached after that is tried again until there is no more time; one that wasn't there at first isn't.
* A COMMIT whose outcome nobody knows isn't repeated: the connection broke, or the statement was cancelled, while it was out. That
  is ``CommitUnknown``, unless the function is said to be ``repeatable``.
* It ends before the invocation's deadline: pauses are bounded by it, and the database is told how long each lock may be waited
  for. With little time left the function isn't called again.

What doesn't:

* What the function does elsewhere (a queue, a file, a variable) is done again with it. A warning tells when a boto3 call or a
  deferred cleanup was made in an attempt that is repeated. Do that after ``retry_conflicts`` has returned.
* Repeating prevents no lost update by itself. READ COMMITTED has no conflicts to repeat: take SERIALIZABLE (in MySQL and MariaDB,
  too), ``Versioned``, or ``locked``. Aurora DSQL knows REPEATABLE READ only, and finds all conflicts between writes with it.
* A wait for a lock that begins late in a long function may end late: it gets the time that was left when the attempt began. A
  handler's deadline still holds, and ``locked(wait=…)`` counts from its own beginning.
* In MySQL and MariaDB a statement like CREATE TABLE commits what was done before it. Nobody tells.

In SQLite each attempt begins with BEGIN IMMEDIATE, so writers queue up instead of failing halfway, and nothing is read that
others change meanwhile, whatever the journal and the driver's own ways with transactions. Those who only read need no
``retry_conflicts``.
"""

from __future__ import annotations

import functools
import logging
import time

from sqlalchemy import Engine

from perinvoke.fleet.caller import patience_of
from perinvoke.fleet.errors import CommitUnknown, SqlUseError, WriteConflict
from perinvoke.fleet.patience import REAL_CLOCK, Patience
from perinvoke.fleet.sql.attempt import Verdict, attempt
from perinvoke.fleet.sql.attempt_session import AttemptSession, attempt_session_of
from perinvoke.sharing.asker import asker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Concatenate, NoReturn, ParamSpec, Protocol, TypeVar, overload

    from sqlalchemy.orm import Session

    from perinvoke.fleet.sql.attempt import Outcome

    P = ParamSpec("P")
    R = TypeVar("R")
    S = TypeVar("S")
    SessionT = TypeVar("SessionT", bound=Session)
    SessionT_co = TypeVar("SessionT_co", bound=Session, covariant=True)

    class Decorator(Protocol[SessionT_co]):
        """What makes of a function, or a method, one that has its session from here."""

        @overload
        def __call__(self, function: Callable[Concatenate[SessionT_co, P], R], /) -> Callable[P, R]: ...

        @overload
        def __call__(self, function: Callable[Concatenate[S, SessionT_co, P], R], /) -> Callable[Concatenate[S, P], R]: ...


logger = logging.getLogger("perinvoke")

_WHAT = "retry_conflicts"
# Seconds. The first pause is up to about what a short transaction takes; the last one is what one may come late by. Both
# arbitrary.
_FIRST_SECONDS = 0.005
_LAST_SECONDS = 0.2
_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
# Options of a session that say where and when it commits, which is decided here.
_OURS = ("bind", "binds", "twophase", "autobegin", "join_transaction_mode")
# Of a code object: inspect's names for them.
_CO_VARARGS, _CO_GENERATOR, _CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x04, 0x20, 0x80, 0x200

if TYPE_CHECKING:

    @overload
    def retry_conflicts(
        fn: Callable[[Session], R],
        *,
        engine: Engine,
        isolation: str | None = None,
        repeatable: bool = False,
        timeout: float | None = None,
        session_options: Mapping[str, Any] | None = None,
        session_class: None = None,
    ) -> R: ...

    @overload
    def retry_conflicts(
        *,
        engine: Engine,
        isolation: str | None = None,
        repeatable: bool = False,
        timeout: float | None = None,
        session_options: Mapping[str, Any] | None = None,
        session_class: None = None,
    ) -> Decorator[Session]: ...

    @overload
    def retry_conflicts(
        fn: Callable[[SessionT], R],
        *,
        engine: Engine,
        isolation: str | None = None,
        repeatable: bool = False,
        timeout: float | None = None,
        session_options: Mapping[str, Any] | None = None,
        session_class: type[SessionT],
    ) -> R: ...

    @overload
    def retry_conflicts(
        *,
        engine: Engine,
        isolation: str | None = None,
        repeatable: bool = False,
        timeout: float | None = None,
        session_options: Mapping[str, Any] | None = None,
        session_class: type[SessionT],
    ) -> Decorator[SessionT]: ...


def retry_conflicts(
    fn: Callable[..., Any] | None = None,
    *,
    engine: Engine,
    isolation: str | None = None,
    repeatable: bool = False,
    timeout: float | None = None,
    session_options: Mapping[str, Any] | None = None,
    session_class: type[Session] | None = None,
) -> Any:
    """Call ``fn(session)`` in a transaction, commit, and do all of it again after a conflict with another transaction.

    ::

        seat = retry_conflicts(lambda session: book(session, "12A"), engine=db, isolation="SERIALIZABLE")


        @retry_conflicts(engine=db)
        def book(session, number, *, who): ...


        book("12A", who="Ann")  # the session comes from the decorator

    Each attempt has a new ``Session``, so ``fn`` must read in it what it changes. It neither commits nor rolls back; a part that
    may fail alone goes into ``with session.begin_nested():``. Objects that it returns keep what was loaded after the commit
    (``expire_on_commit=False``); what wasn't loaded can't be any more. Any other error of its own rolls back and comes through
    unchanged, also one that it raised because of a conflict: then it has decided. Blocks until the deadline, or 30 seconds
    outside an invocation. Thread-safe.

    Args:
        fn: takes the session. None: makes a decorator; the function is called with its own arguments after the session, and a
            method with the session after ``self`` or ``cls``.
        engine: an ordinary ``Engine``, such as ``perinvoke.engine``'s.
        isolation: ``"SERIALIZABLE"``, ``"REPEATABLE READ"``, ``"READ COMMITTED"`` or ``"READ UNCOMMITTED"``, as far as the
            database has them. None: the engine's.
        repeatable: doing it twice is as good as once, so it is repeated also where it may have been committed.
        timeout: seconds, where that is shorter than until the deadline. At least one attempt is made.
        session_options: for the ``Session``: ``expire_on_commit``, ``autoflush``, ``info``.
        session_class: one of your own below SQLAlchemy's, with its methods and listeners: SQLModel's ``Session``, or that of a
            ``sessionmaker``, which is its ``class_``.

    Returns:
        What ``fn`` returned; or the decorator.

    Raises:
        WriteConflict: there were conflicts until there was no more time; nothing was committed. Its cause is the last one;
            ``as_http()`` is a 409.
        CommitUnknown: nobody knows whether it was committed.
        SqlUseError: ``fn`` ended the transaction itself, or went on after an error that had ended it; it is asynchronous; the
            engine is in AUTOCOMMIT, asynchronous, or none; there is no such isolation level.
        FixConfiguration: ``timeout`` is no number of seconds.
    """
    _check_engine(engine)
    options = _checked_options(session_options)
    level = None if isolation is None else _checked_isolation(engine, isolation)
    sessions = AttemptSession if session_class is None else attempt_session_of(session_class)
    conflicts = _Conflicts(engine, level, repeatable=repeatable, timeout=timeout, options=options, sessions=sessions)
    if fn is not None:
        _check_function(fn)
        return conflicts.repeat(fn)

    def decorator(function: Any) -> Any:
        if isinstance(function, staticmethod | classmethod):  # else its objects would pass themselves on
            return type(function)(decorator(function.__func__))
        _check_function(function)
        before = 1 if _is_method(function) else 0

        @functools.wraps(function)
        def repeated(*args: Any, **kwargs: Any) -> Any:
            own, rest = args[:before], args[before:]
            return conflicts.repeat(lambda session: function(*own, session, *rest, **kwargs), name=_name_of(function))

        return repeated

    return decorator


class _Conflicts:
    """How conflicts are dealt with; lives as long as a call, or as what was decorated."""

    __slots__ = ("_engine", "_isolation", "_options", "_repeatable", "_sessions", "_timeout")

    def __init__(
        self,
        engine: Engine,
        isolation: str | None,
        *,
        repeatable: bool,
        timeout: float | None,
        options: dict[str, Any],
        sessions: type[AttemptSession],
    ) -> None:
        self._engine = engine
        self._isolation = isolation
        self._repeatable = repeatable
        self._timeout = timeout
        self._options = options
        self._sessions = sessions

    def repeat(self, function: Callable[[Session], Any], *, name: str | None = None) -> Any:
        """Until it is done, or there is no more time."""
        seconds = patience_of(self._timeout).left()
        patience = Patience(seconds, REAL_CLOCK, first_seconds=_FIRST_SECONDS, last_seconds=_LAST_SECONDS)
        course = _Course(name or _name_of(function), patience)
        while True:
            before = asker().outside_effects()
            outcome = attempt(
                self._engine,
                function,
                isolation=self._isolation,
                seconds=patience.left(),
                options=self._options,
                sessions=self._sessions,
                again=course.attempts > 0,
            )
            if outcome.verdict is Verdict.DONE:
                return outcome.value
            course.note(outcome)
            pause = patience.pause() if outcome.verdict is not Verdict.UNKNOWN or self._repeatable else None
            if pause is None:
                course.give_up(outcome)
            course.warn(asker().outside_effects() - before)
            del outcome  # its error holds on to the attempt's session
            time.sleep(pause)


class _Course:
    """What has happened so far; lives as long as the call."""

    __slots__ = ("_name", "_patience", "_unknown", "_warned", "attempts")

    def __init__(self, name: str, patience: Patience) -> None:
        self._name = name
        self._patience = patience
        self.attempts = 0
        self._unknown: BaseException | None = None
        self._warned = False

    def note(self, outcome: Outcome) -> None:
        """An attempt that was in vain, or perhaps wasn't."""
        self.attempts += 1
        if outcome.verdict is Verdict.UNKNOWN:
            self._unknown = outcome.error

    def warn(self, effects: int) -> None:
        """Once: what the attempt did elsewhere will be done again."""
        if effects and not self._warned:
            self._warned = True
            logger.warning(
                "retry_conflicts repeats %s, though in the attempt that failed boto3 calls were made or cleanups deferred (%d "
                "in all), "
                "which aren't taken back: do those after retry_conflicts has returned",
                self._name,
                effects,
            )

    def give_up(self, outcome: Outcome) -> NoReturn:
        """Raise what there is to tell."""
        waited = self._patience.waited_seconds()
        if self._unknown is not None:
            raise CommitUnknown(
                f"nobody knows whether {self._name} was committed: the connection broke, or the statement was ended, while the "
                f"COMMIT was "
                f"out (attempt {self.attempts}). Look before you repeat it; repeatable=True repeats what may be done twice.",
                attempts=self.attempts,
            ) from self._unknown
        assert outcome.error is not None
        if outcome.verdict is Verdict.LOST:
            raise outcome.error
        where = "" if outcome.table is None else f" in {outcome.table} {outcome.key!r}"
        raise WriteConflict(
            f"{self._name} met other transactions in each of {self.attempts} attempts within {waited:.3g} seconds, at last as a "
            f"{outcome.told}{where}; nothing was committed. Try again later; if it happens often, make the transaction "
            f"shorter, or have "
            "those who change the same rows wait for each other: locked(), advisory_lock().",
            table=outcome.table,
            key=outcome.key,
            attempts=self.attempts,
            waited_seconds=waited,
        ) from outcome.error


def _check_engine(engine: object) -> None:
    if not isinstance(engine, Engine):
        if hasattr(engine, "sync_engine"):
            raise SqlUseError(
                f"{_WHAT} blocks, and takes no AsyncEngine: give it engine(url) of a driver such as psycopg or pymysql"
            )
        raise SqlUseError(
            f"{_WHAT} makes its own sessions, from an Engine: engine={type(engine).__name__} isn't one. perinvoke.engine(url, "
            "max_connections=…) makes one, and of a session it is session.get_bind()"
        )
    if engine.dialect.is_async:
        raise SqlUseError(f"{_WHAT} blocks, and {engine.dialect.driver} is an asynchronous driver: name another, such as psycopg")


def _checked_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    chosen = {"expire_on_commit": False, **(options or {})}
    wrong = [name for name in _OURS if name in chosen]
    if wrong:
        raise SqlUseError(
            f"session_options of {_WHAT} have {', '.join(wrong)}: where and when to commit is what it decides itself"
        )
    return chosen


def _checked_isolation(engine: Engine, isolation: object) -> str:
    level = " ".join(isolation.upper().replace("_", " ").split()) if isinstance(isolation, str) else ""
    try:
        known = [one for one in _LEVELS if one in engine.dialect.get_isolation_level_values(None)]  # type: ignore[arg-type]  # constants
    except Exception:  # noqa: BLE001  # a dialect that asks its connection, or has none
        known = list(_LEVELS)
    if level not in known:
        raise SqlUseError(
            f"isolation is {isolation!r}; {engine.dialect.name} has {', '.join(known)}, or None for what the engine has"
        )
    return level


def _check_function(function: object) -> None:
    if not callable(function):
        raise SqlUseError(f"{_WHAT} takes a function of a session, not {type(function).__name__}")
    told: Any = function
    while isinstance(told, functools.partial):
        told = told.func
    code = getattr(told, "__code__", None)
    if code is not None and code.co_flags & (_CO_GENERATOR | _CO_COROUTINE | _CO_ASYNC_GENERATOR):
        raise SqlUseError(
            f"{_WHAT} calls {_name_of(function)} and commits, and that is asynchronous, or a generator: it would run after the "
            f"commit. "
            "Make it an ordinary function; from asynchronous code call it by asyncio.to_thread"
        )


def _is_method(function: Any) -> bool:
    """By the name of its first parameter: when it is decorated it belongs to no class yet. A bound one has that already.

    What another decorator has made of it takes what it did.
    """
    while hasattr(function, "__wrapped__") and getattr(function, "__self__", None) is None:
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    return (
        code is not None
        and (code.co_argcount > 1 or (code.co_argcount == 1 and bool(code.co_flags & _CO_VARARGS)))
        and code.co_varnames[0] in ("self", "cls")
        and getattr(function, "__self__", None) is None
    )


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", None) or type(function).__qualname__
