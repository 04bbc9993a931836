"""``advisory_lock``: a lock by a name of one's own, until the transaction ends, for critical sections that have no row.

What holds:

* Of all transactions that lock one key, in one database, one goes on at a time. A transaction may lock a key again at once.
* The lock is there until the transaction has ended: committed, rolled back, or its connection lost.
* The wait is bounded, in the database too, and ends with ``RowLocked``.

What doesn't:

* PostgreSQL knows such locks by 64 bits. A number is its own key, a text's is a hash, so two keys may come to the same lock,
  and wait for each other without need: with a million keys in use at once the chance that any two do is one in 37 million. It
  is the same space of keys that ``pg_advisory_lock(bigint)`` has. A savepoint that is rolled back gives up what was locked
  since.
* MySQL and MariaDB know them by a name per server, and keep them for a session (``GET_LOCK``). The name here is a hash of the
  key and the current database. It is given up when the session's connection goes back to its pool: right after COMMIT or
  ROLLBACK has been carried out. A session over one connection, ``Session(connection)``, keeps it until that is closed.
  Savepoints change nothing.
* In PostgreSQL under REPEATABLE READ and SERIALIZABLE a transaction sees what was committed when its first statement began, and
  that is this one, before its wait. Use READ COMMITTED, PostgreSQL's default, or be ready for serialization failures. MySQL and
  MariaDB begin at the first read of a table: lock before it.
* A lock is lost with its connection, and so is its transaction: what isn't committed by then won't be.
"""

from __future__ import annotations

import hashlib
import math
import time

from sqlalchemy import event, text

from perinvoke.fleet.errors import SqlUseError
from perinvoke.fleet.sql.dialects import Database
from perinvoke.fleet.sql.lock_wait import LockWait, postgresql_time_outs
from perinvoke.fleet.sql.sessions import connection_of, session_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    from sqlalchemy import Connection

    from perinvoke.fleet.sql.sessions import AnySession

_KEY_BYTES = 8  # PostgreSQL's bigint
_LEAST, _MOST = -(2**63), 2**63 - 1
_TRY = text("SELECT pg_try_advisory_xact_lock(CAST(:key AS bigint))")
_TAKE = text("SELECT pg_advisory_xact_lock(CAST(:key AS bigint))")
# In the info of a DB-API connection, as long as that lives: the locks it holds, as SQL has their names, one for each GET_LOCK.
_HELD = "perinvoke.advisory_locks"
# 50 characters of the 64 that MySQL allows. Upper and lower case are the same to GET_LOCK, so a key itself couldn't be the name.
_NAME = "CONCAT('perinvoke:', SHA1(CONCAT_WS('/', '{digest}', DATABASE())))"


def advisory_lock(session: AnySession, key: str | int, *, wait: float | Literal["deadline", "nowait"] = "deadline") -> None:
    """Lock ``key`` until the session's transaction ends. Nothing has to be there in the database that has this name.

    Blocks for as long as ``wait`` says, and some round trips.

    Args:
        session: an ORM session, whose transaction is begun if it isn't.
        key: a text that isn't empty, or a whole number of 64 bits. The text "7" and the number 7 are different keys.
        wait: ``"deadline"``: until the invocation's deadline less the margin, outside an invocation 30 seconds. Seconds: no
            longer than so, and no longer than until the deadline. ``"nowait"``: not at all.

    Raises:
        RowLocked: others had it for so long. In PostgreSQL the transaction has to be rolled back, but for ``wait="nowait"``;
            where it is to go on, lock inside ``with session.begin_nested():``. In the other databases it goes on.
        SqlUseError: the key, the session or the database can't be right.
    """
    own = session_of(session, "advisory_lock")
    _check(key)
    connection, database = connection_of(own, "advisory_lock")
    lock_wait = LockWait(wait, what="The advisory lock", key=key, skip=False)
    if database is Database.SQLITE:
        raise SqlUseError(
            "advisory_lock: SQLite has no advisory locks. It has one writer at a time: after locked(session, Model, key), or "
            "BEGIN IMMEDIATE, nobody else writes; perinvoke.file_lock(name) excludes the workers of one machine from anything."
        )
    if database is Database.POSTGRESQL:
        _lock_in_postgresql(connection, key, lock_wait)
    else:
        _lock_in_mysql(connection, database, key, lock_wait)


def _lock_in_postgresql(connection: Connection, key: str | int, wait: LockWait) -> None:
    number = key if isinstance(key, int) else _number_of(key)
    if not wait.left():
        if not connection.execute(_TRY, {"key": number}).scalar_one():
            raise wait.row_locked(Database.POSTGRESQL)
        return
    with postgresql_time_outs(connection, wait, wait.left()):
        connection.execute(_TAKE, {"key": number})


def _lock_in_mysql(connection: Connection, database: Database, key: str | int, wait: LockWait) -> None:
    name = _NAME.format(digest=_digest(key).hex())
    _release_at_end(connection)
    held: list[str] = connection.info.setdefault(_HELD, [])
    while True:
        # MySQL counts whole seconds, and rounds; what is left of one is waited for by asking again. MariaDB takes fractions.
        seconds = wait.left() if database is Database.MARIADB else math.floor(wait.left())
        held.append(name)  # before it is so: an interrupt may come when the server has locked and this process hasn't heard of it
        query = f"SELECT name, GET_LOCK(name, {seconds:.3f}) FROM (SELECT {name} AS name) AS named"  # noqa: S608  # a hash
        found, taken = connection.exec_driver_sql(query).one()
        held.pop()
        if taken == 1:
            held.append(f"'{found}'")  # DATABASE() may be another one when it is given up
            return
        pause = wait.pause()
        if pause is None or taken is None:  # NULL: out of memory, or KILL QUERY
            raise wait.row_locked(database)
        time.sleep(pause)


def _release_at_end(connection: Connection) -> None:
    pool = connection.engine.pool
    if not event.contains(pool, "checkin", _release):
        event.listen(pool, "checkin", _release)


def _release(dbapi_connection: Any, record: Any) -> None:
    """Give up what a connection holds: its transaction has ended, it goes back to its pool. Blocks for a round trip."""
    held: list[str] | None = record.info.pop(_HELD, None)
    if not held or dbapi_connection is None:
        return
    try:
        cursor = dbapi_connection.cursor()
        cursor.execute("DO " + ", ".join(f"RELEASE_LOCK({name})" for name in held))
        cursor.close()
    except BaseException as error:
        record.invalidate()  # a connection that is closed holds nothing
        if not isinstance(error, Exception):
            raise


def _number_of(key: str) -> int:
    return int.from_bytes(_digest(key)[:_KEY_BYTES], "big", signed=True)


def _digest(key: str | int) -> bytes:
    kind = "number" if isinstance(key, int) else "text"
    return hashlib.blake2b(f"{kind}:{key}".encode(errors="surrogatepass"), digest_size=2 * _KEY_BYTES).digest()


def _check(key: object) -> None:
    if isinstance(key, str) and key:
        return
    if isinstance(key, int) and not isinstance(key, bool) and _LEAST <= key <= _MOST:
        return
    raise SqlUseError(f"advisory_lock: {key!r} is no key; allowed are texts that aren't empty, and whole numbers of 64 bits")
