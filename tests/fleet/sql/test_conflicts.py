"""Conflicts of real databases, as each driver tells them."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from perinvoke.fleet.errors import RowLocked
from perinvoke.fleet.sql import Conflict, conflict_of
from perinvoke.fleet.sql.conflicts import is_cancelled, mysql_number_of, sqlstate_of
from sql_lock_servers import QUICK_DEADLOCKS

READ = "SELECT n FROM met WHERE id = {}"
WRITE = "UPDATE met SET n = n + 1 WHERE id = {}"


@pytest.fixture(params=["psycopg", "psycopg2", "pg8000", "pymysql"])
def engine(request):
    server = request.getfixturevalue("mariadb" if request.param == "pymysql" else "postgres")
    engine = sa.create_engine(server.url(request.param))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS met")
        connection.exec_driver_sql("CREATE TABLE met (id int PRIMARY KEY, n int)")
        connection.exec_driver_sql("INSERT INTO met VALUES (1, 0), (2, 0)")
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE met")
    engine.dispose()


def is_mariadb(engine: sa.Engine) -> bool:
    return engine.dialect.name == "mysql"


def error_of(connection: sa.Connection, *statements: str) -> sa.exc.DBAPIError:
    """Of the last one."""
    for statement in statements[:-1]:
        connection.exec_driver_sql(statement)
    with pytest.raises(sa.exc.DBAPIError) as caught:
        connection.exec_driver_sql(statements[-1])
    return caught.value


@pytest.mark.parametrize("how", ["time-out", "NOWAIT"])
def test_a_lock_that_is_not_to_be_had(engine, how):
    setting = "SET innodb_lock_wait_timeout = 1" if is_mariadb(engine) else "SET lock_timeout = '50ms'"
    with engine.connect() as holder, engine.connect() as other:
        holder.exec_driver_sql(WRITE.format(1))
        words = [setting, WRITE.format(1)] if how == "time-out" else [READ.format(1) + " FOR UPDATE NOWAIT"]
        error = error_of(other, *words)
    assert conflict_of(error) is Conflict.LOCK_TIMEOUT
    assert error.orig is not None
    assert conflict_of(error.orig) is Conflict.LOCK_TIMEOUT
    assert not is_cancelled(error)


def test_a_deadlock(engine):
    both = threading.Barrier(2)

    def cross(first: int, second: int) -> Conflict | None:
        with engine.connect() as connection:
            if not is_mariadb(engine):
                connection.exec_driver_sql(QUICK_DEADLOCKS)
            connection.exec_driver_sql(WRITE.format(first))
            both.wait(10)
            try:
                connection.exec_driver_sql(WRITE.format(second))
            except sa.exc.DBAPIError as error:
                return conflict_of(error)
            connection.commit()
            return None

    with ThreadPoolExecutor(2) as threads:
        met = [each.result() for each in [threads.submit(cross, 1, 2), threads.submit(cross, 2, 1)]]
    assert sorted(met, key=str) == [Conflict.DEADLOCK, None]


def test_a_serialization_failure(engine):
    repeatable = engine.execution_options(isolation_level="REPEATABLE READ")
    with repeatable.connect() as one, engine.connect() as other:
        if is_mariadb(engine):
            if one.exec_driver_sql("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'").first() is None:
                pytest.skip("this MariaDB doesn't tell")
            one.exec_driver_sql("SET innodb_snapshot_isolation = ON")
            one.rollback()
        one.exec_driver_sql(READ.format(1)).all()
        other.exec_driver_sql(WRITE.format(1))
        other.commit()
        assert conflict_of(error_of(one, WRITE.format(1))) is Conflict.SERIALIZATION


def test_what_is_no_conflict(engine):
    with engine.connect() as connection:
        error = error_of(connection, "INSERT INTO met VALUES (1, 0)")
        assert conflict_of(error) is None
        assert mysql_number_of(error) == (1062 if is_mariadb(engine) else None)
        assert sqlstate_of(error) in ((None, "23000") if is_mariadb(engine) else ("23505",))
        connection.rollback()
        assert conflict_of(error_of(connection, "SELECT nonsense")) is None


def test_a_statement_that_took_too_long(engine):
    if is_mariadb(engine):
        words = ["SET max_statement_time = 0.05", "SELECT SLEEP(5)"]
    else:
        words = ["SET statement_timeout = '50ms'", "SELECT pg_sleep(5)"]
    with engine.connect() as connection:
        try:
            error = error_of(connection, *words)
        finally:
            connection.invalidate()
    assert conflict_of(error) is None
    assert is_cancelled(error) == (not is_mariadb(engine))


@pytest.fixture
def files(tmp_path):
    made = [sqlite3.connect(tmp_path / "met.sqlite3", timeout=0, isolation_level=None) for _ in range(2)]
    made[0].execute("CREATE TABLE met (id int PRIMARY KEY, n int)")
    yield made
    for connection in made:
        connection.close()


def test_sqlite_is_busy(files):
    files[0].execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError) as caught:
        files[1].execute("BEGIN IMMEDIATE")
    assert conflict_of(caught.value) is Conflict.BUSY


def test_sqlite_has_moved_on_since_a_transaction_read(files):
    files[0].execute("PRAGMA journal_mode = WAL")
    files[0].execute("BEGIN")
    files[0].execute("SELECT * FROM met").fetchall()
    files[1].execute("INSERT INTO met VALUES (1, 1)")
    with pytest.raises(sqlite3.OperationalError) as caught:
        files[0].execute("INSERT INTO met VALUES (2, 2)")
    assert conflict_of(caught.value) is Conflict.SERIALIZATION


def test_sqlite_says_other_things_too(files):
    for statement in ("SELECT nonsense", "INSERT INTO met VALUES (1, 1), (1, 1)"):
        with pytest.raises(sqlite3.Error) as caught:
            files[0].execute(statement)
        assert conflict_of(caught.value) is None
    assert conflict_of(sqlite3.ProgrammingError("of the driver itself")) is None


def test_a_stale_version():
    class Base(sa.orm.DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "page"
        id: sa.orm.Mapped[int] = sa.orm.mapped_column(primary_key=True)
        version: sa.orm.Mapped[int] = sa.orm.mapped_column()
        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        page = Page(id=1)
        session.add(page)
        session.flush()
        session.execute(sa.text("UPDATE page SET version = 7"))
        page.id = 2
        with pytest.raises(StaleDataError) as caught:
            session.flush()
    assert conflict_of(caught.value) is Conflict.STALE
    engine.dispose()


@pytest.mark.parametrize(
    "error", [ValueError(1205), KeyError("40001"), OSError(1205, "a file"), TimeoutError(), sa.exc.ArgumentError()]
)
def test_errors_of_other_kinds_are_no_conflicts(error):
    assert conflict_of(error) is None


def test_row_locked_is_a_lock_time_out():
    assert conflict_of(RowLocked("it is", what="Account", key=1, waited_seconds=0.0)) is Conflict.LOCK_TIMEOUT


@pytest.mark.parametrize("code", ["40001", "OC000", "OC001"])
def test_aurora_dsql_tells_at_the_commit(code):
    class Told(Exception):
        sqlstate = code

    error = sa.exc.OperationalError(None, None, Told("change conflicts with another transaction, please retry: (OC000)"))
    assert conflict_of(error) is Conflict.SERIALIZATION
