"""Row locks on real PostgreSQL, MariaDB and SQLite."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    mapped_column,
    scoped_session,
    selectinload,
    sessionmaker,
)
from sqlalchemy.orm.exc import ObjectDeletedError

from perinvoke import isolated
from perinvoke.fleet.sql import Conflict, RowLocked, SqlUseError, advisory_lock, conflict_of, lock_row, locked
from sql_lock_models import Account, Base, Bicycle, Car, Customer, Item, Note, Order, Seat, Vehicle
from sql_lock_servers import ALL, MARIADB, ONE_QUICK, POSTGRESQL, SQLITE, fill, held, soon, tables, url_of
from stalls import repeated_after_a_stall

SETTINGS = {
    POSTGRESQL: "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')",
    MARIADB: "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout",
    SQLITE: "PRAGMA busy_timeout",
}


@pytest.fixture(scope="module", params=ALL)
def which(request):
    return request.param


@pytest.fixture(scope="module")
def prepared(which, request):
    with tables(url_of(which, request)) as engine:
        yield engine


@pytest.fixture
def engine(prepared):
    fill(
        prepared,
        *(Account(id=1, balance=10), Account(id=2), Seat(hall="A", number=7), Customer(id=1, name="Ann")),
        Order(id=1, items=[Item(id=1), Item(id=2)], notes=[Note(id=1)]),
        *(Vehicle(id=1), Car(id=2, doors=2), Bicycle(id=3, gears=7)),
    )
    yield prepared
    prepared.dispose()


def only(*names: object):
    return pytest.mark.parametrize("which", names, indirect=True)


def test_a_row_is_locked_until_its_transaction_ends(engine):
    with Session(engine) as other:
        with held(engine, Account, 1), pytest.raises(RowLocked):
            locked(other, Account, 1, wait="nowait")
        other.rollback()
        account = locked(other, Account, 1, wait="nowait")
        assert account is not None
        assert account.balance == 10


@only(POSTGRESQL, MARIADB)
def test_other_rows_are_not_locked(engine):
    with held(engine, Account, 1), Session(engine) as other:
        assert locked(other, Account, 2, wait="nowait") is not None


def test_a_waiter_gets_the_row_as_its_holder_left_it(engine):
    with Session(engine) as session, Session(engine) as holder:
        known = session.get(Account, 1)
        assert known is not None
        session.rollback()
        theirs = locked(holder, Account, 1)
        assert theirs is not None
        theirs.balance = 99
        holder.flush()
        timer = soon(0.3, holder.commit)
        assert locked(session, Account, 1) is known
        assert known.balance == 99
        timer.join()


def test_an_old_copy_from_the_identity_map_is_never_handed_out(engine):
    with Session(engine, expire_on_commit=False) as session:
        account = session.get_one(Account, 1)
        seat = session.get_one(Seat, ("A", 7))
        session.commit()  # it keeps what it has read
        with Session(engine) as other, other.begin():
            other.execute(sa.update(Account).values(balance=5))
            other.execute(sa.update(Seat).values(taken_by="Bob"))
        assert account.balance == 10
        assert locked(session, Account, 1) is account
        assert account.balance == 5
        assert lock_row(session, seat) is seat
        assert seat.taken_by == "Bob"


@only(MARIADB)
def test_a_lock_reads_past_the_snapshot_that_a_transaction_has(engine):
    with Session(engine) as session:
        account = session.get_one(Account, 1)
        with Session(engine) as other, other.begin():
            other.execute(sa.update(Account).values(balance=5))
        assert session.scalar(sa.select(Account.balance).where(Account.id == 1)) == 10
        assert locked(session, Account, 1) is account
        assert account.balance == 5


@only(POSTGRESQL)
def test_under_repeatable_read_a_row_that_has_changed_since_is_a_serialization_failure(engine):
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        session.get(Account, 1)
        with Session(engine) as other, other.begin():
            other.execute(sa.update(Account).values(balance=5))
        with pytest.raises(sa.exc.OperationalError) as caught:
            locked(session, Account, 1)
        assert conflict_of(caught.value) is Conflict.SERIALIZATION


def test_no_row_is_none(engine):
    with Session(engine) as session:
        assert locked(session, Account, 404) is None
        assert locked(session, Account, 404, wait="skip") is None
        assert locked(session, Seat, ("A", 8)) is None


@pytest.mark.parametrize("key", [("A", 7), ["A", 7], {"number": 7, "hall": "A"}])
def test_a_composite_key_is_a_tuple_or_a_dictionary(engine, key):
    with Session(engine) as session:
        assert locked(session, Seat, key) is session.get(Seat, ("A", 7))


@only(SQLITE)
@pytest.mark.parametrize("key", ["A", ("A",), ("A", 7, 7), {"hall": "A"}, {"hall": "A", "no": 7}, ("A", None), None])
def test_a_key_that_is_none_says_what_one_is(engine, key):
    with Session(engine) as session, pytest.raises(SqlUseError, match=r"no primary key of Seat; .*\(hall, number\)"):
        locked(session, Seat, key)
    with Session(engine) as session, pytest.raises(SqlUseError, match="that is the value of id"):
        locked(session, Account, None)


@pytest.mark.parametrize("wait", [0.3, 1.3])
@repeated_after_a_stall
def test_a_wait_takes_as_long_as_was_asked_and_tells_so(which, engine, wait):
    if wait > 1 and which != MARIADB:
        pytest.skip("it doesn't count whole seconds")
    began = time.monotonic()
    with held(engine, Account, 1), Session(engine) as session, pytest.raises(RowLocked, match="Account 1 couldn't be") as caught:
        locked(session, Account, 1, wait=wait)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.what, error.key) == ("Account", 1)
    assert wait / 2 <= error.waited_seconds <= wait + 0.5
    assert time.monotonic() - began < wait + 1
    assert conflict_of(error) is Conflict.LOCK_TIMEOUT


def test_after_row_locked_the_session_can_be_used(which, engine):
    with Session(engine) as session:
        with held(engine, Account, 1), pytest.raises(RowLocked):
            locked(session, Account, 1, wait=0.1)
        if which == POSTGRESQL:
            with pytest.raises(sa.exc.InternalError):
                session.scalar(sa.text("SELECT 1"))
            session.rollback()
        assert locked(session, Account, 1) is not None
        session.add(Account(id=3))
        session.commit()


def test_a_savepoint_keeps_the_transaction(which, engine):
    with held(engine, Account, 1) if which != SQLITE else Session(engine), Session(engine) as session:
        if which == SQLITE:
            pytest.skip("its other writers are locked out altogether")
        session.add(Account(id=3))
        with pytest.raises(RowLocked), session.begin_nested():
            locked(session, Account, 1, wait=0.1)
        session.commit()
        assert session.get(Account, 3) is not None
    with Session(engine) as session:
        with session.begin_nested():
            assert locked(session, Account, 1) is not None
        with Session(engine) as other, pytest.raises(RowLocked):  # a savepoint that was kept keeps the lock
            locked(other, Account, 1, wait="nowait")


def test_skip_is_none_where_others_have_it_and_get_tells_which(engine):
    with held(engine, Account, 1), Session(engine) as session:
        assert locked(session, Account, 1, wait="skip") is None
        account = session.get(Account, 1)
        assert account is not None
        assert lock_row(session, account, wait="skip") is None
    with Session(engine) as session:
        assert locked(session, Account, 1, wait="skip") is not None


@pytest.mark.parametrize("wait", [0.2, 5, "nowait", "skip", "deadline"])
def test_what_is_set_for_the_wait_is_put_back(which, engine, wait):
    query = sa.text(SETTINGS[which])
    with Session(engine) as session:
        before = session.execute(query).one()
        locked(session, Account, 1, wait=wait)
        assert session.execute(query).one() == before
        session.rollback()
        if wait not in (5, "deadline"):
            with held(engine, Account, 1):
                with pytest.raises(RowLocked) if wait != "skip" else session.begin_nested():
                    locked(session, Account, 1, wait=wait)
                session.rollback()
            assert session.execute(query).one() == before


@only(POSTGRESQL)
@pytest.mark.parametrize("driver", ["psycopg2", "pg8000"])
def test_other_drivers(engine, driver):
    other = sa.create_engine(engine.url.set(drivername=f"postgresql+{driver}"))
    query = sa.text(SETTINGS[POSTGRESQL])
    with held(engine, Account, 1), Session(other) as session:
        before = session.execute(query).one()
        assert locked(session, Account, 2, wait=7) is not None
        advisory_lock(session, "accounts", wait=7)
        assert session.execute(query).one() == before
        with pytest.raises(RowLocked):
            locked(session, Account, 1, wait=0.1)
        session.rollback()
        assert locked(session, Account, 1, wait="skip") is None
    with Session(other.execution_options(isolation_level="AUTOCOMMIT")) as session, pytest.raises(SqlUseError):
        locked(session, Account, 1)
    other.dispose()


@only(POSTGRESQL)
def test_a_shorter_statement_timeout_of_the_callers_own_stays(engine):
    with held(engine, Account, 1), Session(engine) as session:
        session.execute(sa.text("SET LOCAL statement_timeout = '200ms'"))
        with pytest.raises(sa.exc.OperationalError, match="statement timeout"):
            locked(session, Account, 1, wait=20)
        session.rollback()
        session.execute(sa.text("SET LOCAL statement_timeout = '1min'; SET LOCAL lock_timeout = '1h'"))
        with pytest.raises(RowLocked):
            locked(session, Account, 1, wait=0.1)
    with Session(engine) as session:
        session.execute(sa.text("SET LOCAL statement_timeout = '1min'; SET LOCAL lock_timeout = '1h'"))
        locked(session, Account, 1, wait=0.1)
        assert tuple(session.execute(sa.text(SETTINGS[POSTGRESQL])).one()) == ("1h", "1min")


@only(POSTGRESQL, pytest.param(MARIADB, marks=pytest.mark.slow))
@repeated_after_a_stall
def test_those_who_queue_all_end_in_time(engine):
    """Behind the head of PostgreSQL's queue a lock_timeout begins anew."""

    def wait(_: int) -> float:
        with Session(engine) as session, pytest.raises(RowLocked) as caught:
            locked(session, Account, 1, wait=1.2)
        return caught.value.waited_seconds

    with held(engine, Account, 1), ThreadPoolExecutor(4) as threads:
        assert max(threads.map(wait, range(4))) < 2


@only(POSTGRESQL, MARIADB)
def test_a_wait_for_a_whole_table_is_bounded_too(which, engine):
    wait = 0.2 if which == POSTGRESQL else 1.1  # MariaDB counts whole seconds, and polls for less
    lock = "LOCK TABLE lock_account IN ACCESS EXCLUSIVE MODE" if which == POSTGRESQL else "LOCK TABLES lock_account WRITE"
    with engine.connect() as migration, Session(engine) as session:
        migration.execute(sa.text(lock))
        with pytest.raises(RowLocked):
            locked(session, Account, 1, wait=wait)
        if which == MARIADB:
            migration.execute(sa.text("UNLOCK TABLES"))


@only(MARIADB)
@pytest.mark.parametrize("wait", [0.3, pytest.param(2.2, marks=pytest.mark.slow), "nowait", "skip"])
def test_the_way_of_mysql(engine, wait, monkeypatch):
    """MySQL knows no WAIT n; what it knows in its place, MariaDB does, too."""
    with engine.connect():
        monkeypatch.setattr(engine.dialect, "is_mariadb", False)
    query = sa.text(SETTINGS[MARIADB])
    with held(engine, Account, 1), Session(engine) as session:
        before = session.execute(query).one()
        began = time.monotonic()
        if wait == "skip":
            assert locked(session, Account, 1, wait=wait) is None
        else:
            with pytest.raises(RowLocked):
                locked(session, Account, 1, wait=wait)
        assert time.monotonic() - began < 20  # and not the server's fifty
        assert session.execute(query).one() == before
        assert locked(session, Account, 2, wait=wait) is not None


@only(*ONE_QUICK)
@repeated_after_a_stall
def test_inside_an_invocation_the_wait_ends_before_the_deadline(engine, lambda_context, root, monkeypatch):
    monkeypatch.setenv("PERINVOKE_TIMEOUT_SECONDS", "1")

    @isolated
    def handler(event, context):
        with Session(engine) as session:
            began = time.monotonic()
            with pytest.raises(RowLocked):
                locked(session, Account, 1, wait=event)
            return time.monotonic() - began

    with held(engine, Account, 1):
        assert handler("deadline", lambda_context) < 1
        assert handler(3600, lambda_context) < 1


@only(SQLITE)
@pytest.mark.parametrize("wait", ["now", -1, float("nan"), float("inf"), None, True, 86_401, [1]])
def test_another_wait_is_refused_with_what_is_allowed(engine, wait):
    with Session(engine) as session, pytest.raises(SqlUseError, match=r'allowed are "deadline", "nowait", "skip", or seconds'):
        locked(session, Account, 1, wait=wait)


def test_unsaved_changes_are_refused_by_name(engine):
    with Session(engine) as session:
        account = session.get(Account, 1)
        order = session.get(Order, 1)
        assert account is not None
        assert order is not None
        assert len(order.notes) == 1  # reading them later would flush
        account.balance = 11
        order.total = 5
        order.notes.append(Note(id=7))
        for call in (lambda: lock_row(session, account), lambda: locked(session, Account, 1)):
            with pytest.raises(SqlUseError, match="This Account has unsaved changes of balance, made before its row was locked"):
                call()
        with pytest.raises(SqlUseError, match="changes of notes, total,"):
            lock_row(session, order)
        session.flush()
        assert lock_row(session, account) is account
        assert account.balance == 11


@only(MARIADB, SQLITE)
@pytest.mark.parametrize("autoflush", [True, False])
def test_unsaved_changes_are_refused_by_a_key_too_that_only_the_database_takes_for_the_same(engine, autoflush):
    with Session(engine, autoflush=autoflush) as session:
        session.get_one(Account, 1).balance = 11
        with pytest.raises(SqlUseError, match="'1' is the key of Account 1, which had unsaved changes"):
            locked(session, Account, "1")
        session.rollback()
        assert locked(session, Account, "1") is session.get(Account, 1)


@pytest.mark.parametrize("by", ["listener", "driver"])
def test_what_is_set_for_the_wait_is_put_back_after_errors_that_are_not_the_databases(which, engine, by):
    def refuse(*_: object) -> None:
        raise ZeroDivisionError

    query = sa.text(SETTINGS[which])
    with Session(engine) as session:
        before = session.execute(query).one()
        if by == "listener":
            sa.event.listen(Account, "load", refuse)
            with pytest.raises(ZeroDivisionError):
                locked(session, Account, 1, wait=0.2)
            sa.event.remove(Account, "load", refuse)
        elif which != MARIADB:  # PyMySQL writes whatever it is as a text
            with pytest.raises(sa.exc.ProgrammingError):
                locked(session, Account, object(), wait=0.2)
        assert session.execute(query).one() == before


def test_what_is_pending_is_flushed_first(engine):
    with Session(engine) as session:
        session.add(Account(id=3, balance=30))
        found = locked(session, Account, 3)
        assert found is not None
        assert found.balance == 30


def test_an_object_that_cannot_be_locked_says_why(engine):
    with Session(engine) as session, Session(engine) as other:
        pending, deleted, theirs = Account(id=9), session.get(Account, 2), other.get(Account, 1)
        detached = session.get(Account, 1)
        session.expunge(detached)
        session.add(pending)
        with session.no_autoflush:
            session.delete(deleted)
        for obj, words in [
            (Account(), "has no row yet"),
            (pending, "has no row yet"),
            (detached, "belongs to no session any more"),
            (theirs, "belongs to another session"),
            (deleted, "was deleted in this session"),
            (object(), "takes an object of a mapped class, not object"),
        ]:
            with pytest.raises(SqlUseError, match=words):
                lock_row(session, obj)


def test_a_row_that_is_gone_is_sqlalchemys_error(engine):
    with Session(engine) as session:
        account = session.get(Account, 1)
        session.commit()
        with Session(engine) as other, other.begin():
            other.execute(sa.delete(Account).where(Account.id == 1))
        with pytest.raises(ObjectDeletedError):
            lock_row(session, account)
        assert lock_row(session, account, wait="skip") is None


@only(SQLITE)
@pytest.mark.parametrize("model", [object, Base, "Account", Account(), Account.__table__, None])
def test_what_is_no_model_is_refused(engine, model):
    with Session(engine) as session, pytest.raises(SqlUseError, match="takes a mapped class as its second argument"):
        locked(session, model, 1)


@only(SQLITE)
def test_a_session_without_a_transaction_is_refused(engine):
    with Session(engine, autobegin=False) as session:
        with pytest.raises(SqlUseError, match=r"autobegin=False. Use it inside `with session.begin\(\):`"):
            locked(session, Account, 1)
        with session.begin():
            assert locked(session, Account, 1) is not None


@pytest.mark.parametrize("by", ["option", "engine", "driver"])
def test_a_session_in_autocommit_is_refused(which, engine, by):
    if by == "option":
        given = engine.execution_options(isolation_level="AUTOCOMMIT")
    elif by == "engine":
        given = sa.create_engine(engine.url, isolation_level="AUTOCOMMIT")
    else:
        arguments = {"isolation_level": None} if which == SQLITE else {"autocommit": True}
        given = sa.create_engine(engine.url, connect_args=arguments)
        if which == MARIADB:  # SQLAlchemy's dialect turns it off again
            sa.event.listen(given, "checkout", lambda connection, *_: connection.autocommit(True))
    with Session(given) as session, pytest.raises(SqlUseError, match="holds its lock until the transaction ends"):
        locked(session, Account, 1)
    given.dispose()


@only(SQLITE)
def test_other_kinds_of_sessions_say_what_to_do(engine):
    class AsyncSession:
        __module__ = "sqlalchemy.ext.asyncio.session"

    with pytest.raises(SqlUseError, match=r"await session.run_sync\(lambda session: locked\(session, …\)\)"):
        locked(AsyncSession(), Account, 1)  # type: ignore[arg-type]  # the point
    with pytest.raises(SqlUseError, match=r"select\(…\).with_for_update\(\) locks"), engine.connect() as connection:
        locked(connection, Account, 1)
    with pytest.raises(SqlUseError, match="as its first argument, not str"):
        locked("session", Account, 1)  # type: ignore[arg-type]  # the point
    session = scoped_session(sessionmaker(engine))
    assert locked(session, Account, 1) is not None
    session.remove()


def test_another_database_is_refused_with_what_works_there(engine, monkeypatch):
    with Session(engine) as session, monkeypatch.context() as patch:
        session.connection()
        patch.setattr(engine.dialect, "name", "oracle")
        words = r"PostgreSQL, MariaDB, MySQL and SQLite; 'oracle' isn't one.*retry_conflicts.*perinvoke.fleet.dynamodb.LeaseLock"
        with pytest.raises(SqlUseError, match=words):
            locked(session, Account, 1)


@only(MARIADB)
def test_a_database_that_is_too_old_is_refused(engine, monkeypatch):
    with Session(engine) as session:
        session.connection()
        monkeypatch.setattr(engine.dialect, "server_version_info", (10, 5, 9))
        with pytest.raises(SqlUseError, match='wait="skip" needs MariaDB 10.6 or newer; this is 10.5.9'):
            locked(session, Account, 1, wait="skip")
        monkeypatch.setattr(engine.dialect, "server_version_info", (10, 2))
        with pytest.raises(SqlUseError, match="locked needs MariaDB 10.3 or newer; this is 10.2"):
            locked(session, Account, 1)


def test_what_is_loaded_eagerly_is_there_and_as_it_is_now(engine):
    with Session(engine) as session, Session(engine) as holder:
        known = session.get(Order, 1)
        session.rollback()
        theirs = locked(holder, Order, 1)
        assert theirs is not None
        theirs.total = 3
        theirs.items.append(Item(id=3))
        holder.flush()
        timer = soon(0.3, holder.commit)
        order = locked(session, Order, 1)
        timer.join()
        assert order is not None
        assert order is known
        assert order.total == 3
        unloaded = sa.inspect(order).unloaded
        assert [item.id for item in order.items] == [1, 2, 3]
        assert unloaded == {"notes"}


@pytest.mark.parametrize("load", [joinedload, selectinload])
def test_options_are_read_under_the_lock(engine, load):
    with Session(engine) as session:
        order = locked(session, Order, 1, options=[load(Order.notes)])
        assert order is not None
        assert sa.inspect(order).unloaded == set()
        assert [note.id for note in order.notes] == [1]


@only(POSTGRESQL, MARIADB)
def test_related_rows_are_not_locked(engine):
    with held(engine, Order, 1), Session(engine) as other:
        assert locked(other, Item, 1, wait="nowait") is not None


@pytest.mark.parametrize("model", [Vehicle, Car])
def test_a_row_in_two_tables_is_locked_in_both(which, engine, model):
    with Session(engine) as session, Session(engine) as other:
        car = locked(session, model, 2)
        assert isinstance(car, Car)
        assert "doors" not in sa.inspect(car).unloaded
        for asked in (Vehicle, Car):
            with pytest.raises(RowLocked):
                locked(other, asked, 2, wait="nowait")
            other.rollback()
        if which != SQLITE:
            suffix = "FOR UPDATE NOWAIT"
            with pytest.raises(sa.exc.DBAPIError):
                other.execute(sa.text(f"SELECT id FROM lock_car WHERE id = 2 {suffix}"))
            other.rollback()
            assert locked(other, Vehicle, 1, wait="nowait") is not None


def test_a_class_without_a_table_of_its_own(engine):
    with Session(engine) as session:
        bicycle = locked(session, Vehicle, 3)
        assert isinstance(bicycle, Bicycle)
        assert "gears" not in sa.inspect(bicycle).unloaded
        assert locked(session, Bicycle, 3) is bicycle
        assert lock_row(session, bicycle) is bicycle
        assert locked(session, Bicycle, 2) is None
        assert locked(session, Car, 3) is None


def test_models_that_are_read_from_a_union_of_tables_are_refused():
    class Boats(DeclarativeBase):
        pass

    class Boat(ConcreteBase, Boats):
        __tablename__ = "boat"
        id: Mapped[int] = mapped_column(primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "boat", "concrete": True}  # noqa: RUF012

    class Ferry(Boat):
        __tablename__ = "ferry"
        id: Mapped[int] = mapped_column(primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "ferry", "concrete": True}  # noqa: RUF012

    engine = sa.create_engine("sqlite://")
    Boats.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Boat(id=1), Boat(id=2), Ferry(id=3)])
        session.flush()
        for key in (1, 2, 3):
            with pytest.raises(SqlUseError, match="locked can't lock Boat: it is read from a union of tables"):
                locked(session, Boat, key)
        with pytest.raises(SqlUseError, match="lock_row can't lock Ferry"):
            lock_row(session, session.get_one(Ferry, 3))
    engine.dispose()


def test_increments_of_many_are_none_lost(engine):
    def add(_: int) -> None:
        for _again in range(5):
            with Session(engine) as session, session.begin():
                account = locked(session, Account, 1)
                assert account is not None
                account.balance += 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(4)))
    with Session(engine) as session:
        assert session.get_one(Account, 1).balance == 30


@only(SQLITE)
@pytest.mark.parametrize("how", ["as it is", "BEGIN", "autocommit=False", "savepoint"])
def test_sqlite_begins_immediate_however_transactions_are_begun(engine, how):
    options = {}
    if how == "autocommit=False":
        if not hasattr(sqlite := pytest.importorskip("sqlite3"), "LEGACY_TRANSACTION_CONTROL"):
            pytest.skip(f"{sqlite.sqlite_version}: Python 3.12 brings it")
        options["connect_args"] = {"autocommit": False}
    mine = sa.create_engine(engine.url, **options)
    if how == "BEGIN":

        @sa.event.listens_for(mine, "connect")
        def never_by_itself(connection, _):
            connection.isolation_level = None

        @sa.event.listens_for(mine, "begin")
        def begin(connection):
            connection.exec_driver_sql("BEGIN")

    with Session(mine) as session, Session(engine) as other:
        if how == "savepoint":
            session.begin_nested()
        account = locked(session, Account, 1)
        assert account is not None
        with pytest.raises(RowLocked, match="another connection is writing to the database"):
            locked(other, Account, 2, wait="nowait")
        account.balance = 77
        session.commit()
        if how == "savepoint":
            session.commit()
        other.rollback()
        assert other.get_one(Account, 1).balance == 77
    mine.dispose()


@only(SQLITE)
def test_sqlite_tells_a_transaction_that_has_read_what_others_changed_since_to_begin_anew(engine):
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    with Session(engine) as session:
        session.connection().exec_driver_sql("BEGIN")
        assert session.get(Account, 1) is not None
        with Session(engine) as other, other.begin():
            other.execute(sa.update(Account).values(balance=5))
        with pytest.raises(sa.exc.OperationalError) as caught:
            locked(session, Account, 1, wait=5)
        assert conflict_of(caught.value) is Conflict.SERIALIZATION
        session.rollback()
        assert locked(session, Account, 1) is not None


def test_threads_that_wait_do_not_stop_others(engine):
    running = threading.Event()

    def wait() -> None:
        with Session(engine) as session:
            running.set()
            with pytest.raises(RowLocked):
                locked(session, Account, 1, wait=0.2)

    with held(engine, Account, 1):
        thread = threading.Thread(target=wait)
        thread.start()
        assert running.wait(20)
        with Session(engine) as session:
            assert session.get(Account, 2) is not None
        thread.join()
