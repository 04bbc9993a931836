"""Where tests of SQL locks find an engine, and somebody who has a row locked meanwhile."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from perinvoke.fleet.sql import locked
from sql_lock_models import Base

if TYPE_CHECKING:
    from collections.abc import Iterator

POSTGRESQL, MARIADB, SQLITE = "postgresql", "mariadb", "sqlite"
ALL = [POSTGRESQL, MARIADB, SQLITE]
# For what takes a second or more, and is the same everywhere but for the server: in the quick tests one has to do.
ONE_QUICK = [POSTGRESQL, *(pytest.param(name, marks=pytest.mark.slow) for name in (MARIADB, SQLITE))]
# Milliseconds until PostgreSQL looks for one; without it a second.
QUICK_DEADLOCKS = "SET deadlock_timeout = 50"


def url_of(which: str, request: pytest.FixtureRequest) -> str:
    """Of the servers that all tests share; for SQLite a new file."""
    if which == POSTGRESQL:
        return str(request.getfixturevalue("postgres").url())
    if which == MARIADB:
        return str(request.getfixturevalue("mariadb").url())
    return f"sqlite:///{request.getfixturevalue('tmp_path_factory').mktemp('sqlite')}/locks.sqlite3"


def empty(connection: sa.Connection, metadata: sa.MetaData) -> None:
    """Have no rows in the tables. Most have none, and each statement takes its time."""
    rows = (sa.select(sa.literal(name)).where(sa.exists().select_from(table)) for name, table in metadata.tables.items())
    filled = set(connection.scalars(sa.union_all(*rows)))
    for table in reversed(metadata.sorted_tables):
        if table.key in filled:
            connection.execute(table.delete())


def do_not_sync(engine: sa.Engine) -> None:
    """Have SQLite leave to the kernel when what was written reaches the disk."""
    if engine.dialect.name == SQLITE:
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF").close())


@contextlib.contextmanager
def tables(url: str, **options: object) -> Iterator[sa.Engine]:
    """An engine over the models' tables, which are gone afterwards."""
    engine = sa.create_engine(url, **options)
    do_not_sync(engine)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    try:
        yield engine
    finally:
        engine.dispose()
        with contextlib.closing(sa.create_engine(url, poolclass=sa.NullPool).connect()) as connection:
            Base.metadata.drop_all(connection)
            connection.commit()


def fill(engine: sa.Engine, *rows: Base) -> None:
    """Have these rows in the tables, and no others."""
    with Session(engine) as session, session.begin():
        empty(session.connection(), Base.metadata)
        session.add_all(rows)


@contextlib.contextmanager
def held(engine: sa.Engine, model: type[Base], key: object) -> Iterator[Session]:
    """Somebody has the row locked inside the block; what he changes there is committed when it ends."""
    with Session(engine) as holder, holder.begin():
        assert locked(holder, model, key) is not None
        yield holder


def soon(seconds: float, call: object) -> threading.Timer:
    """Call it in another thread."""
    timer = threading.Timer(seconds, call)  # type: ignore[arg-type]  # anything that can be called
    timer.start()
    return timer
