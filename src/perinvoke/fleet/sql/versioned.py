"""``Versioned``: rows that know how often they were changed, so that nobody overwrites what he hasn't seen.

What holds:

* Each UPDATE and DELETE of such an object goes only to the row with the version that was read, and each UPDATE counts it up:
  SQLAlchemy's ``version_id_col``. If the row was changed or deleted meanwhile, nothing is written, and the flush raises
  ``StaleDataError``. That takes no locks and no special isolation level, so it also works over two requests: the version goes to
  the client as an ETag, and comes back in ``If-Match``.
* ``retry_conflicts`` repeats the transaction then. Elsewhere ``stale_as_conflict`` makes it a ``WriteConflict``: SQLAlchemy has
  no place where its errors from a flush could be replaced for all sessions.

What doesn't:

* ``session.execute(update(Model)…)``, ``delete(Model)`` and SQL by hand go past the version: they neither look at it nor count.
  Count in them yourself: ``update(Model).values(…, lock_version=Model.lock_version + 1)``.
* A row that was only read may have changed when others are written because of it. SERIALIZABLE sees that, or a lock.
* A row that was deleted and made anew begins at 1 again; ETags tell it from its predecessor by nothing else.
* ``bulk_update_mappings`` and drivers that can't tell how many rows an UPDATE matched: SQLAlchemy warns of those.
"""

from __future__ import annotations

import contextlib
import re

from sqlalchemy import Integer, event, inspect
from sqlalchemy.orm import declared_attr, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from perinvoke.fleet.errors import SqlUseError, WriteConflict
from perinvoke.fleet.if_match import matches_nothing, tag_in
from perinvoke.fleet.sql.sessions import session_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from sqlalchemy.orm import Mapped, Session, scoped_session

_COLUMN, _ARGUMENTS, _VERSION = "lock_version", "__mapper_args__", "version_id_col"
_TABLE = re.compile(r"on table '(?P<table>[^']+)'")  # of StaleDataError, which has no fields


class Versioned:
    """A model's mixin, named before its base: ``class Seat(Versioned, Base)``. Lives as long as the model.

    The model gets a column ``lock_version``: NOT NULL, 1 in a new row, and in those that were there when a migration adds it. A
    model that declares ``lock_version`` itself, under another name in its table for example, keeps its own column. Where models
    inherit, the first of them is the one that is named Versioned; a change in any of its tables counts. ``__mapper_args__`` of
    the model are kept. Works for dataclasses, too (``MappedAsDataclass``); there ``lock_version`` isn't one of the fields.

    Raises, when the model is declared:
        SqlUseError: it has another version column, or ``Versioned`` comes after the base.
    """

    if TYPE_CHECKING:
        lock_version: Mapped[int]

    def __init_subclass__(cls, **options: Any) -> None:
        if _will_be_mapped(cls):
            _add_version(cls)
        super().__init_subclass__(**options)

    @property
    def etag(self) -> str:
        """The version as an HTTP ETag, in its quotes; strong.

        Of the row as this session has read or written it last. What is changed and not yet flushed doesn't count.

        Raises:
            SqlUseError: the object isn't in the database yet.
        """
        return f'"{_version_of(self)}"'

    def check_etag(self, if_match: str | None) -> None:
        """See that a request's ``If-Match`` names the version of this object; then change it, and commit.

        Whoever changes the row between this and the commit is found by that.

        Args:
            if_match: the header's value, as it came.

        Raises:
            WriteConflict: it names another version: somebody changed the row after the client read it. Repeating the same request
                won't help, so ``retry_conflicts`` lets it pass. For its ``as_http()`` it is a 409.
            TokenInvalid: there is none, or ``*``; or it is weak, several, or no ETag of this kind.
            SqlUseError: the object isn't in the database yet.
        """
        mine, asked = _version_of(self), _parse_if_match(if_match)
        if asked != mine:
            table, key = row_of(self)
            raise WriteConflict(
                f"{table} {key!r} is at version {mine}, and the request was made for {asked}: somebody changed it meanwhile. "
                f"Read it "
                "again, and repeat the change.",
                table=table,
                key=key,
                attempts=1,
                waited_seconds=0.0,
            )


@contextlib.contextmanager
def stale_as_conflict(session: Session | scoped_session[Any]) -> Iterator[None]:
    """Around flushes and the commit: a stale version raises ``WriteConflict``, whose ``as_http()`` is a 409.

    ::

        with stale_as_conflict(session):
            session.commit()

    The transaction has to be rolled back after it, as after all errors of a flush. ``key`` is that of the row, or a list where
    the flush wrote several rows of that table: the database doesn't tell which of them.

    Raises:
        WriteConflict: from the ``StaleDataError``; nothing was written.
        SqlUseError: it is no session.
    """
    session = session_of(session, "stale_as_conflict")  # a scoped_session's listeners would be those of all threads
    changes = Changes()
    event.listen(session, "before_flush", changes.note)
    try:
        yield
    except StaleDataError as error:
        table, key = changes.meant_by(error)
        raise WriteConflict(
            f"{table or 'a row'} {key!r} was changed or deleted by somebody else since it was read; nothing was written. Read "
            f"it again, "
            "and repeat the change.",
            table=table,
            key=key,
            attempts=1,
            waited_seconds=0.0,
        ) from error
    finally:
        event.remove(session, "before_flush", changes.note)


class Changes:
    """What a session's flushes are about to write to rows with versions; lives as long as a transaction."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[str, list[object]] = {}

    def note(self, session: Session, *_: object) -> None:
        """Before a flush; an error in it will be about these, and no others."""
        self._keys.clear()
        for changed in (session.dirty, session.deleted):
            for obj in changed:
                if _is_versioned(obj):
                    table, key = row_of(obj)
                    self._keys.setdefault(table, []).append(key)

    def meant_by(self, error: StaleDataError) -> tuple[str | None, object]:
        """The table, and the row's key or the list of those that it may be; None where nobody knows."""
        found = _TABLE.search(str(error))
        table = found["table"] if found else None
        keys = self._keys.get(table or "", [])
        return table, (keys[0] if len(keys) == 1 else keys or None)


def row_of(obj: object) -> tuple[str, object]:
    """The table and the key of an object: a value, or a tuple where the key has several columns; None without one."""
    state: Any = inspect(obj)
    table: Any = state.mapper.base_mapper.local_table
    return _told(table), plain(state.identity)


def plain(key: object) -> object:
    """A key as people say it: a tuple of one is that one."""
    return key[0] if isinstance(key, tuple) and len(key) == 1 else key


def _told(table: Any) -> str:
    return str(getattr(table, "fullname", None) or getattr(table, "name", None) or table)


def _is_versioned(obj: object) -> bool:
    state: Any = inspect(obj)
    return state.mapper.version_id_col is not None


def _version_of(obj: Any) -> int:
    state: Any = inspect(obj, raiseerr=False)
    name = type(obj).__name__
    if state is None or state.mapper.version_id_col is None:
        raise SqlUseError(
            f"{name} has no version column: declare it as class {name}(Versioned, Base), and add lock_version to its table"
        )
    version: int | None = obj.lock_version
    if version is None or not (state.persistent or state.detached):
        raise SqlUseError(f"this {name} isn't in the database yet, so it has no version: flush its session first")
    return version


# --- the declaration -------------------------------------------------------------------------------------------------------


def _will_be_mapped(cls: type) -> bool:
    """Whether a class is a model that gets the column: not a mixin, a base, an abstract class, or a model below another."""
    own = vars(cls)
    if own.get("__abstract__") or any("__mapper__" in vars(base) for base in cls.__mro__[1:]):
        return False
    return "__tablename__" in own or "__table__" in own or hasattr(cls, "registry")


def _add_version(cls: Any) -> None:
    if "__mapper__" in vars(cls):
        raise SqlUseError(
            f"{cls.__name__} names Versioned after its base, which has mapped it already: class {cls.__name__}(Versioned, Base)"
        )
    column = _own_column(cls)
    given = _given_arguments(cls)
    if callable(given):
        inherited = given  # may be asked for the models below this one, too

        def merged(owner: Any) -> dict[str, Any]:
            arguments = dict(inherited(owner))
            return _merged(cls, arguments, column) if owner is cls else arguments

        setattr(cls, _ARGUMENTS, declared_attr.directive(merged))
    else:
        setattr(cls, _ARGUMENTS, _merged(cls, given, column))


def _own_column(cls: Any) -> Any:
    """The model's own ``lock_version``, the one in its ``__table__``, or a new one."""
    table = vars(cls).get("__table__")
    if table is not None:
        column = getattr(table, "c", {}).get(_COLUMN)
        if column is None:
            raise SqlUseError(
                f"{cls.__name__} is Versioned, but its table {_told(table)} has no column {_COLUMN}: add it, as an integer "
                f"that is NOT NULL"
            )
        return column
    column = next((vars(base)[_COLUMN] for base in cls.__mro__ if _COLUMN in vars(base)), None)
    if column is None:
        # Without an annotation, so that a dataclass doesn't count it among its fields.
        column = mapped_column(Integer, nullable=False, server_default="1")
        setattr(cls, _COLUMN, column)
    return column


def _given_arguments(cls: type) -> dict[str, Any] | Callable[[Any], dict[str, Any]]:
    """``__mapper_args__`` as the model, its mixins or its base have them: a dictionary, or the function that makes it."""
    for base in cls.__mro__:
        given = vars(base).get(_ARGUMENTS)
        if isinstance(given, dict):
            return given
        if given is not None:
            function: Callable[[Any], dict[str, Any]] | None = getattr(given, "fget", None)
            if function is None:
                raise SqlUseError(
                    f"{_ARGUMENTS} of {cls.__name__} is {given!r}; Versioned can add to a dictionary, or to a "
                    f"declared_attr.directive"
                )
            return function
    return {}


def _merged(cls: type, arguments: dict[str, Any], column: Any) -> dict[str, Any]:
    other = arguments.get(_VERSION)
    if other is not None and other is not column:
        raise SqlUseError(
            f"{cls.__name__} is Versioned, and its {_ARGUMENTS} name another {_VERSION}: take one of them away, or call that "
            f"column "
            f"{_COLUMN} in the model"
        )
    return {**arguments, _VERSION: column}


# --- If-Match --------------------------------------------------------------------------------------------------------------


def _parse_if_match(header: object) -> int:
    """The version that it names."""
    text = tag_in(header)
    if not re.fullmatch(r"-?\d{1,19}", text, re.ASCII):  # BIGINT has nineteen
        raise matches_nothing(header)
    return int(text)
