"""Advisory locks on real PostgreSQL and MariaDB."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import perinvoke
from perinvoke.fleet.sql import RowLocked, SqlUseError, advisory_lock
from perinvoke.fleet.sql.advisory import _number_of
from sql_lock_models import Account
from sql_lock_servers import MARIADB, POSTGRESQL, SQLITE, fill, soon, tables, url_of
from stalls import repeated_after_a_stall


@pytest.fixture(scope="module", params=[POSTGRESQL, MARIADB])
def which(request):
    return request.param


@pytest.fixture(scope="module")
def prepared(which, request):
    with tables(url_of(which, request)) as engine:
        yield engine


@pytest.fixture
def engine(prepared):
    fill(prepared, Account(id=1))
    yield prepared
    prepared.dispose()


def only(*names: str):
    return pytest.mark.parametrize("which", names, indirect=True)


def is_free(engine: sa.Engine, key: str | int = "import") -> bool:
    with Session(engine) as session:
        try:
            advisory_lock(session, key, wait="nowait")
        except RowLocked:
            return False
        return True


@pytest.mark.parametrize("key", ["import", "x" * 300, "Ärger/'\"%s:key\n\x00\\", "\ud800", 0, -(2**63), 2**63 - 1])
def test_a_key_is_locked_until_the_transaction_ends(engine, key):
    with Session(engine) as session:
        for end in (session.commit, session.rollback, session.close):
            advisory_lock(session, key)
            assert not is_free(engine, key)
            assert is_free(engine, "another")
            end()
            assert is_free(engine, key)


def test_keys_that_look_alike_are_different(engine):
    with Session(engine) as session:
        advisory_lock(session, "a")
        advisory_lock(session, "7")
        assert is_free(engine, "A")
        assert is_free(engine, 7)
        assert is_free(engine, "a ")


def test_a_transaction_may_lock_again_and_all_is_free_at_its_end(engine):
    with Session(engine) as session:
        for _ in range(3):
            advisory_lock(session, "import")
            advisory_lock(session, "export")
        session.commit()
        assert is_free(engine, "import")
        assert is_free(engine, "export")


def test_it_is_free_only_after_the_commit(engine):
    """Who locks next sees what was committed; so no increment is lost."""

    def add(_: int) -> None:
        for _again in range(10):
            with Session(engine) as session, session.begin():
                advisory_lock(session, "account 1")
                balance = session.scalar(sa.select(Account.balance).where(Account.id == 1))
                session.execute(sa.update(Account).where(Account.id == 1).values(balance=(balance or 0) + 1))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(4)))
    with Session(engine) as session:
        assert session.get_one(Account, 1).balance == 40


@repeated_after_a_stall
def test_a_wait_takes_as_long_as_was_asked_and_tells_so(engine):
    wait = 0.3
    with Session(engine) as holder, Session(engine) as session:
        advisory_lock(holder, "import")
        with pytest.raises(RowLocked, match="The advisory lock 'import' couldn't be locked") as caught:
            advisory_lock(session, "import", wait=wait)
        assert caught.value.key == "import"
        assert wait / 2 <= caught.value.waited_seconds <= wait + 0.5
        session.rollback()
        assert session.get_one(Account, 1).balance == 0


def test_a_waiter_gets_it_when_its_holder_is_done(engine):
    with Session(engine) as holder, Session(engine) as session:
        advisory_lock(holder, "import")
        timer = soon(0.3, holder.commit)
        advisory_lock(session, "import")
        timer.join()
        assert not is_free(engine)


def test_after_nowait_the_transaction_goes_on(engine):
    with Session(engine) as holder, Session(engine) as session:
        advisory_lock(holder, "import")
        with pytest.raises(RowLocked):
            advisory_lock(session, "import", wait="nowait")
        assert session.get_one(Account, 1).balance == 0


def test_a_savepoint_that_is_rolled_back(which, engine):
    with Session(engine) as session:
        nested = session.begin_nested()
        advisory_lock(session, "import")
        nested.rollback()
        assert is_free(engine) == (which == POSTGRESQL)
        session.commit()
        assert is_free(engine)


def test_it_is_free_when_its_holders_connection_dies(which, engine):
    kill = "SELECT pg_terminate_backend({})" if which == POSTGRESQL else "KILL {}"
    me = "SELECT pg_backend_pid()" if which == POSTGRESQL else "SELECT CONNECTION_ID()"
    with Session(engine) as session:
        advisory_lock(session, "import")
        number = session.scalar(sa.text(me))
        with engine.connect() as admin:
            admin.exec_driver_sql(kill.format(number))
        until = time.monotonic() + 5
        while not is_free(engine):
            assert time.monotonic() < until
        with pytest.raises(sa.exc.DBAPIError):
            session.get(Account, 1)
    assert is_free(engine)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "SERIALIZABLE"])
def test_what_is_set_for_the_wait_is_put_back(which, engine, isolation):
    query = sa.text("SELECT current_setting('lock_timeout'), current_setting('statement_timeout')")
    with Session(engine.execution_options(isolation_level=isolation)) as session:
        if which == POSTGRESQL:
            before = session.execute(query).one()
        advisory_lock(session, "import", wait=3)
        if which == POSTGRESQL:
            assert session.execute(query).one() == before


def test_over_perinvokes_engine(engine, root):
    mine = perinvoke.engine(engine.url, max_connections=2)
    with Session(mine) as session, session.begin():
        advisory_lock(session, "import")
        assert not is_free(engine)
    assert is_free(engine)
    mine.dispose()


def test_a_session_over_one_connection_keeps_it_until_that_is_closed(which, engine):
    with engine.connect() as connection, connection.begin(), Session(connection) as session:
        advisory_lock(session, "import")
        session.commit()
        assert not is_free(engine)
    assert is_free(engine)


@only(POSTGRESQL)
@pytest.mark.parametrize("key", ["", None, 1.5, True, 2**63, -(2**63) - 1, b"import", ["import"]])
def test_what_is_no_key_is_refused(engine, key):
    with Session(engine) as session, pytest.raises(SqlUseError, match="is no key; allowed are texts that aren't empty"):
        advisory_lock(session, key)


@only(POSTGRESQL)
@pytest.mark.parametrize("wait", ["skip", -1, None])
def test_another_wait_is_refused(engine, wait):
    with Session(engine) as session, pytest.raises(SqlUseError, match='allowed are "deadline", "nowait", or seconds'):
        advisory_lock(session, "import", wait=wait)


def test_a_session_that_holds_nothing_is_refused(engine):
    with pytest.raises(SqlUseError, match="autobegin=False"):
        advisory_lock(Session(engine, autobegin=False), "import")
    with (
        Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session,
        pytest.raises(SqlUseError, match="AUTOCOMMIT"),
    ):
        advisory_lock(session, "import")


@only(MARIADB)
@repeated_after_a_stall
def test_mysql_which_counts_whole_seconds(engine, monkeypatch):
    """It speaks to MariaDB as if it were MySQL."""
    with engine.connect():
        monkeypatch.setattr(engine.dialect, "is_mariadb", False)
    with Session(engine) as holder, Session(engine) as session:
        advisory_lock(holder, "import")
        with pytest.raises(RowLocked) as caught:
            advisory_lock(session, "import", wait=1.3)
        assert 1 < caught.value.waited_seconds < 2


def test_sqlite_has_none_and_says_what_works_there(request):
    says = pytest.raises(SqlUseError, match=r"perinvoke.file_lock\(name\)")
    with tables(url_of(SQLITE, request)) as engine, Session(engine) as session, says:
        advisory_lock(session, "import")


def test_a_texts_number_never_changes():
    """Old and new versions of a function run side by side, and lock the same."""
    assert _number_of("import") == -2033561759315297868
