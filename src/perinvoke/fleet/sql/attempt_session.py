"""The session of an attempt of ``retry_conflicts``: only the attempt itself ends its transaction.

Methods of the session that would are refused; so are COMMIT and ROLLBACK as SQL, before they are sent. What errors its connection
met is noted on the way.
"""

from __future__ import annotations

import functools
import re
import weakref

from sqlalchemy import event
from sqlalchemy.orm import Session

from perinvoke.fleet.errors import SqlUseError
from perinvoke.fleet.sql.versioned import Changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import ExceptionContext

WHAT = "retry_conflicts"
ERRORS = "perinvoke_errors"  # an execution option: where a connection's errors are noted
# What ends a transaction in SQL, except for a savepoint's end: ROLLBACK TO.
_ENDS = re.compile(r"\s*(?:COMMIT|END|ABORT|ROLLBACK(?!\s.*\bTO\b)|START\s+TRANSACTION)\b", re.IGNORECASE | re.DOTALL)
_listening: weakref.WeakSet[Any] = weakref.WeakSet()  # dialects that are watched


class AttemptSession(Session):
    """An attempt's session: only its owner ends its transaction."""

    def __init__(self, connection: Connection, options: dict[str, Any]) -> None:
        options = dict(options)
        expire_on_commit = options.pop("expire_on_commit")  # a class of one's own may take no such argument, or say it itself
        super().__init__(bind=connection, **options)  # by name: what comes first there may be another one's
        self.expire_on_commit = expire_on_commit
        self.changes = Changes()
        self._attempts_connection = connection

    def get_bind(self, *_: object, bind: Any = None, **__: object) -> Any:
        """The attempt's connection, wherever a class of one's own would go: no other is committed, and repeated, with it."""
        return self._attempts_connection if bind is None else bind

    def flush(self, objects: Any = None) -> None:
        """As SQLAlchemy's; notes what is about to be changed."""
        self.changes.note(self)
        super().flush(objects)

    def commit(self) -> None:
        """Refused. Raises SqlUseError."""
        raise ended("session.commit()")

    def rollback(self) -> None:
        """Refused. Raises SqlUseError."""
        raise ended("session.rollback()")

    def close(self) -> None:
        """Refused. Raises SqlUseError."""
        raise ended("session.close()")

    def begin(self, nested: bool = False) -> Any:  # noqa: FBT001, FBT002  # SQLAlchemy's signature
        """A savepoint; another transaction is refused. Raises SqlUseError."""
        if not nested and self.in_transaction():
            raise ended("session.begin()")
        return super().begin(nested)


def attempt_session_of(kind: Any) -> type[AttemptSession]:
    """An attempt's session that is one of this kind, too; but for the methods that end the transaction.

    Raises:
        SqlUseError: it is no class of sessions.
    """
    if not (isinstance(kind, type) and issubclass(kind, Session)):
        raise SqlUseError(
            f"{WHAT} makes its own sessions, of a class below sqlalchemy.orm.Session; session_class={kind!r} isn't one. Of a "
            "sessionmaker it is class_."
        )
    return _both(kind)  # type: ignore[arg-type]  # a class can be hashed, whatever its objects say


@functools.lru_cache(maxsize=64)  # a program has few; those of one that makes them again and again aren't all kept
def _both(kind: Any) -> type[AttemptSession]:
    return type(AttemptSession.__name__, (AttemptSession, kind), {})


def ended(by: str) -> SqlUseError:
    """The error of a function that ended its transaction."""
    return SqlUseError(
        f"{WHAT} begins and ends the transaction itself, and the function called {by}: leave that out. For a part that may "
        f"fail alone "
        "use `with session.begin_nested():`; to give all of it up, raise."
    )


def watch(engine: Engine) -> None:
    """Once for each dialect, which lives as long as its engine: it has all connections' errors and statements."""
    if engine.dialect not in _listening:
        _listening.add(engine.dialect)
        event.listen(engine, "handle_error", _note_error)
        event.listen(engine, "do_execute", _refuse_end)


def _note_error(context: ExceptionContext) -> None:
    if context.connection is not None:
        errors = context.connection.get_execution_options().get(ERRORS)
        if errors is not None:
            errors.append(context.sqlalchemy_exception or context.original_exception)


def _refuse_end(_: object, statement: str, __: object, context: Any) -> None:
    """Before COMMIT as SQL is sent in an attempt, after which all that it did until then would stay."""
    if _ENDS.match(statement) and context is not None and ERRORS in context.root_connection.get_execution_options():
        raise ended(f"{statement.strip()[:40]} as SQL")
