"""Transactions that are done again after a conflict, on real PostgreSQL, MariaDB and SQLite."""

from __future__ import annotations

import functools
import itertools
import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import botocore.exceptions
import pytest
import sqlalchemy as sa
from awslambdaric.lambda_context import LambdaContext
from sqlalchemy.orm import Session, sessionmaker

import perinvoke
from lossy_proxy import LossyProxy
from perinvoke.errors import FixConfiguration
from perinvoke.fleet.sql import CommitUnknown, RowLocked, SqlUseError, WriteConflict, locked, retry_conflicts
from sql_conflict_models import Counter, Member, Page, Team, add_all, conflict_tables
from sql_lock_servers import ALL, MARIADB, ONE_QUICK, POSTGRESQL, QUICK_DEADLOCKS, SQLITE, soon
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Callable

SERIALIZABLE = "SERIALIZABLE"
# What Aurora DSQL does at a COMMIT, where a transaction has met another one; and how often, which a sequence remembers.
DSQL = """
CREATE SEQUENCE commits;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF nextval('commits') <= {times} THEN
    RAISE EXCEPTION 'change conflicts with another transaction, please retry: (OC000)' USING ERRCODE = '40001';
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON conflict_counter DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION refuse();
"""
SLOW_COMMIT = """
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER take_time AFTER UPDATE ON conflict_counter DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION take_time();
"""


@pytest.fixture(params=ALL)
def which(request):
    return request.param


def only(*names: object):
    return pytest.mark.parametrize("which", names, indirect=True)


@pytest.fixture
def engine(which, request):
    with conflict_tables(which, request) as engine:
        add_all(engine, Counter(id=1), Counter(id=2), Page(id=1))
        yield engine
        if which == POSTGRESQL:
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    "DROP FUNCTION IF EXISTS refuse(), take_time() CASCADE; DROP SEQUENCE IF EXISTS commits"
                )


@pytest.fixture
def _quick_deadlocks(engine):
    if engine.dialect.name == "postgresql":
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(QUICK_DEADLOCKS))


def value_of(engine: sa.Engine, number: int = 1) -> Any:
    with Session(engine) as session:
        return session.get_one(Counter, number).value


def add(session: Session, by: int = 1, number: int = 1) -> Counter:
    counter = session.get_one(Counter, number)
    counter.value += by
    return counter


class Calls:
    """A function of a session that knows how often it was called, and what it was called for each time."""

    def __init__(self, function: Any) -> None:
        self.count = 0
        self._function = function

    def __call__(self, session: Session) -> Any:
        self.count += 1
        return self._function(session)


class AtFirst(Calls):
    """Calls ``disturb(session)`` before the function, the first time only."""

    def __init__(self, disturb: Any, function: Any = add) -> None:
        super().__init__(lambda session: (disturb(session) if self.count == 1 else None, function(session))[1])


def raises_first(error: Exception) -> AtFirst:
    def disturb(session: Session) -> None:
        raise error

    return AtFirst(disturb)


def elsewhere(engine: sa.Engine, change: Callable[[Session], object]) -> Callable[[Session | None], None]:
    """Change something in a transaction of another connection's, and commit it."""

    def disturb(_: Session | None) -> None:
        with Session(engine) as other, other.begin():
            change(other)

    return disturb


# --- what it does ----------------------------------------------------------------------------------------------------------


def test_it_commits_and_returns_what_the_function_returns_for_use_afterwards(engine):
    counter = retry_conflicts(lambda session: add(session, 3), engine=engine)
    assert (counter.id, counter.value) == (1, 3)
    assert value_of(engine) == 3
    assert engine.pool.checkedout() == 0


def test_as_a_decorator_it_adds_the_session_to_the_functions_own_arguments(engine):
    @retry_conflicts(engine=engine)
    def book(session: Session, by: int, *, number: int) -> int:
        """Says what it does."""
        return add(session, by, number).value

    assert book(5, number=2) == 5
    assert book(by=5, number=2) == 10
    assert (book.__name__, book.__doc__) == ("book", "Says what it does.")


def test_as_a_decorator_of_a_method_it_adds_the_session_after_self(engine):
    def told(function: Any) -> Any:
        return functools.wraps(function)(lambda *args: function(*args))

    class Shop:
        number = 2

        @retry_conflicts(engine=engine)
        def book(self, session: Session, by: int) -> int:
            return add(session, by, self.number).value

        @classmethod
        @retry_conflicts(engine=engine)
        def cancel(cls, session: Session, *, by: int) -> int:
            return add(session, -by, cls.number).value

        def total(self, session: Session) -> int:
            return add(session, 0, self.number).value

        @retry_conflicts(engine=engine)
        @told
        def return_one(self, session: Session) -> int:
            return add(session, -1, self.number).value

        @retry_conflicts(engine=engine)
        def return_all(self, *args: Any) -> int:
            return add(args[0], -sum(args[1:]), self.number).value

        @retry_conflicts(engine=engine)
        @staticmethod
        def stolen(session: Session, by: int) -> int:
            return add(session, -by, 2).value

    shop = Shop()
    assert [shop.book(5), shop.book(by=2), Shop.cancel(by=1)] == [5, 7, 6]
    assert retry_conflicts(shop.total, engine=engine) == retry_conflicts(engine=engine)(shop.total)() == 6
    assert [shop.return_one(), shop.return_all(2, 2), shop.stolen(1)] == [5, 1, 0]


def test_each_attempt_has_a_new_session_without_what_the_last_one_did(engine):
    seen = []

    def function(session: Session) -> None:
        seen.append((session, list(session)))
        session.add(Team(id=7))
        session.flush()
        if len(seen) == 1:
            raise RowLocked("made up")

    retry_conflicts(function, engine=engine)
    assert [objects for _, objects in seen] == [[], []]
    assert seen[0][0] is not seen[1][0]


def test_options_reach_the_session(engine):
    options = {"expire_on_commit": True, "info": {"who": "Ann"}, "autoflush": False}
    session = retry_conflicts(lambda session: session, engine=engine, session_options=options)
    assert (session.info["who"], session.autoflush, session.expire_on_commit) == ("Ann", False, True)


def test_a_session_class_of_ones_own_may_take_other_arguments_and_goes_to_no_other_database(engine, tmp_path):
    elsewhere = sa.create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")

    class Tenants(Session):
        def __init__(self, tenant: str, *, bind: Any = None) -> None:
            super().__init__(bind, expire_on_commit=True)
            self.tenant = tenant

        def get_bind(self, *_: Any, **__: Any) -> Any:
            return elsewhere

    def ask(session: Tenants) -> Any:
        return session.tenant, add(session, 1, 2)

    tenant, counter = retry_conflicts(ask, engine=engine, session_class=Tenants, session_options={"tenant": "ann"})
    assert (tenant, counter.value, value_of(engine, 2)) == ("ann", 1, 1)
    elsewhere.dispose()


def test_a_session_class_of_ones_own_has_its_methods_and_listeners(engine):
    class Own(Session):
        def commit(self) -> None:
            raise AssertionError("only its owner ends the transaction")

        def one(self) -> Any:
            return self.execute(sa.text("SELECT 1")).scalar()

    seen: list[object] = []
    maker = sessionmaker(class_=Own)
    sa.event.listen(maker, "do_orm_execute", seen.append)

    def ask(session: Own) -> Any:
        add(session, 1, 2)
        return session.one()

    assert retry_conflicts(ask, engine=engine, session_class=maker.class_) == 1
    assert seen
    assert retry_conflicts(engine=engine, session_class=Own)(ask)() == 1
    assert value_of(engine, 2) == 2
    with pytest.raises(SqlUseError, match="begins and ends the transaction itself"):
        retry_conflicts(lambda session: session.commit(), engine=engine, session_class=Own)
    with pytest.raises(SqlUseError, match="class_"):
        retry_conflicts(ask, engine=engine, session_class=maker)  # type: ignore[call-overload]  # that is the question


def test_what_the_database_was_told_for_it_is_put_back(engine, which):
    asked = {POSTGRESQL: "SHOW lock_timeout", MARIADB: "SELECT @@innodb_lock_wait_timeout", SQLITE: "PRAGMA busy_timeout"}[which]

    def look(session: Session) -> Any:
        return session.execute(sa.text(asked)).scalar_one()

    with engine.connect() as connection:
        before = connection.exec_driver_sql(asked).scalar_one()
    inside = retry_conflicts(look, engine=engine, timeout=5)
    with pytest.raises(ZeroDivisionError):
        retry_conflicts(lambda session: (look(session), 1 // 0), engine=engine, timeout=5)
    with engine.connect() as connection:
        assert connection.exec_driver_sql(asked).scalar_one() == before != inside


@only(MARIADB, SQLITE)
def test_after_an_interrupt_while_it_cleans_up_the_connection_is_not_used_again(engine, which):
    asked = "SELECT @@innodb_lock_wait_timeout" if which == MARIADB else "PRAGMA busy_timeout"

    def second(_: Session) -> None:
        raise SystemExit

    def function(session: Session) -> None:
        sa.event.listen(session, "after_rollback", second)
        raise KeyboardInterrupt

    with engine.connect() as connection:
        before = connection.exec_driver_sql(asked).scalar_one()
    with pytest.raises(SystemExit):
        retry_conflicts(function, engine=engine, timeout=3)
    with engine.connect() as connection:
        assert connection.exec_driver_sql(asked).scalar_one() == before


# --- conflicts -------------------------------------------------------------------------------------------------------------


@only(POSTGRESQL, MARIADB)
def test_no_update_is_lost_when_transactions_are_serializable(engine):
    function = Calls(add)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: retry_conflicts(function, engine=engine, isolation="serializable"), range(80)))
    assert value_of(engine) == 80
    assert function.count > 80


@only(SQLITE)
@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_no_update_is_lost_in_sqlite_whatever_the_journal(engine, journal):
    with engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA journal_mode = {journal}")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: retry_conflicts(add, engine=engine), range(40)))
    assert value_of(engine) == 40


@only(SQLITE)
def test_sqlite_transactions_that_a_listener_begins_are_no_obstacle(engine):
    @sa.event.listens_for(engine, "connect")
    def leave_it_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    engine.dispose()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: retry_conflicts(add, engine=engine), range(20)))
    assert value_of(engine) == 20


def test_a_stale_version_is_repeated(engine, which):
    def change(session: Session) -> str:
        page = session.get_one(Page, 1)
        disturb()
        page.text += "us"
        return page.text

    def them() -> None:
        if which != SQLITE:
            elsewhere(engine, lambda other: setattr(other.get_one(Page, 1), "text", "them "))(None)

    first = iter([them])
    disturb = lambda: next(first, lambda: None)()  # noqa: E731  # once
    assert retry_conflicts(change, engine=engine) == ("us" if which == SQLITE else "them us")


@pytest.mark.usefixtures("_quick_deadlocks")
@only(POSTGRESQL, MARIADB)
def test_two_who_wait_for_each_other_both_finish(engine):
    barrier = threading.Barrier(2)

    def both(first: int, second: int) -> int:
        meet = iter([lambda: barrier.wait(10)])

        def function(session: Session) -> None:
            locked(session, Counter, first).value += 1  # type: ignore[union-attr]  # it is there
            session.flush()
            next(meet, lambda: None)()
            locked(session, Counter, second).value += 1  # type: ignore[union-attr]

        calls = Calls(function)
        retry_conflicts(calls, engine=engine)
        return calls.count

    with ThreadPoolExecutor(2) as pool:
        counts = sorted(pool.map(both, [1, 2], [2, 1]))
    assert counts == [1, 2]
    assert (value_of(engine), value_of(engine, 2)) == (2, 2)


@only(POSTGRESQL)
def test_a_conflict_that_the_commit_tells_of_is_repeated_as_in_aurora_dsql(engine):
    with engine.begin() as connection:
        connection.exec_driver_sql(DSQL.format(times=2))
    function = Calls(add)
    assert retry_conflicts(function, engine=engine).value == 1
    assert (function.count, value_of(engine)) == (3, 1)


@only(POSTGRESQL)
def test_when_there_is_no_more_time_the_conflict_says_how_often_it_was_tried_and_why(engine):
    with engine.begin() as connection:
        connection.exec_driver_sql(DSQL.format(times=1_000_000))
    function = Calls(add)
    with pytest.raises(
        WriteConflict, match=r"Calls met other transactions in each of \d+ attempts .*serialization failure"
    ) as caught:
        retry_conflicts(function, engine=engine, timeout=2)
    error = caught.value
    assert error.attempts == function.count > 1
    assert 0 < error.waited_seconds < 20
    assert "OC000" in str(error.__cause__)
    assert error.key is None
    assert error.as_http()["statusCode"] == 409
    assert pickle.loads(pickle.dumps(error)).attempts == error.attempts
    assert value_of(engine) == 0


@only(POSTGRESQL, MARIADB)
def test_a_version_that_is_always_stale_names_the_row(engine):
    def change(session: Session) -> None:
        page = session.get_one(Page, 1)
        elsewhere(engine, lambda other: setattr(other.get_one(Page, 1), "text", str(time.monotonic_ns())))(None)
        page.text = "us"

    with pytest.raises(WriteConflict, match="stale version in conflict_page 1") as caught:
        retry_conflicts(change, engine=engine, timeout=0.1)
    assert (caught.value.table, caught.value.key) == ("conflict_page", 1)


def test_a_lock_that_is_never_to_be_had_ends_in_a_conflict_before_time_is_up(engine, which):
    with engine.connect() as holder:
        if which == SQLITE:
            holder.exec_driver_sql("BEGIN IMMEDIATE")
        holder.execute(sa.update(Counter).values(value=9))
        began = time.monotonic()
        with pytest.raises(WriteConflict, match="time-out|busy") as caught:
            retry_conflicts(lambda session: add(session), engine=engine, timeout=1.1 if which == MARIADB else 0.3)
        assert time.monotonic() - began < 20  # and not MariaDB's fifty
        assert caught.value.attempts >= 1
        holder.rollback()
    assert retry_conflicts(add, engine=engine).value == 1


@only(POSTGRESQL, MARIADB)
def test_a_lock_that_a_function_asked_for_at_once_is_asked_for_again(engine):
    def take(session: Session) -> None:
        locked(session, Counter, 1, wait="nowait").value += 1  # type: ignore[union-attr]

    function = Calls(take)
    with Session(engine) as holder:
        locked(holder, Counter, 1)
        timer = threading.Timer(0.3, holder.rollback)
        timer.start()
        retry_conflicts(function, engine=engine)
        timer.join()
    assert function.count > 1


def test_any_number_of_seconds_will_do(engine):
    for timeout in (float("inf"), 1e9):
        assert retry_conflicts(lambda session: 1, engine=engine, timeout=timeout) == 1


@only(SQLITE)
def test_a_function_may_return_what_has_any_attribute(engine):
    """In a unit test, a mock."""
    value = MagicMock()
    assert retry_conflicts(lambda session: value, engine=engine) is value


def test_at_least_one_attempt_is_made_however_little_time_there_is(engine):
    assert retry_conflicts(add, engine=engine, timeout=0).value == 1


@only(*ONE_QUICK)
@repeated_after_a_stall
def test_it_ends_before_the_deadline_of_its_invocation(engine, which, root):
    @perinvoke.isolated
    def handler(event: object, context: object) -> tuple[str, float]:
        try:
            retry_conflicts(add, engine=engine)
        except WriteConflict as error:
            return type(error.__cause__).__name__, perinvoke.current().deadline.remaining_seconds()
        raise AssertionError("the row was locked")

    with engine.connect() as holder:
        if which == SQLITE:
            holder.exec_driver_sql("BEGIN IMMEDIATE")
        holder.execute(sa.update(Counter).values(value=9))
        _, left = handler({}, LambdaContext("1", None, None, int(time.time() * 1000) + 1500, "arn"))
        assert 0 < left < 1.5
        holder.rollback()


# --- connections and commits ----------------------------------------------------------------------------------------------


def end_connection(session: Session) -> Any:
    """Have an administrator end the session's connection to its server."""
    kill(session.connection().engine, session)


def kill(engine: sa.Engine, session: Session) -> None:
    is_postgresql = engine.dialect.name == "postgresql"
    number = session.execute(sa.text("SELECT pg_backend_pid()" if is_postgresql else "SELECT connection_id()")).scalar_one()
    with engine.connect() as other:
        other.exec_driver_sql(f"SELECT pg_terminate_backend({number})" if is_postgresql else f"KILL {number}")


@only(POSTGRESQL, MARIADB)
def test_a_connection_that_broke_before_the_commit_is_replaced_and_all_of_it_repeated(engine):
    function = AtFirst(lambda session: (add(session, 100), session.flush(), end_connection(session)))
    assert retry_conflicts(function, engine=engine).value == 1
    assert (function.count, value_of(engine)) == (2, 1)


@only(POSTGRESQL, MARIADB)
def test_connections_that_always_break_end_in_the_error_of_the_last_one(engine):
    with pytest.raises(sa.exc.OperationalError) as caught:
        retry_conflicts(lambda session: (end_connection(session), add(session)), engine=engine, timeout=0.1)
    assert caught.value.connection_invalidated


@only(POSTGRESQL, MARIADB)
@pytest.mark.parametrize("connects", [True, False])
@repeated_after_a_stall
def test_a_server_that_is_away_after_that_is_waited_for(engine, connects):
    tries = itertools.count()
    dbapi: Any = engine.dialect.dbapi

    def disturb(session: Session) -> None:
        add(session, 100)
        session.flush()
        kill(engine, session)

    function = AtFirst(disturb)

    def refuse(*_: object) -> None:
        if function.count and (next(tries) < 3 or not connects):
            raise dbapi.OperationalError("connection refused")

    through = sa.create_engine(engine.url, poolclass=sa.NullPool)
    sa.event.listen(through, "do_connect", refuse)
    if connects:
        assert retry_conflicts(function, engine=through).value == 1
        assert function.count == 2
    else:
        with pytest.raises(sa.exc.OperationalError, match="refused"):
            retry_conflicts(function, engine=through, timeout=0.3)
        with pytest.raises(sa.exc.OperationalError, match="refused"):
            retry_conflicts(function, engine=through)  # nothing was ever there


@only(POSTGRESQL, MARIADB)
def test_a_commit_whose_answer_is_lost_stays_unknown_where_nobody_answers_any_more(engine):
    dbapi: Any = engine.dialect.dbapi
    function = Calls(add)

    def refuse(*_: object) -> None:
        if function.count:
            raise dbapi.OperationalError("connection refused")

    with LossyProxy(engine.url.port) as proxy:
        through = sa.create_engine(engine.url.set(port=proxy.port), poolclass=sa.NullPool)
        with through.connect():
            pass
        sa.event.listen(through, "do_connect", refuse)
        proxy.losses = 1
        with pytest.raises(CommitUnknown):
            retry_conflicts(function, engine=through, repeatable=True, timeout=0.5)
    assert function.count == value_of(engine) == 1


@only(POSTGRESQL, MARIADB)
@pytest.mark.parametrize("repeatable", [False, True])
def test_a_commit_whose_answer_is_lost_is_repeated_only_where_that_does_no_harm(engine, repeatable):
    with LossyProxy(engine.url.port) as proxy:
        through = sa.create_engine(engine.url.set(port=proxy.port), poolclass=sa.NullPool)
        with through.connect():
            pass  # a new dialect asks the server some things first
        proxy.losses = 1
        function = Calls(add)
        if repeatable:
            assert retry_conflicts(function, engine=through, repeatable=True).value == 2
        else:
            with pytest.raises(CommitUnknown, match="nobody knows whether Calls was committed") as caught:
                retry_conflicts(function, engine=through)
            assert caught.value.attempts == 1
            assert isinstance(caught.value.__cause__, sa.exc.DBAPIError)
            assert pickle.loads(pickle.dumps(caught.value)).attempts == 1
    assert function.count == value_of(engine) == (2 if repeatable else 1)


@only(POSTGRESQL)
@pytest.mark.parametrize("end", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_commit_that_was_ended_from_outside_is_unknown(engine, end):
    with engine.begin() as connection:
        connection.exec_driver_sql(SLOW_COMMIT)

    timers = []

    def function(session: Session) -> None:
        add(session)
        number = session.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        timers.append(soon(0.3, lambda: elsewhere(engine, lambda other: other.execute(sa.text(f"SELECT {end}({number})")))(None)))

    calls = Calls(function)
    with pytest.raises(CommitUnknown):
        retry_conflicts(calls, engine=engine)
    timers[0].join()
    assert (calls.count, value_of(engine)) == (1, 0)


@only(POSTGRESQL, SQLITE)
def test_a_commit_that_the_database_refuses_for_another_reason_is_refused(engine, which):
    constraint = "ALTER TABLE conflict_member ALTER CONSTRAINT conflict_member_team_id_fkey"

    def defer(how: str) -> None:
        if which == POSTGRESQL:
            with engine.begin() as connection:
                connection.exec_driver_sql(f"{constraint} {how}")

    def function(session: Session) -> None:
        if which == SQLITE:
            session.execute(sa.text("PRAGMA defer_foreign_keys = ON"))
        session.add(Member(email="a", team_id=99))

    if which == SQLITE:
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
        engine.dispose()
    calls = Calls(function)
    defer("INITIALLY DEFERRED")
    try:
        with pytest.raises(sa.exc.IntegrityError):
            retry_conflicts(calls, engine=engine)
    finally:
        defer("NOT DEFERRABLE")
    assert calls.count == 1
    assert retry_conflicts(add, engine=engine).value == 1


# --- functions that do what they shouldn't --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "named"),
    [
        (lambda session: session.commit(), r"session.commit\(\)"),
        (lambda session: session.rollback(), r"session.rollback\(\)"),
        (lambda session: session.close(), r"session.close\(\)"),
        (lambda session: session.begin(), r"session.begin\(\)"),
        (lambda session: session.get_transaction().commit(), r"its transaction's commit\(\)"),
        (lambda session: session.get_transaction().rollback(), r"its transaction's commit\(\)"),
        (lambda session: session.connection().commit(), r"its transaction's commit\(\)"),
    ],
)
def test_a_function_that_ends_the_transaction_itself_is_told_so(engine, end, named):
    calls = Calls(lambda session: (add(session), end(session)))
    with pytest.raises(SqlUseError, match=f"called {named}.*begin_nested"):
        retry_conflicts(calls, engine=engine)
    assert calls.count == 1


@pytest.mark.parametrize("word", ["COMMIT", " rollback", "START\nTRANSACTION"])
def test_also_one_that_ends_it_in_sql_before_it_does(engine, word):
    def function(session: Session) -> None:
        add(session)
        session.flush()
        session.execute(sa.text(word))
        add(session)

    with pytest.raises(SqlUseError, match=f"called {word.strip()} as SQL"):
        retry_conflicts(function, engine=engine)
    assert value_of(engine) == 0


@only(POSTGRESQL, SQLITE)
def test_also_one_that_ends_it_by_the_driver(engine):
    def function(session: Session) -> None:
        driver: Any = session.connection().connection.driver_connection
        driver.rollback()

    with pytest.raises(SqlUseError, match="COMMIT or ROLLBACK of its driver's connection"):
        retry_conflicts(function, engine=engine)


def test_a_part_that_may_fail_alone_goes_into_a_savepoint(engine):
    def function(session: Session) -> None:
        add(session)
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.execute(sa.insert(Counter).values(id=2, value=0))

    retry_conflicts(function, engine=engine)
    assert value_of(engine) == 1


@only(POSTGRESQL)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_a_swallowed_error_that_ended_the_transaction_is_no_success(engine, driver, postgres):
    def function(session: Session) -> str:
        add(session)
        session.flush()
        with pytest.raises(sa.exc.DBAPIError):
            session.execute(sa.text("INSERT INTO conflict_counter VALUES (1, 1)"))
        return "done"

    with_driver = sa.create_engine(postgres.url(driver))
    with pytest.raises(SqlUseError, match="went on.*begin_nested") as caught:
        retry_conflicts(function, engine=with_driver)
    assert isinstance(caught.value.__cause__, sa.exc.DBAPIError)
    assert value_of(engine) == 0
    with_driver.dispose()


def test_a_swallowed_error_of_a_flush_is_no_success(engine):
    def function(session: Session) -> None:
        add(session)
        session.add(Team(id=1))
        session.flush()
        session.expunge_all()
        session.add(Team(id=1))
        with pytest.raises(sa.exc.IntegrityError):
            session.flush()

    with pytest.raises(SqlUseError, match="went on") as caught:
        retry_conflicts(function, engine=engine)
    assert isinstance(caught.value.__cause__, sa.exc.IntegrityError)
    assert value_of(engine) == 0


@pytest.mark.usefixtures("_quick_deadlocks")
@only(POSTGRESQL, MARIADB)
@pytest.mark.parametrize("after", ["nothing", "a query", "a failed flush"])
def test_a_swallowed_deadlock_is_repeated_and_nothing_is_committed_by_half(engine, after):
    """MySQL and MariaDB take back all of the transaction, and begin another one at the next statement."""
    barrier = threading.Barrier(2)

    def both(first: int, second: int) -> None:
        meet = iter([lambda: barrier.wait(10)])

        def function(session: Session) -> None:
            session.execute(sa.update(Counter).where(Counter.id == first).values(value=Counter.value + 1))
            next(meet, lambda: None)()
            try:
                if after == "a failed flush":
                    add(session, number=second)
                    session.flush()
                else:
                    session.execute(sa.update(Counter).where(Counter.id == second).values(value=Counter.value + 1))
            except sa.exc.OperationalError:
                pass
            if after != "nothing":
                session.scalars(sa.select(Team)).all()

        retry_conflicts(function, engine=engine)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(both, [1, 2], [2, 1]))
    assert (value_of(engine), value_of(engine, 2)) == (2, 2)


@only(MARIADB)
def test_a_deadlock_inside_a_savepoint_which_went_with_it_is_repeated(engine):
    barrier = threading.Barrier(2)

    def both(first: int, second: int) -> None:
        meet = iter([lambda: barrier.wait(10)])

        def function(session: Session) -> None:
            locked(session, Counter, first).value += 1  # type: ignore[union-attr]  # it is there
            session.flush()
            next(meet, lambda: None)()
            with session.begin_nested():
                locked(session, Counter, second).value += 1  # type: ignore[union-attr]  # it is there

        retry_conflicts(function, engine=engine)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(both, [1, 2], [2, 1]))
    assert (value_of(engine), value_of(engine, 2)) == (2, 2)


def test_what_a_function_raises_comes_through_and_nothing_is_committed(engine):
    for error in (ValueError("no"), KeyboardInterrupt()):

        def function(session: Session, error: BaseException = error) -> None:
            add(session)
            session.flush()
            raise error

        with pytest.raises(type(error)) as caught:
            retry_conflicts(function, engine=engine)
        assert caught.value is error
        assert value_of(engine) == 0


def test_an_error_of_a_functions_own_is_its_decision_even_if_a_conflict_is_its_cause(engine):
    def function(session: Session) -> None:
        raise ValueError("no") from RowLocked("taken")

    calls = Calls(function)
    with pytest.raises(ValueError, match="no"):
        retry_conflicts(calls, engine=engine)
    assert calls.count == 1


@only(SQLITE)
def test_functions_that_would_run_later_are_refused(engine):
    async def later(session: Session) -> None:
        raise AssertionError

    def generator(session: Session) -> Any:
        yield

    async def stream(session: Session) -> Any:
        yield

    for function in (later, generator, stream, functools.partial(later)):
        with pytest.raises(SqlUseError, match="asynchronous, or a generator"):
            retry_conflicts(function, engine=engine)
        with pytest.raises(SqlUseError, match="asynchronous, or a generator"):
            retry_conflicts(engine=engine)(function)
    hidden: Any = lambda session: later(session)  # noqa: E731  # what later is can't be seen on it
    with pytest.raises(SqlUseError, match="got coroutine from its function"):
        retry_conflicts(hidden, engine=engine)
    with pytest.raises(SqlUseError, match="takes a function of a session, not int"):
        retry_conflicts(3, engine=engine)  # type: ignore[call-overload]  # on purpose


@only(SQLITE)
def test_what_is_no_engine_is_refused(engine):
    for wrong in ("sqlite://", None, Session(engine)):
        with pytest.raises(SqlUseError, match="makes its own sessions, from an Engine"):
            retry_conflicts(add, engine=wrong)  # type: ignore[call-overload]  # on purpose
    with pytest.raises(SqlUseError, match="takes no AsyncEngine"):
        retry_conflicts(add, engine=SimpleNamespace(sync_engine=engine))  # type: ignore[call-overload]  # SQLAlchemy's needs greenlet
    engine.dialect.is_async = True
    with pytest.raises(SqlUseError, match="pysqlite is an asynchronous driver"):
        retry_conflicts(add, engine=engine)
    engine.dialect.is_async = False


def test_isolation_levels_are_those_of_the_database(engine, which):
    for wrong in ("SERIALISABLE", "AUTOCOMMIT", "", 3):
        with pytest.raises(SqlUseError, match=r"isolation is .*has .*SERIALIZABLE"):
            retry_conflicts(add, engine=engine, isolation=wrong)  # type: ignore[arg-type]  # on purpose
    if which == SQLITE:
        with pytest.raises(SqlUseError, match="sqlite has READ UNCOMMITTED, SERIALIZABLE"):
            retry_conflicts(add, engine=engine, isolation="REPEATABLE READ")
    else:
        level = retry_conflicts(
            lambda session: session.connection().get_isolation_level(), engine=engine, isolation="repeatable_read"
        )
        assert level == "REPEATABLE READ"


def test_autocommit_is_refused_however_it_was_set(engine, which):
    engines = [engine.execution_options(isolation_level="AUTOCOMMIT"), sa.create_engine(engine.url, isolation_level="AUTOCOMMIT")]
    if which != SQLITE:
        engines.append(sa.create_engine(engine.url, connect_args={"autocommit": True}))
    for wrong in engines:
        with pytest.raises(SqlUseError, match="every statement is one of its own"):
            retry_conflicts(add, engine=wrong)
        wrong.dispose()
    assert retry_conflicts(add, engine=engine.execution_options(isolation_level="AUTOCOMMIT"), isolation=SERIALIZABLE).value == 1


@only(SQLITE)
def test_session_options_that_would_decide_about_commits_are_refused(engine):
    for name in ("bind", "binds", "twophase", "autobegin", "join_transaction_mode"):
        with pytest.raises(SqlUseError, match=f"session_options of retry_conflicts have {name}"):
            retry_conflicts(add, engine=engine, session_options={name: None})


@only(SQLITE)
def test_a_timeout_that_is_none_is_refused(engine):
    for wrong in (-1, "1", float("nan")):
        with pytest.raises(FixConfiguration, match="timeout is"):
            retry_conflicts(add, engine=engine, timeout=wrong)  # type: ignore[arg-type]  # on purpose


# --- what is done elsewhere ------------------------------------------------------------------------------------------------


def called(function: Any, engine: sa.Engine) -> Any:
    @perinvoke.isolated
    def handler(event: object, context: object) -> Any:
        return retry_conflicts(function, engine=engine)

    return handler({}, LambdaContext("1", None, None, int(time.time() * 1000) + 20_000, "arn"))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "retry_conflicts repeats" in record.getMessage()]


@only(SQLITE)
def test_one_warning_tells_that_a_repeated_attempt_has_deferred_cleanups(engine, caplog, root):
    numbers = itertools.count()

    def function(session: Session) -> None:
        perinvoke.current().defer(lambda: None)
        if next(numbers) < 3:
            raise RowLocked("made up")

    called(function, engine)
    [warning] = warnings_in(caplog)
    assert "function, though" in warning
    assert "(1 in all)" in warning
    assert [record.levelno for record in caplog.records if record.name == "perinvoke"] == [logging.WARNING]


@only(SQLITE)
def test_a_warning_tells_that_a_repeated_attempt_has_called_aws(engine, caplog, root, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    client = perinvoke.boto3_client("sqs", region_name="eu-west-1", endpoint_url="http://127.0.0.1:1")

    def call(session: Session) -> None:
        with pytest.raises(botocore.exceptions.EndpointConnectionError):
            client.list_queues()
        raise RowLocked("made up")

    called(AtFirst(call), engine)
    assert len(warnings_in(caplog)) == 1


@only(SQLITE)
def test_attempts_that_do_nothing_elsewhere_or_succeed_are_not_worth_a_word(engine, caplog, root):
    called(raises_first(RowLocked("made up")), engine)
    called(lambda session: perinvoke.current().defer(lambda: None), engine)
    assert warnings_in(caplog) == []
