"""A lease from DynamoDB in place of a row lock, for databases that have none; the row itself keeps late holders out.

Aurora DSQL is PostgreSQL under REPEATABLE READ, without FOR UPDATE; so is what runs here.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from perinvoke.fleet.dynamodb import LeaseLock
from perinvoke.fleet.sql import Conflict, SqlUseError, advisory_lock, conflict_of, locked

pytestmark = pytest.mark.usefixtures("root")


class Base(DeclarativeBase):
    pass


class Fund(Base):
    __tablename__ = "lease_fund"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)
    lease_token: Mapped[int] = mapped_column(sa.BigInteger, default=0)  # of the last one who wrote; it needs 64 bits


class LateHolder(Exception):
    """Somebody has taken the lease since, and written."""


def write(session: Session, token: int, fund: Fund, balance: int) -> None:
    """Whoever took the lease last gets through, and those after whom nobody has written yet."""
    statement = sa.update(Fund).where(Fund.id == fund.id, Fund.lease_token <= token).values(balance=balance, lease_token=token)
    if session.execute(statement.returning(Fund.id)).first() is None:
        raise LateHolder


@pytest.fixture
def engine(postgres):
    engine = sa.create_engine(postgres.url(), isolation_level="REPEATABLE READ")
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Fund(id=1))
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def client(dynamodb):
    return dynamodb.client()


@pytest.fixture
def table(dynamodb):
    return dynamodb.table()


def test_no_increment_is_lost(engine, client, table):
    lock = LeaseLock(table, "fund 1", client=client, timeout=30)

    def add(_: int) -> None:
        for _again in range(3):
            with (
                lock,
                Session(engine) as session,
                session.begin(),
            ):  # the transaction begins under the lease, so it sees all of it
                fund = session.get_one(Fund, 1)
                write(session, lock.token, fund, fund.balance + 1)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(4)))
    with Session(engine) as session:
        assert session.get_one(Fund, 1).balance == 12


@pytest.mark.parametrize("began", [pytest.param("before it", marks=pytest.mark.slow), "after"])
def test_a_holder_that_stood_still_for_longer_than_its_lease_writes_nothing(engine, client, table, began):
    """Its transaction may have begun before its successor's commit, or after."""

    def later_holder() -> int:
        later = LeaseLock(table, "fund 1", client=client, timeout=10)
        with later, Session(engine) as session, session.begin():
            write(session, later.token, session.get_one(Fund, 1), 100)
            return later.token

    late = LeaseLock(table, "fund 1", client=client, lease_seconds=1)
    late.acquire()
    late_token = late.token
    with Session(engine) as session:
        if began == "before it":
            session.get_one(Fund, 1)
        time.sleep(1.2)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(later_holder).result() > late_token
        fund = session.get_one(Fund, 1)
        with pytest.raises(LateHolder if began == "after" else sa.exc.OperationalError) as caught:
            write(session, late_token, fund, fund.balance + 1)
        assert conflict_of(caught.value) is (None if began == "after" else Conflict.SERIALIZATION)
    late.release()
    with Session(engine) as session:
        assert session.get_one(Fund, 1).balance == 100


def test_locks_of_aurora_dsql_say_so(postgres):
    """It is known by its host."""
    url = "postgresql+psycopg://admin@abcdefghij.dsql.eu-west-1.on.aws/postgres"
    engine = sa.create_engine(url, creator=lambda: psycopg.connect(postgres.url("")))
    with Session(engine) as session:
        for lock in (lambda: locked(session, Fund, 1), lambda: advisory_lock(session, "fund 1")):
            with pytest.raises(SqlUseError, match=r"Aurora DSQL: .*perinvoke.fleet.dynamodb.LeaseLock"):
                lock()
    engine.dispose()
