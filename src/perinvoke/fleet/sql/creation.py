"""``create_or_get``: of many who want the same new row at once, one makes it, and all have it.

It inserts first, inside a savepoint, and reads the row where the unique key says that there is one. Looking first would leave the
gap between looking and inserting that this is to close. Where the row is there nearly always, look for it yourself before you
call this.

What holds:

* Exactly one caller has ``created=True`` for each row whose transaction is committed, at any isolation level: the database's
  unique key decides that.
* If another transaction has inserted the key and isn't over, the database waits for it, until the deadline at most: then
  ``RowLocked``. If it is rolled back, the row is made here.
* What the database refuses for another reason, a foreign key, NOT NULL or another unique key, comes through unchanged. The
  transaction goes on: only the savepoint was rolled back.

Per database:

* PostgreSQL, REPEATABLE READ or SERIALIZABLE: the winner may have committed after this transaction's first look, which then can't
  see the row at all. That is a ``WriteConflict``, which ``retry_conflicts`` repeats in a new transaction that does see it.
* MySQL and MariaDB, whose default is REPEATABLE READ: the row is read with a shared lock, which sees what is committed. Later
  SELECTs of the same transaction may not see it. Those who wait for a transaction that is then rolled back meet in a deadlock, of
  which the database ends all but one: call it inside ``retry_conflicts``.
* SQLite: the transaction begins to write before the savepoint: a savepoint that begins one would commit with its release.
* Aurora DSQL has no savepoints; there, read and insert inside ``retry_conflicts``: its conflicts tell of the other.
"""

from __future__ import annotations

import contextlib

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, IntegrityError

from perinvoke.fleet.errors import SqlUseError, WriteConflict
from perinvoke.fleet.sql.conflicts import Conflict, conflict_of
from perinvoke.fleet.sql.dialects import Database
from perinvoke.fleet.sql.lock_wait import LockWait, mysql_time_outs, postgresql_time_outs, wait_in_database
from perinvoke.fleet.sql.sessions import connection_of, session_of
from perinvoke.fleet.sql.unique_keys import checked_key, is_about, is_unique_violation, mapper_of
from perinvoke.fleet.sql.versioned import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, TypeVar

    from sqlalchemy import Connection
    from sqlalchemy.orm import Mapper, Session, scoped_session

    from perinvoke.fleet.sql.unique_keys import UniqueKey

    T = TypeVar("T")

_WHAT = "create_or_get"
# Rounds. A row that is in the way of an INSERT and not to be found afterwards was deleted in between, again and again. Arbitrary.
_ROUNDS = 5
# Where the error doesn't tell which unique key it is about: after the second time it is another one.
_ROUNDS_UNTOLD = 2
_SNAPSHOTS = ("REPEATABLE READ", "SERIALIZABLE")


def create_or_get(
    session: Session | scoped_session[Any], model: type[T], /, defaults: Mapping[str, Any] | None = None, **key: Any
) -> tuple[T, bool]:
    """The one row with this key: made if there is none, and read if there is.

    ::

        account, created = create_or_get(session, Account, {"plan": "free"}, email="ann@example.com")

    Flushes what the session has pending, then runs in the session's transaction; nothing is committed. In PostgreSQL five round
    trips for a new row. Blocks while another transaction that has inserted the same key is open, until the deadline or for 30
    seconds outside an invocation.

    Args:
        session: of SQLAlchemy's ORM, not asynchronous.
        model: a mapped class.
        defaults: what else a new row gets; an existing one isn't changed.
        **key: columns, by the model's names, that are its primary key or are declared unique together.

    Returns:
        The object, and whether it was made here.

    Raises:
        SqlUseError: the key isn't unique by the model's declaration, or has None; the session is in autocommit; the database
            isn't known, or is Aurora DSQL.
        RowLocked: somebody else has inserted the key, and has neither committed nor rolled back for as long as there was time.
        WriteConflict: the row is there, but this transaction can't see it. ``retry_conflicts`` repeats it.
        IntegrityError: the new row violates something else.
    """
    session = session_of(session, _WHAT)
    mapper = mapper_of(model, _WHAT)
    keys = checked_key(mapper, key, _WHAT)
    values = _values(model, key, defaults or {})
    connection, database = connection_of(session, _WHAT, mapper)
    session.flush()  # a pending object may be the one, and one that is to be deleted isn't
    known = _loaded(session, mapper, key)
    if known is not None:
        return known, False
    race = _Race(session, mapper, key=key, keys=keys, connection=connection, database=database)
    return race.run(values)


class _Race:
    """One call; lives as long as it."""

    __slots__ = ("_connection", "_database", "_key", "_keys", "_mapper", "_session", "_wait")

    def __init__(
        self,
        session: Session,
        mapper: Mapper[Any],
        *,
        key: dict[str, Any],
        keys: list[UniqueKey],
        connection: Connection,
        database: Database,
    ) -> None:
        self._session = session
        self._mapper = mapper
        self._key = key
        self._keys = keys
        self._connection = connection
        self._database = database
        told = plain(tuple(key.values()))
        self._wait = LockWait("deadline", what=mapper.class_.__name__, key=told, skip=False)

    def run(self, values: dict[str, Any]) -> tuple[Any, bool]:
        """Insert, or read, until one of them works."""
        for number in range(1, _ROUNDS + 1):
            obj, violation = self._inserted(values)
            if violation is None:
                return obj, True
            winner = self._winner()
            if winner is not None:
                return winner, False
            ours = is_about(violation, self._keys)
            if ours is False or (ours is None and number >= _ROUNDS_UNTOLD and not self._is_snapshot()):
                raise violation
            if self._is_snapshot():
                raise self._conflict(
                    "was made by somebody else after this transaction began to look, so it can't see it"
                ) from violation
        raise self._conflict(
            f"was there at each of {_ROUNDS} attempts to insert it, and gone when it was looked for"
        ) from violation

    def _inserted(self, values: dict[str, Any]) -> tuple[Any, IntegrityError | None]:
        """The new object, or the violation of a unique key."""
        if self._database is Database.SQLITE:
            table: Any = self._mapper.local_table
            quoted = self._connection.dialect.identifier_preparer.format_table(table)
            return wait_in_database(  # type: ignore[return-value]  # None: only where skipping was asked for
                self._connection, self._database, self._wait, lambda _: self._insert(values), table=quoted
            )
        return self._insert(values)

    def _insert(self, values: dict[str, Any]) -> tuple[Any, IntegrityError | None]:
        session = self._session
        savepoint = session.begin_nested()
        try:
            with self._bounded():
                obj = self._mapper.class_(**values)
                session.add(obj)
                session.flush()
        except IntegrityError as error:
            savepoint.rollback()
            if not is_unique_violation(error):
                raise
            return None, error
        except BaseException as error:
            if savepoint.is_active:
                savepoint.rollback()
            deadlock = _hidden_deadlock(error)
            if deadlock is not None:
                raise deadlock  # noqa: B904  # its own cause tells more than that there is no savepoint any more
            raise
        savepoint.commit()
        return obj, None

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        """Waits inside the block end with the deadline, as ``RowLocked``."""
        try:
            if self._database is Database.POSTGRESQL:
                with postgresql_time_outs(self._connection, self._wait, self._wait.left()):
                    yield
            elif self._database is Database.SQLITE:
                yield
            else:
                with mysql_time_outs(self._connection, self._wait.left()):
                    yield
        except DBAPIError as error:
            if conflict_of(error) is Conflict.LOCK_TIMEOUT:
                raise self._wait.row_locked(self._database) from error
            raise

    def _winner(self) -> Any:
        """The row that was in the way, if it can be seen."""
        query = select(self._mapper).filter_by(**self._key)
        with self._session.no_autoflush:
            if self._database in (Database.MYSQL, Database.MARIADB):
                # Shared: the refused INSERT has left a shared lock, and two who both wanted more would be a deadlock.
                with self._bounded():
                    return self._session.scalars(query.with_for_update(read=True)).unique().one_or_none()
            return self._session.scalars(query).unique().one_or_none()  # unique: a collection that is joined repeats its row

    def _is_snapshot(self) -> bool:
        """Whether what others commit from now on isn't seen; a round trip."""
        return self._database is Database.POSTGRESQL and self._connection.get_isolation_level() in _SNAPSHOTS

    def _conflict(self, why: str) -> WriteConflict:
        name, key = self._mapper.class_.__name__, plain(tuple(self._key.values()))
        return WriteConflict(
            f"{name} {key!r} {why}. In a new transaction it can be had: retry_conflicts begins one.",
            table=str(self._mapper.local_table),
            key=key,
            attempts=1,
            waited_seconds=0.0,
        )


def _hidden_deadlock(error: BaseException) -> BaseException | None:
    """In MySQL and MariaDB a deadlock takes the savepoints, too, so that SQLAlchemy fails to roll back to one, and tells that."""
    before = error.__context__
    while before is not None and conflict_of(before) is not Conflict.DEADLOCK:
        before = before.__context__
    return before if isinstance(error, DBAPIError) and conflict_of(error) is None else None


def _values(model: type, key: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    twice = [name for name in key if name in defaults]
    if twice:
        raise SqlUseError(f"{_WHAT}: {', '.join(twice)} of {model.__name__} is in the key and in defaults; leave it out of one")
    return {**defaults, **key}


def _loaded(session: Session, mapper: Mapper[Any], key: dict[str, Any]) -> Any:
    """The object, where the session has it by its primary key: SQLAlchemy wouldn't even try to insert another one."""
    names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    if set(names) != key.keys():
        return None
    identity = tuple(key[name] for name in names)
    if mapper.identity_key_from_primary_key(identity) not in session.identity_map:
        return None
    return session.get(mapper, identity)  # asks the database only where it has expired
