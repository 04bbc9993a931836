"""``engine`` in one process, against real databases: what is kept, cleaned, taken back, waited for and refused."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy.exc
from sqlalchemy import Column, Connection, Engine, Integer, String, event, text
from sqlalchemy.orm import Session

from hostile_servers import SilentServer, UnreachablePort
from perinvoke import engine, isolated
from perinvoke.errors import InvocationTimeout, MissingExtra, PoolError, PoolTimeout
from processes import Process, wait_until
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from databases import MariaDb, Postgres

PID = "SELECT pg_backend_pid()"


@pytest.fixture(autouse=True)
def _own_root(root: Path) -> None:
    """Each test has a budget of its own."""


@pytest.fixture
def new_engine() -> Iterator[Callable[..., Engine]]:
    """``engine``, disposed of at the end, so that no connection of one test counts in the next."""
    made: list[Engine] = []

    def new(url: str, **options: Any) -> Engine:
        made.append(engine(url, **{"max_connections": 2, **options}))
        return made[-1]

    yield new
    for each in made:
        each.dispose()
    wait_until(lambda: all(each.pool.stats().open == 0 for each in made))  # type: ignore[attr-defined]  # perinvoke's pool


def scalar(used: Engine, statement: str) -> Any:
    """The first column of the statement's first row, if it has rows."""
    with used.connect() as connection:
        found = connection.execute(text(statement))
        return found.scalar() if found.returns_rows else None


def new_table(used: Engine, name: str) -> None:
    """An empty table of one column."""
    with used.begin() as connection:
        connection.execute(text(f"DROP TABLE IF EXISTS {name}"))
        connection.execute(text(f"CREATE TABLE {name} (n int)"))


def invoke(work: Callable[[], Any], *, remaining_ms: int | None = None) -> Any:
    """Run ``work`` as an invocation."""
    context = SimpleNamespace(aws_request_id="r", get_remaining_time_in_millis=lambda: remaining_ms)
    return isolated(lambda _event, _context: work())({}, context)


def test_it_is_an_ordinary_engine_and_the_same_for_the_same_arguments(postgres: Postgres, new_engine):
    first = new_engine(postgres.url())
    assert isinstance(first, Engine)
    assert new_engine(postgres.url()) is first
    assert new_engine(postgres.url(), connect_args={"application_name": "other"}) is not first


def test_nothing_is_opened_and_no_thread_started_before_it_is_used(postgres: Postgres, root: Path):
    script = (
        f"import os, sys, threading; sys.path[:] = {sys.path!r}; from perinvoke import engine\n"
        f"before = len(os.listdir('/proc/self/fd')); engine({postgres.url()!r}, max_connections=2)\n"
        "print(threading.active_count(), len(os.listdir('/proc/self/fd')) - before)"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True, timeout=30)
    assert output.split() == ["1", "0"]
    assert not root.exists()


def test_a_connection_is_kept_from_one_invocation_to_the_next(postgres: Postgres, new_engine):
    used = new_engine(postgres.url())
    assert len({invoke(lambda: scalar(used, PID)) for _ in range(5)}) == 1
    assert used.pool.stats().connects == 1


def test_two_engines_of_one_database_count_together(postgres: Postgres, new_engine):
    one = new_engine(postgres.url(), max_connections=1)
    other = new_engine(postgres.url("psycopg2"), max_connections=1)
    assert scalar(one, PID) != scalar(other, PID)  # the first one's idle connection was given up for the second
    assert one.pool.stats().open == 1


def test_what_an_invocation_forgot_is_rolled_back_returned_and_reported_with_its_line(postgres: Postgres, new_engine, caplog):
    used = new_engine(postgres.url(), max_connections=1)
    with used.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS forgotten (n int)"))
    kept = []

    def forget() -> Any:
        connection = used.connect()
        kept.append(connection)
        connection.execute(text("INSERT INTO forgotten VALUES (1)"))
        return connection.execute(text(PID)).scalar()

    line = forget.__code__.co_firstlineno + 1
    backend = invoke(forget)
    (record,) = caplog.records
    assert f"{__file__}:{line} in forget and not returned" in record.getMessage()
    assert record.perinvoke["connections"][0]["leaks"] == 1
    assert invoke(lambda: scalar(used, "SELECT count(*) FROM forgotten")) == 0
    assert invoke(lambda: scalar(used, PID)) == backend
    with pytest.raises(sqlalchemy.exc.SQLAlchemyError):  # whoever kept it can't use it: it is another's
        kept[0].execute(text("SELECT 1"))


@pytest.mark.parametrize("nested", [False, True])
def test_a_session_that_an_invocation_forgot_begins_anew_in_the_next(nested, postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    new_table(used, "begun")
    everywhere = Session(used)

    def add() -> Any:
        if nested:
            everywhere.begin_nested()
        everywhere.execute(text("INSERT INTO begun VALUES (1)"))
        return everywhere.execute(text("SELECT count(*) FROM begun")).scalar()

    def add_and_commit() -> Any:
        count = add()
        everywhere.commit()
        return count

    assert [invoke(add), invoke(add), invoke(add_and_commit)] == [1, 1, 1]
    assert used.pool.stats().connects == 1


def test_a_session_whose_connection_was_lost_begins_anew_in_the_next_invocation(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    new_table(used, "begun")
    everywhere = Session(used)

    def lose() -> None:
        everywhere.execute(text("INSERT INTO begun VALUES (1)"))
        everywhere.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    def add() -> Any:
        everywhere.execute(text("INSERT INTO begun VALUES (1)"))
        everywhere.commit()
        return everywhere.execute(text("SELECT count(*) FROM begun")).scalar()

    with pytest.raises(sqlalchemy.exc.OperationalError):
        invoke(lose)
    assert [invoke(add), invoke(add)] == [1, 2]


def test_a_session_that_was_used_in_a_thread_which_has_ended_begins_anew_too(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    everywhere = Session(used)

    def ask_in_thread() -> Any:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(lambda: everywhere.execute(text(PID)).scalar()).result()

    assert invoke(ask_in_thread) == invoke(ask_in_thread)


def test_a_listener_that_asks_for_a_connection_where_a_forgotten_session_is_rolled_back_gets_none(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    asking = Session(used)
    event.listen(asking, "after_soft_rollback", lambda session, _: session.execute(text("SELECT 1")))

    def ask() -> Any:
        return asking.execute(text("SELECT 1")).scalar()

    assert [invoke(ask, remaining_ms=8000) for _ in range(2)] == [1, 1]
    assert used.pool.stats().in_use == 0


def test_a_kept_connection_says_that_its_transaction_is_over_and_goes_on_once_it_is_rolled_back(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    kept = used.connect()
    kept.close()

    def keep(connection: Connection) -> None:
        nonlocal kept
        kept = connection
        kept.execute(text("SELECT 1"))

    for _ in range(2):
        invoke(lambda: keep(used.connect()))
        with pytest.raises(sqlalchemy.exc.PendingRollbackError):
            invoke(lambda: keep(kept))
        kept.rollback()
        invoke(lambda: keep(kept))
        kept.rollback()
        kept.close()
    invoke(lambda: keep(used.connect().execution_options(isolation_level="AUTOCOMMIT")))
    with pytest.raises(sqlalchemy.exc.ResourceClosedError):  # another one wouldn't be in autocommit
        invoke(lambda: keep(kept))


def test_a_thread_that_is_left_over_does_not_commit_the_second_half_of_a_transaction(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    new_table(used, "begun")
    half_done, ended = threading.Event(), threading.Event()
    told: list[type] = []

    def insert_both() -> None:
        with Session(used) as session:
            session.execute(text("INSERT INTO begun VALUES (1)"))
            half_done.set()
            ended.wait(10)
            try:
                session.execute(text("INSERT INTO begun VALUES (2)"))
                session.commit()
            except sqlalchemy.exc.SQLAlchemyError as error:
                told.append(type(error))

    thread = threading.Thread(target=insert_both)

    def start() -> None:
        thread.start()
        half_done.wait(10)

    invoke(start)
    ended.set()
    thread.join(10)
    assert told == [sqlalchemy.exc.PendingRollbackError]
    assert scalar(used, "SELECT count(*) FROM begun") == 0


def test_what_the_garbage_collector_returned_is_reported_too(postgres: Postgres, new_engine, caplog):
    used = new_engine(postgres.url(), max_connections=1)

    def drop() -> None:
        for _ in range(3):  # with one connection, each must be back before the next
            used.connect().execute(text("SELECT 1"))
            gc.collect()

    invoke(drop)
    told = [record.getMessage() for record in caplog.records if record.name == "perinvoke"]
    assert len(told) == 1
    assert told[0].count("left to the garbage collector") == 3
    assert used.pool.stats().leaks == 3


def test_a_forgotten_connection_that_another_thread_uses_is_cut(postgres: Postgres, new_engine, caplog):
    used = new_engine(postgres.url(), max_connections=1)
    failed = threading.Event()
    ready = threading.Event()

    def sleep() -> None:
        with contextlib.suppress(sqlalchemy.exc.DBAPIError), used.connect() as connection:
            ready.set()
            connection.execute(text("SELECT pg_sleep(20)"))
        failed.set()

    def start() -> None:
        threading.Thread(target=sleep).start()
        ready.wait(10)

    started = time.monotonic()
    invoke(start)
    assert failed.wait(10)
    assert invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=8_000) == 1
    assert time.monotonic() - started < 15
    assert any("not returned" in record.getMessage() for record in caplog.records)


def test_who_waits_gets_it_from_another_thread(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    backends: list[int] = []
    threads = [threading.Thread(target=lambda: backends.append(invoke(lambda: scalar(used, PID)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(backends) == 8
    assert used.pool.stats().open == 1
    assert used.pool.stats().connects <= 8


@repeated_after_a_stall
def test_who_waits_in_vain_gets_the_figures_before_its_deadline(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    with used.connect():
        before = used.pool.stats().timeouts
        started = time.monotonic()
        with pytest.raises(PoolTimeout, match=r"1 \(max_connections\) 1 are open, 1 in use") as caught:
            invoke(lambda: scalar(used, PID), remaining_ms=800)
        assert time.monotonic() - started < 20  # a busy machine takes its time; that it was before the deadline, the error tells
    assert (caught.value.max_connections, caught.value.open, caught.value.in_use) == (1, 1, 1)
    assert postgres.password not in str(caught.value)
    assert used.pool.stats().timeouts == before + 1
    assert scalar(used, "SELECT 1") == 1


@repeated_after_a_stall
def test_other_processes_count_and_give_up_what_they_do_not_use(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    code = f"e = engine({postgres.url()!r}, max_connections=1)\nc = e.connect(); print('has', flush=True)\n"
    code += "input(); c.close(); print('idle', flush=True); input()"
    with Process(code) as other:
        assert other.line() == "has"
        with pytest.raises(PoolTimeout):
            invoke(lambda: scalar(used, PID), remaining_ms=800)
        print(file=other.popen.stdin, flush=True)
        assert other.line() == "idle"
        assert invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=10_000) == 1


def test_the_slot_of_a_process_that_was_killed_is_free(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    code = f"from sqlalchemy import text\ne = engine({postgres.url()!r}, max_connections=1)\nc = e.connect()\n"
    code += "print('has', flush=True); c.execute(text('SELECT pg_sleep(30)'))"
    with Process(code) as other:
        assert other.line() == "has"
        time.sleep(0.2)
        os.kill(other.popen.pid, signal.SIGKILL)
        started = time.monotonic()
        assert invoke(lambda: scalar(used, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)'")) == 0
        assert time.monotonic() - started < 10  # the server sees within 0.1 s that nobody waits for the statement any more


def test_an_idle_connection_is_closed(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), idle_seconds=0.2)
    scalar(used, "SELECT 1")
    assert used.pool.stats().open == 1
    wait_until(lambda: used.pool.stats().open == 0)


def test_an_old_connection_is_replaced_in_its_slot(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1, max_age_seconds=0.05)
    first = scalar(used, PID)
    time.sleep(0.1)
    assert scalar(used, PID) != first
    stats = used.pool.stats()
    assert (stats.connects, stats.reconnects, stats.open) == (1, 1, 1)


def test_a_connection_that_the_server_closed_is_not_lent(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    backend = scalar(used, PID)
    postgres.execute(f"SELECT pg_terminate_backend({backend}, 5000)")
    assert scalar(used, PID) != backend


def test_a_connection_that_broke_in_silence_is_found_by_a_round_trip(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1, check_after_seconds=0)
    with used.connect() as connection:
        fd = connection.connection.driver_connection.fileno()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)
    assert scalar(used, "SELECT 1") == 1


def test_an_error_in_the_middle_loses_the_connection_but_not_the_slot(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    for _ in range(3):
        with pytest.raises(sqlalchemy.exc.OperationalError):
            scalar(used, "SELECT pg_terminate_backend(pg_backend_pid())")
        assert invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=5_000) == 1


def test_a_statement_that_runs_at_the_deadline_is_interrupted(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    started = time.monotonic()
    with pytest.raises(InvocationTimeout):
        invoke(lambda: scalar(used, "SELECT pg_sleep(10)"), remaining_ms=2_000)
    assert time.monotonic() - started < 9  # and not ten
    assert invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=5_000) == 1


@repeated_after_a_stall
def test_a_slot_is_not_free_while_the_server_has_its_end_of_the_connection(own_postgres: Postgres, new_engine):
    wait_until(lambda: own_postgres.connection_count() == 0)
    used = new_engine(own_postgres.url(), max_connections=1)
    backend = scalar(used, PID)
    os.kill(backend, signal.SIGSTOP)
    try:
        used.dispose()
        wait_until(lambda: used.pool.stats().open == 0 or used.pool.stats().in_use == 0)
        with pytest.raises(PoolTimeout):
            invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=2_500)
        assert own_postgres.connection_count() == 1
    finally:
        os.kill(backend, signal.SIGCONT)
    assert invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=10_000) == 1


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_is_reset_between_invocations_and_not_within_one(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)

    def set_and_show() -> Any:
        with used.begin() as connection:
            connection.execute(text("SET search_path TO elsewhere"))
        return scalar(used, "SHOW search_path")

    assert invoke(set_and_show) == "elsewhere"
    assert invoke(lambda: scalar(used, "SHOW search_path")) == '"$user", public'


def test_a_reset_keeps_what_the_driver_has_prepared_and_drops_what_was_prepared_by_hand(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)

    def work() -> Any:
        with used.begin() as connection:  # psycopg itself drops them at a rollback
            for _ in range(10):
                connection.execute(text("SELECT 42"))
            connection.execute(text('PREPARE "by ""hand" AS SELECT 1'))
            return connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar()

    assert invoke(work) >= 2
    kept = invoke(lambda: scalar(used, "SELECT string_agg(statement, ';') FROM pg_prepared_statements"))
    assert "SELECT 42" in kept
    assert "by" not in kept


def test_listeners_of_connect_speak_again_after_a_reset(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)

    @event.listens_for(used, "connect")
    def set_path(dbapi_connection, _record):
        dbapi_connection.execute("SET search_path TO mine")
        dbapi_connection.commit()

    assert [invoke(lambda: scalar(used, "SHOW search_path")) for _ in range(3)] == ["mine"] * 3
    assert used.pool.stats().connects == 1


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_a_reset_can_be_discard_all(driver, postgres: Postgres, new_engine):
    used = new_engine(postgres.url(driver), max_connections=1, reset="discard")

    def work() -> Any:
        for _ in range(10):
            scalar(used, "SELECT 42")
        with used.begin() as connection:
            connection.execute(text("SET work_mem = '5MB'"))
        return scalar(used, PID)

    assert len({invoke(work) for _ in range(3)}) == 1
    assert invoke(lambda: scalar(used, "SHOW work_mem")) == "4MB"
    assert used.pool.stats().resets == 4


def test_a_reset_can_be_left_out(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1, reset="rollback")

    def commit() -> None:
        with used.begin() as connection:
            connection.execute(text("SET search_path TO elsewhere"))

    invoke(commit)
    assert invoke(lambda: scalar(used, "SHOW search_path")) == "elsewhere"
    assert used.pool.stats().resets == 0


def test_a_reset_can_be_a_function_and_one_that_fails_costs_the_connection(postgres: Postgres, new_engine):
    seen: list[object] = []

    def reset(dbapi_connection: object) -> None:
        seen.append(dbapi_connection)
        raise RuntimeError("not today")

    used = new_engine(postgres.url(), max_connections=1, reset=reset)
    assert len({invoke(lambda: scalar(used, PID)) for _ in range(3)}) == 3
    assert len(seen) == 3


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@repeated_after_a_stall
def test_the_end_of_an_invocation_does_not_wait_for_a_server_that_stands_still(
    driver, own_postgres: Postgres, new_engine, caplog
):
    used = new_engine(own_postgres.url(driver), max_connections=1)
    invoke(lambda: scalar(used, "SELECT 1"))

    def freeze() -> Any:
        answer = scalar(used, "SELECT 1")
        own_postgres.pause()
        return answer

    started = time.monotonic()
    try:
        assert invoke(freeze, remaining_ms=1_000) == 1
        assert time.monotonic() - started < 15  # and not until the server goes on, which it does afterwards
    finally:
        own_postgres.resume()
    cut = [record for record in caplog.records if "cut: the server did not answer" in record.getMessage()]
    assert len(cut) == (driver == "psycopg2")  # psycopg is told to clean it, and hears the answer later
    assert invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=10_000) == 1


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_time_outs_can_follow_the_deadline(driver, postgres: Postgres, new_engine):
    used = new_engine(postgres.url(driver), statement_timeout="deadline", lock_timeout="deadline")
    show = "SELECT current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')"
    statement, lock = invoke(lambda: scalar(used, show), remaining_ms=5_000).split()
    assert statement == lock
    assert 1_000 < int(statement.removesuffix("ms")) <= 4_700
    assert scalar(used, show) == "0 0"


def test_time_outs_can_be_fixed(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), statement_timeout=1.5, lock_timeout=2)
    assert scalar(used, "SHOW statement_timeout") == "1500ms"
    assert scalar(used, "SHOW lock_timeout") == "2s"
    with pytest.raises(sqlalchemy.exc.OperationalError, match="statement timeout"):
        scalar(used, "SELECT pg_sleep(5)")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_what_a_handler_changed_in_the_driver_is_changed_back(driver, postgres: Postgres, new_engine):
    used = new_engine(postgres.url(driver), max_connections=1)
    with used.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS autocommitted"))
        connection.execute(text("CREATE TABLE autocommitted (n int)"))

    def switch() -> None:
        raw = used.raw_connection()
        raw.driver_connection.autocommit = True
        raw.close()

    def insert_and_roll_back() -> None:
        with used.connect() as connection:
            connection.execute(text("INSERT INTO autocommitted VALUES (1)"))
            connection.rollback()

    invoke(switch)
    invoke(insert_and_roll_back)
    assert scalar(used, "SELECT count(*) FROM autocommitted") == 0


def test_an_isolation_level_of_the_engine_outlives_the_reset(postgres: Postgres, new_engine):
    for driver in ("psycopg", "psycopg2", "pg8000"):
        used = new_engine(postgres.url(driver), max_connections=1, name=driver, isolation_level="SERIALIZABLE")
        assert [invoke(lambda: scalar(used, "SHOW transaction_isolation")) for _ in range(3)] == ["serializable"] * 3  # noqa: B023


# --- forks ------------------------------------------------------------------------------------------------------------


def in_fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child; its exit code."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_a_child_that_a_handler_forks_has_connections_of_its_own(driver, postgres: Postgres, new_engine):
    used = new_engine(postgres.url(driver), max_connections=3)

    def handler() -> tuple[int, int, int]:
        with used.connect() as connection:
            backend = connection.execute(text(PID)).scalar()
            code = in_fork(lambda: scalar(used, PID) != backend)
            return code, backend, connection.execute(text(PID)).scalar()

    code, before, after = invoke(handler)
    assert (code, before) == (0, after)
    assert invoke(lambda: scalar(used, PID)) == before


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_a_child_that_uses_or_closes_what_it_inherited_does_not_reach_the_parents_server(driver, postgres: Postgres, new_engine):
    used = new_engine(postgres.url(driver), max_connections=2)

    def child(connection: Any) -> bool:
        driver_connection = connection.connection.driver_connection
        with contextlib.suppress(Exception):
            connection.execute(text("SELECT 1"))
            return False
        with contextlib.suppress(Exception):
            connection.close()
        with contextlib.suppress(Exception):
            driver_connection.close()
        used.dispose()
        return True

    with used.connect() as connection:
        backend = connection.execute(text(PID)).scalar()
        assert in_fork(lambda: child(connection)) == 0
        assert connection.execute(text(PID)).scalar() == backend
    assert scalar(used, PID) == backend


def test_children_of_multiprocessing_and_subprocess_leave_the_parents_connection_alone(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=2)

    def handler() -> tuple[int | None, int, int]:
        with used.connect() as connection:
            backend = connection.execute(text(PID)).scalar()
            child = multiprocessing.get_context("fork").Process(target=scalar, args=(used, PID))
            child.start()
            child.join(20)
            subprocess.run([sys.executable, "-c", "import os; os.closerange(3, 200)"], check=True)
            return child.exitcode, backend, connection.execute(text(PID)).scalar()

    code, before, after = invoke(handler)
    assert (code, before) == (0, after)


def test_a_child_cannot_reach_a_connection_that_sqlalchemy_opened_in_place_of_another(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    backend = scalar(used, PID)
    with used.connect() as connection:
        connection.connection._connection_record.invalidate(soft=True)
    with used.connect() as connection:
        renewed = connection.execute(text(PID)).scalar()
        assert renewed != backend

        def child() -> bool:
            with contextlib.suppress(Exception):
                connection.execute(text("SELECT 1"))
                return False
            return True

        assert in_fork(child) == 0
        connection.rollback()
        assert connection.execute(text(PID)).scalar() == renewed


def test_a_killed_parents_slot_is_not_kept_by_its_child(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    code = f"e = engine({postgres.url()!r}, max_connections=1)\nc = e.connect()\n"
    code += "if not os.fork():\n    print('forked', os.getpid(), flush=True); time.sleep(30)\ntime.sleep(30)"
    with Process(code) as other:
        child = int(other.line().split()[1])
        os.kill(other.popen.pid, signal.SIGKILL)
        try:
            assert invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=10_000) == 1
        finally:
            os.kill(child, signal.SIGKILL)


# --- what others build on engines ----------------------------------------------------------------------------------------


def test_the_orm_works(postgres: Postgres, new_engine):
    from sqlalchemy.orm import DeclarativeBase, mapped_column

    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orm_orders"
        id = mapped_column(Integer, primary_key=True)
        item = mapped_column(String)

    used = new_engine(postgres.url())
    Base.metadata.drop_all(used)
    Base.metadata.create_all(used)

    def order() -> int:
        with Session(used) as session, session.begin():
            session.add(Order(item="tea"))
        with Session(used) as session:
            return session.query(Order).count()

    assert [invoke(order) for _ in range(3)] == [1, 2, 3]


def test_alembic_works(postgres: Postgres, new_engine):
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    used = new_engine(postgres.url())
    with used.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        connection.execute(text("DROP TABLE IF EXISTS migrated"))
        operations.create_table("migrated", Column("id", Integer, primary_key=True))
        operations.add_column("migrated", Column("more", Integer))
    assert scalar(used, "SELECT count(more) FROM migrated") == 0


def test_pandas_works(postgres: Postgres, new_engine, caplog):
    pandas = pytest.importorskip("pandas")
    used = new_engine(postgres.url())

    def handler() -> list[int]:
        frame = pandas.read_sql("SELECT generate_series(1, 3) AS n", used)
        frame.to_sql("from_pandas", used, if_exists="replace")
        return list(frame["n"])

    assert invoke(handler) == [1, 2, 3]
    assert caplog.records == []


def test_disposing_closes_what_is_idle_and_later_what_is_in_use(postgres: Postgres, new_engine):
    used = new_engine(postgres.url())
    with used.connect():
        scalar(used, "SELECT 1")
        used.dispose()
        wait_until(lambda: used.pool.stats().open == 1)
    wait_until(lambda: used.pool.stats().open == 0)
    assert scalar(used, "SELECT 1") == 1


def test_a_connection_whose_set_up_fails_is_closed_before_its_slot_is_free(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    errors = []

    @event.listens_for(used, "connect")
    def fail(_connection: object, _record: object) -> None:
        raise RuntimeError("not set up")

    for _ in range(3):
        with pytest.raises(RuntimeError) as caught:
            scalar(used, "SELECT 1")
        errors.append(caught.value)  # and with it every frame that knows the connection
        wait_until(lambda: used.pool.stats().open == 0)
    assert postgres.connection_count() == 0


def test_a_thread_that_connects_when_its_invocation_ends_gets_none_and_costs_no_slot(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    connecting, go_on = threading.Event(), threading.Event()
    errors: list[str] = []

    @event.listens_for(used, "do_connect")
    def wait(*_args: object) -> None:
        connecting.set()
        go_on.wait(10)

    def late() -> None:
        try:
            scalar(used, "SELECT 1")
        except Exception as error:
            errors.append(type(error).__name__)

    thread = threading.Thread(target=late)

    def handler() -> None:
        thread.start()
        connecting.wait(10)

    invoke(handler)
    go_on.set()
    thread.join(20)
    assert errors == ["NotInInvocation"]
    assert invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=10_000) == 1
    assert postgres.connection_count() == 1


def test_somebody_who_sweeps_the_root_costs_a_new_connection(postgres: Postgres, new_engine, root: Path):
    used = new_engine(postgres.url(), max_connections=1)
    for _ in range(3):
        with used.connect() as connection:
            backend = connection.execute(text(PID)).scalar()
            shutil.rmtree(root)
        assert scalar(used, PID) != backend
    assert used.pool.stats().open == 1
    assert postgres.connection_count() == 1


# --- other databases -------------------------------------------------------------------------------------------------------


def test_sqlite_works_from_several_threads(tmp_path: Path, new_engine):
    used = new_engine(f"sqlite:///{tmp_path}/app.db", max_connections=2, connect_args={"timeout": 30})
    with used.begin() as connection:
        connection.execute(text("CREATE TABLE counts (n int)"))
        connection.execute(text("INSERT INTO counts VALUES (0)"))

    def count() -> None:
        with used.begin() as connection:
            connection.execute(text("UPDATE counts SET n = n + 1"))

    threads = [threading.Thread(target=lambda: [invoke(count) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert scalar(used, "SELECT n FROM counts") == 80
    assert used.pool.stats().connects >= 1


def test_mariadb_sessions_are_reset_and_time_outs_told(mariadb: MariaDb, new_engine):
    used = new_engine(mariadb.url(), max_connections=1, statement_timeout="deadline", lock_timeout="deadline")
    show = "SELECT @@max_statement_time, @@innodb_lock_wait_timeout, @mine, @@character_set_client, CONNECTION_ID()"

    def row() -> Any:
        with used.connect() as connection:
            found = connection.execute(text(show)).one()
            connection.execute(text("SET @mine = 'x', SESSION sql_mode = ''"))
            connection.execute(text("CREATE TEMPORARY TABLE only_mine (n int)"))
            connection.execute(text("SELECT GET_LOCK('mine', 1)"))
            return found

    def change_database() -> None:
        with used.connect() as connection:
            connection.execute(text("USE mysql"))

    first, second = (invoke(row, remaining_ms=5_000) for _ in range(2))
    invoke(change_database)
    assert invoke(lambda: scalar(used, "SELECT DATABASE()")) == "test"
    assert 1 < float(first[0]) <= 4.7
    assert first[1] == 4
    assert (second[2], second[3], second[4]) == (None, first[3], first[4])
    assert used.pool.stats().resets == 4


@pytest.mark.parametrize("reset", ["session", "rollback"])
def test_what_a_handler_changed_in_pymysql_is_changed_back(reset, mariadb: MariaDb, new_engine):
    used = new_engine(mariadb.url(), max_connections=1, reset=reset)
    new_table(used, "autocommitted")

    def switch() -> None:
        raw = used.raw_connection()
        raw.driver_connection.autocommit(True)
        raw.driver_connection.cursorclass = type("Mine", (raw.driver_connection.cursorclass,), {})
        raw.close()

    def insert_and_roll_back() -> Any:
        with used.connect() as connection:
            connection.execute(text("INSERT INTO autocommitted VALUES (1)"))
            connection.rollback()
            return connection.connection.driver_connection.cursorclass.__name__

    invoke(switch)
    assert invoke(insert_and_roll_back) != "Mine"
    assert scalar(used, "SELECT count(*) FROM autocommitted") == 0


def test_mariadb_waits_and_forks_and_restarts(mariadb: MariaDb, new_engine):
    used = new_engine(mariadb.url(), max_connections=2)
    pid = "SELECT CONNECTION_ID()"
    with used.connect() as connection:
        mine = connection.execute(text(pid)).scalar()
        assert in_fork(lambda: scalar(used, pid) != mine) == 0
        assert connection.execute(text(pid)).scalar() == mine
    mariadb.restart()
    assert invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=10_000) == 1


# --- bad input ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "4", None, 1_001])
def test_a_budget_must_be_a_number(count):
    with pytest.raises(PoolError, match=r"max_connections of sqlite:///x.db is .*whole number from 1 to 1000"):
        engine("sqlite:///x.db", max_connections=count)


@pytest.mark.parametrize("url", ["", "localhost/db", "postgresql+psycopg://a:b@host:port/db", 7, None])
def test_a_url_must_be_one(url):
    with pytest.raises(PoolError, match="must look like"):
        engine(url, max_connections=1)


def test_an_unknown_database_or_driver_is_named_with_what_to_install():
    with pytest.raises(PoolError, match=r"no dialect or driver 'nosql'.*perinvoke\[sql,postgresql\]"):
        engine("nosql://host/db", max_connections=1)
    with pytest.raises(PoolError, match=r"no dialect or driver 'postgresql\+none'"):
        engine("postgresql+none://host/db", max_connections=1)


@pytest.mark.parametrize(("url", "told"), [("mysql://h/d", "mysqlclient"), ("mysql+mysqldb://h/d", r"perinvoke\[sql,mysql\]")])
def test_a_driver_that_is_not_installed_is_named_with_the_extra(url, told):
    with pytest.raises(MissingExtra, match=told) as caught:
        engine(url, max_connections=1)
    assert caught.value.extra == "mysql"


def test_an_asynchronous_driver_is_refused():
    with pytest.raises((PoolError, MissingExtra), match=r"asynchronous|isn't installed"):
        engine("postgresql+asyncpg://h/d", max_connections=1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pool_size": 5}, "pool_size would contradict"),
        ({"pool_reset_on_return": None}, "pool_reset_on_return would contradict"),
        ({"lender": 1}, "lender would contradict"),
        ({"name": ""}, "a pool's name is ''"),
        ({"name": "\ud800"}, "a pool's name is"),
        ({"statement_timeout": 1e7}, "is 10000000.0"),
        ({"poolclass": object}, "poolclass would contradict"),
        ({"reset": "later"}, "reset of .* is 'later'"),
        ({"statement_timeout": 0}, "statement_timeout of .* is 0"),
        ({"statement_timeout": "soon"}, "is 'soon'"),
        ({"lock_timeout": float("nan")}, "is nan"),
        ({"idle_seconds": -1}, "idle_seconds of .* is -1"),
        ({"max_age_seconds": "old"}, "is 'old'"),
        ({"check_after_seconds": float("nan")}, "is nan"),
    ],
)
def test_options_that_cannot_be_are_named(options, told):
    with pytest.raises(PoolError, match=told):
        engine("sqlite:///x.db", max_connections=1, **options)


def test_a_wrong_password_is_told_without_the_password(postgres: Postgres, new_engine, caplog):
    used = new_engine(postgres.url(password="wr0ng-secret"), max_connections=1)
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(sqlalchemy.exc.OperationalError, match="password authentication") as caught,
    ):
        invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=5_000)
    assert "wr0ng-secret" not in str(caught.value) + repr(used) + repr(used.pool) + used.pool.status() + caplog.text
    assert used.pool.stats().open == 0


def test_a_password_in_the_query_is_hidden_too():
    with pytest.raises(PoolError) as caught:
        engine(
            "postgresql+psycopg://host/db?password=hush&sslpassword=hush&access_token=hush&odbc_connect=hush", max_connections=0
        )
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(PoolError, match="belongs to one connection"):
        engine(url, max_connections=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what a driver has open when it is interrupted
@pytest.mark.parametrize("driver", ["psycopg", "pg8000"])
@pytest.mark.parametrize("where", [UnreachablePort, SilentServer])
def test_a_host_that_does_not_answer_costs_no_more_than_the_deadline(where, driver, new_engine, caplog):
    with where() as nowhere:
        used = new_engine(f"postgresql+{driver}://u:hush@127.0.0.1:{nowhere.port}/db", max_connections=1)
        started = time.monotonic()
        with pytest.raises((InvocationTimeout, sqlalchemy.exc.DBAPIError)) as caught:
            invoke(lambda: scalar(used, "SELECT 1"), remaining_ms=1_500)
        assert time.monotonic() - started < 20  # and not for minutes
        assert "hush" not in str(caught.value) + caplog.text
        del caught
        gc.collect()
    wait_until(lambda: used.pool.stats().open == 0)


def test_a_budget_above_the_servers_limit_is_refused(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=200)
    with pytest.raises(PoolError, match=r"max_connections=200, and the server allows this user 97"):
        scalar(used, "SELECT 1")


def test_two_engines_of_one_database_with_different_budgets_are_refused(postgres: Postgres, new_engine):
    new_engine(postgres.url(), max_connections=1)
    with pytest.raises(PoolError, match=r"max_connections=3, and another .* has 1.*name="):
        new_engine(postgres.url(), max_connections=3)
    new_engine(postgres.url(), max_connections=3, name="reports")


def test_an_engine_that_could_not_be_made_or_was_disposed_of_leaves_no_budget(postgres: Postgres, new_engine):
    with pytest.raises(PoolError, match="no dialect or driver"):
        engine(postgres.url("none"), max_connections=7)
    used = new_engine(postgres.url(), max_connections=1)
    scalar(used, "SELECT 1")
    used.dispose()
    wait_until(lambda: used.pool.stats().open == 0)
    assert scalar(new_engine(postgres.url(), max_connections=3), "SELECT 1") == 1


def test_engines_made_again_and_again_are_warned_of(postgres: Postgres, new_engine, caplog):
    for number in range(12):
        new_engine(postgres.url(), connect_args={"application_name": f"a{number}"})
    assert ["make it once, at init" in record.getMessage() for record in caplog.records] == [True]


def test_another_process_with_a_different_budget_is_told_so(postgres: Postgres, new_engine):
    used = new_engine(postgres.url(), max_connections=1)
    with used.connect():
        code = f"e = engine({postgres.url()!r}, max_connections=3)\ntry:\n    e.connect()\nexcept Exception as e: print(e)"
        with Process(code) as other:
            assert "max_connections=3 here and 1 in another worker" in other.line()
