"""``locked`` and ``lock_row``: one row, locked until the transaction ends, and read as it is under the lock.

What holds, in every database:

* The object that comes back has what the row has now, whatever the session knew of it: it is never an old copy from the identity
  map. Where it has changes that aren't saved, it is refused instead, with the names of its attributes: they were made from what
  was read before the lock. What else is pending the session flushes first, as before any query.
* Nobody who locks the same row, or writes it, gets on before this transaction has ended. Those who only read do.
* The wait is bounded, in the database too (see ``lock_wait``), and ends with ``RowLocked``.

What doesn't:

* What is pending the session flushes before the wait, as far as it may (``autoflush``). If that waits for others, ``wait``
  doesn't bound it; ``retry_conflicts`` does.
* Related rows aren't locked, and aren't read by the statement that locks: what it joins would be as it was before the wait.
  What is loaded eagerly, and ``options``, is read by a second statement under the lock; all else when it is used. Of objects
  that the session has already, it keeps what it knows.
* In MySQL and MariaDB a transaction under REPEATABLE READ, their default, goes on reading as of its first plain read. What is
  locked is read as it is now; what is read later without a lock is not. Lock first, before anything is read.
* In PostgreSQL under REPEATABLE READ and SERIALIZABLE a row that was changed since the transaction began can't be locked any
  more: that is a serialization failure, and the transaction has to be run again.
* SQLite has no row locks: the transaction becomes the only one that writes to the database. One that has read before may be
  refused at once, whatever ``wait`` says: others have written since, or wait themselves for it to end.

A model that is mapped to several tables (joined-table inheritance) has a row in each. They are locked one after the other, the
topmost first, so that all who lock it come in one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import CompoundSelect, inspect, select
from sqlalchemy.orm import InstanceState, Mapper, lazyload, object_mapper, with_polymorphic
from sqlalchemy.orm.exc import ObjectDeletedError

from perinvoke.fleet.errors import SqlUseError
from perinvoke.fleet.sql.dialects import Database, refuse_skip
from perinvoke.fleet.sql.lock_wait import LockWait, wait_in_database
from perinvoke.fleet.sql.sessions import connection_of, session_of
from perinvoke.fleet.sql.versioned import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from sqlalchemy import Connection, Select
    from sqlalchemy.orm import Session
    from sqlalchemy.sql.base import ExecutableOption

    from perinvoke.fleet.sql.lock_wait import Wait
    from perinvoke.fleet.sql.sessions import AnySession

    T = TypeVar("T")

# How relationships are configured that the locking statement would read along.
_EAGER = ("joined", "selectin", "subquery", "immediate", False)


def locked(
    session: AnySession, model: type[T], key: object, *, wait: Wait = "deadline", options: Sequence[ExecutableOption] = ()
) -> T | None:
    """The object with this primary key, freshly read, its row locked until the transaction ends.

    In PostgreSQL, MariaDB and MySQL by SELECT … FOR UPDATE; in SQLite by BEGIN IMMEDIATE, which locks the whole database for
    writing. Blocks for as long as ``wait`` says, and some round trips.

    Args:
        session: an ORM session, whose transaction is begun if it isn't.
        model: a mapped class.
        key: its primary key, as for ``Session.get``: a value; for a composite key a tuple or a dictionary.
        wait: ``"deadline"``: until the invocation's deadline less the margin, outside an invocation 30 seconds. Seconds: no
            longer than so, and no longer than until the deadline. ``"nowait"``: not at all. ``"skip"``: not at all, and None
            for a row that others have locked.
        options: loader options, for what is to be read besides the row, under the lock: ``selectinload(Order.items)``.

    Returns:
        The object. None where there is no such row; with ``wait="skip"`` also where others have it locked: which of the two it
        is, ``session.get(model, key)`` tells, which waits for nobody.

    Raises:
        RowLocked: others had it locked for so long. In PostgreSQL the transaction has to be rolled back; where it is to go on,
            lock inside ``with session.begin_nested():``. In the other databases it goes on.
        SqlUseError: the model, the key, the session or the database can't be right; the object has unsaved changes.
    """
    own = session_of(session, "locked")
    mapper = _mapper_of(model)
    _refuse_union(mapper, "locked")
    identity = _identity_of(mapper, key)
    known = own.identity_map.get(mapper.identity_key_from_primary_key(identity))
    if known is not None:
        _refuse_unsaved(inspect(known))
    unsaved = [obj for obj in own.dirty if isinstance(obj, model) and _unsaved(inspect(obj))]
    lock = _RowLock(own, "locked", mapper, identity, LockWait(wait, what=mapper.class_.__name__, key=key))
    found = lock.take(mapper)
    if any(found is obj for obj in unsaved):  # only the database took the key for that object's: "7" for 7, "ANN" for "ann"
        raise SqlUseError(
            f"locked: {key!r} is the key of {mapper.class_.__name__} {plain(inspect(found).identity)!r}, which had unsaved "
            "changes, made before its row was locked. Roll back, lock it first, then change it."
        )
    if not isinstance(found, model):
        return None  # Session.get has None, too, for a row of another class of the same table
    lock.take_rest(found)
    lock.read_along(found, options)
    return found


def lock_row(session: AnySession, obj: T, *, wait: Wait = "deadline") -> T | None:
    """The same object, its row locked until the transaction ends, and read anew under the lock.

    Args:
        session: the one that the object belongs to.
        obj: of a mapped class; without unsaved changes.
        wait: as for ``locked``.

    Returns:
        The object; None only with ``wait="skip"``, where others have it locked or have deleted it.

    Raises:
        RowLocked: others had it locked for so long; see ``locked``.
        SqlUseError: the object has unsaved changes, isn't in the database, or belongs to another session.
        ObjectDeletedError: SQLAlchemy's: its row is gone.
    """
    own = session_of(session, "lock_row")
    state = inspect(obj, raiseerr=False)
    if not isinstance(state, InstanceState):
        raise SqlUseError(f"lock_row takes an object of a mapped class, not {type(obj).__name__}")
    _refuse_others(state, own)
    _refuse_unsaved(state)
    mapper = state.mapper
    _refuse_union(mapper, "lock_row")
    identity = tuple(state.identity or ())
    key = identity[0] if len(identity) == 1 else identity
    lock = _RowLock(own, "lock_row", mapper, identity, LockWait(wait, what=mapper.class_.__name__, key=key))
    if lock.take(mapper) is None:
        if lock.wait.skip:
            return None
        raise ObjectDeletedError(state)
    lock.read_along(obj, ())
    return obj


class _RowLock:
    """The rows of one object, which are locked one after the other; lives as long as the call."""

    def __init__(self, session: Session, caller: str, mapper: Mapper[Any], identity: tuple[Any, ...], wait: LockWait) -> None:
        self.wait = wait
        self._session = session
        self._identity = identity
        self._taken: set[Any] = set()
        self._connection: Connection
        self._database: Database
        self._connection, self._database = connection_of(session, caller, mapper)
        if wait.skip:
            refuse_skip(self._connection, self._database, caller)
        if session.autoflush:
            session.flush()

    def take(self, mapper: Mapper[Any]) -> Any:
        """Lock what rows a mapper's object has; the object, or None where one of them is missing or skipped."""
        found = None
        for step in _steps(mapper):
            if self._taken.issuperset(step.tables):
                continue
            found = self._take_one(step)
            if found is None:
                return None
            self._taken.update(step.tables)
        return found

    def take_rest(self, obj: object) -> None:
        """Lock what rows an object has besides those of the class that was asked for: it may be a subclass's."""
        self.take(object_mapper(obj))

    def _take_one(self, mapper: Mapper[Any]) -> Any:
        def attempt(clause: str) -> Any:
            statement = _without_relationships(mapper, self._identity)
            if self._database is not Database.SQLITE:
                statement = statement.with_for_update()
            if clause:
                statement = statement.suffix_with(clause)  # the end of FOR UPDATE, in every dialect
            with self._session.no_autoflush:
                return self._session.execute(
                    statement, execution_options={"populate_existing": True}, bind_arguments={"mapper": mapper}
                ).scalar()

        return wait_in_database(self._connection, self._database, self.wait, attempt, table=self._quoted(mapper))

    def read_along(self, obj: object, options: Sequence[ExecutableOption]) -> None:
        """Read what is to be there besides the row. What is there already stays: it was read under the lock."""
        mapper = object_mapper(obj)
        if options or any(_is_eager(relationship) for relationship in mapper.relationships):
            statement = select(mapper).options(*options).where(*_is_row(mapper, self._identity))
            with self._session.no_autoflush:
                self._session.execute(statement, bind_arguments={"mapper": mapper}).unique().scalar()

    def _quoted(self, mapper: Mapper[Any]) -> str:
        return self._connection.dialect.identifier_preparer.format_table(mapper.local_table)


def _steps(mapper: Mapper[Any]) -> list[Mapper[Any]]:
    """A mapper and those that it inherits tables from, the topmost first; one for each that adds tables to those before."""
    steps = [mapper]
    while mapper.inherits is not None and not mapper.concrete:
        if set(mapper.inherits.tables) != set(mapper.tables):
            steps.append(mapper.inherits)
        mapper = mapper.inherits
    return steps[::-1]


def _without_relationships(mapper: Mapper[Any], identity: tuple[Any, ...]) -> Select[Any]:
    """A query for the object and all columns of its tables: nothing joined, whose rows would be locked along, or couldn't be."""
    tables = set(mapper.tables)
    classes: list[Any] = [each for each in mapper.self_and_descendants if not each.concrete and tables.issuperset(each.tables)]
    entity: Any = mapper.class_
    if len(classes) > 1 or mapper.with_polymorphic_mappers:
        entity = with_polymorphic(mapper, classes)
    later = [
        lazyload(getattr(entity if each is mapper else getattr(entity, each.class_.__name__), relationship.key))
        for each in classes
        for relationship in each.relationships
        if _is_eager(relationship) and (each is mapper or relationship.parent is each)
    ]
    return select(entity).options(*later).where(*_is_row(mapper, identity))


def _is_eager(relationship: Any) -> bool:
    return relationship.lazy in _EAGER


def _is_row(mapper: Mapper[Any], identity: tuple[Any, ...]) -> list[Any]:
    return [column == value for column, value in zip(mapper.primary_key, identity, strict=True)]


def _mapper_of(model: object) -> Mapper[Any]:
    mapper: Any = inspect(model, raiseerr=False) if isinstance(model, type) else None
    if not isinstance(mapper, Mapper):
        name = model.__name__ if isinstance(model, type) else repr(model)
        raise SqlUseError(f"locked takes a mapped class as its second argument; {name} isn't one. lock_row takes an object.")
    return mapper


def _refuse_union(mapper: Mapper[Any], caller: str) -> None:
    """Refuse what is read from a union of tables: a union's rows can't be locked, and the key would be looked for beside it."""
    source = getattr(mapper.polymorphic_on, "table", None)
    if isinstance(getattr(source, "element", None), CompoundSelect):
        raise SqlUseError(
            f"{caller} can't lock {mapper.class_.__name__}: it is read from a union of tables (concrete inheritance), and no "
            "database locks a row of that. advisory_lock() takes a name in its place; a Versioned model needs no lock."
        )


def _identity_of(mapper: Mapper[Any], key: object) -> tuple[Any, ...]:
    """The values of a primary key, in the order of its columns."""
    names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    given: list[Any]
    if isinstance(key, Mapping):
        if set(key) != set(names):
            raise _wrong_key(mapper, key, names)
        given = [key[name] for name in names]
    elif isinstance(key, Sequence) and not isinstance(key, str | bytes | bytearray):
        given = list(key)
    else:
        given = [key]
    if len(given) != len(names) or any(value is None for value in given):
        raise _wrong_key(mapper, key, names)
    return tuple(given)


def _wrong_key(mapper: Mapper[Any], key: object, names: list[str]) -> SqlUseError:
    columns = ", ".join(names)
    words = f"the value of {columns}" if len(names) == 1 else f"a tuple ({columns}), or a dictionary with these names"
    return SqlUseError(f"{key!r} is no primary key of {mapper.class_.__name__}; that is {words}, and none of them None")


def _refuse_others(state: InstanceState[Any], session: Session) -> None:
    name = state.mapper.class_.__name__
    if state.transient or state.pending:
        raise SqlUseError(f"lock_row: this {name} has no row yet that could be locked; session.flush() inserts what was added")
    if state.detached:
        raise SqlUseError(
            f"lock_row: this {name} belongs to no session any more; locked(session, {name}, key) reads and locks it"
        )
    if state.session is not session:
        raise SqlUseError(f"lock_row: this {name} belongs to another session; locked(session, {name}, key) has this one's own")
    if state.deleted or state.obj() in session.deleted:
        raise SqlUseError(f"lock_row: this {name} was deleted in this session")


def _refuse_unsaved(state: InstanceState[Any]) -> None:
    """Refuse an object whose changes would be lost by reading it anew, or were made from what others may have changed since."""
    changed = _unsaved(state)
    if changed:
        raise SqlUseError(
            f"This {state.mapper.class_.__name__} has unsaved changes of {', '.join(changed)}, made before its row was locked; "
            "lock it first, then change it. session.refresh(obj) drops them, session.flush() writes them as they are."
        )


def _unsaved(state: InstanceState[Any]) -> list[str]:
    return sorted(each.key for each in state.attrs if each.history.has_changes()) if state.modified else []
