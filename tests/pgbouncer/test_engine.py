"""``engine("pgbouncer://NAME")``: found when it connects, and clean for each invocation."""

from __future__ import annotations

import functools
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import text

from perinvoke import engine, isolated
from perinvoke.environment.connections import behind_pgbouncer
from perinvoke.environment.connections.pgbouncer import Facts
from perinvoke.errors import PgBouncerError, PgBouncerNotRunning, PoolError
from processes import wait_until
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


@pytest.fixture
def running(extension, postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("PERINVOKE_ROOT", str(tmp_path / "root"))
    with extension(postgres.url(), PERINVOKE_PGBOUNCER_MAX_CONNECTIONS="1") as started:
        yield started


def invoke(work: Callable[[], Any], *, remaining_ms: int | None = None) -> Any:
    context = SimpleNamespace(aws_request_id="r", get_remaining_time_in_millis=lambda: remaining_ms)
    return isolated(lambda _event, _context: work())({}, context)


def execute(used: Engine, statement: str) -> Any:
    with used.begin() as connection:
        found = connection.execute(text(statement))
        return found.scalar() if found.returns_rows else None


@pytest.mark.parametrize("url", ["pgbouncer://default", "pgbouncer+psycopg2://default", "pgbouncer://default/postgres"])
def test_it_connects_keeps_the_connection_and_cleans_it(url, running):
    used: Any = engine(url)
    try:
        for _ in range(10):
            assert invoke(lambda: [execute(used, "SELECT 1") for _ in range(10)]) == [1] * 10  # enough to be prepared
        for name, value in (("timezone", "Asia/Tokyo"), ("application_name", "mine"), ("work_mem", "77MB")):
            show, set_it = (
                functools.partial(execute, used, f"SHOW {name}"),
                functools.partial(execute, used, f"SET {name} = '{value}'"),
            )
            before = invoke(show)
            invoke(set_it)
            assert invoke(show) == before
        assert used.pool.stats().connects == 1
    finally:
        used.dispose()


@pytest.mark.parametrize(
    ("pool_mode", "closes_by_message", "prepares"),
    [("transaction", True, True), ("transaction", False, False), ("session", False, True)],
)
def test_psycopg_prepares_where_it_can_give_a_statement_up(pool_mode, closes_by_message, prepares, monkeypatch):
    facts = Facts(
        name="default",
        socket_directory="/x",
        database="d",
        user="u",
        pool_mode=pool_mode,
        prepared_statements=True,
        version="1.24.1",
        max_connections=4,
        resets=True,
    )
    monkeypatch.setattr(behind_pgbouncer, "find", lambda *_: facts)
    monkeypatch.setattr(psycopg.capabilities, "has_send_close_prepared", lambda: closes_by_message)
    asked: dict[str, Any] = {}

    def refuse(**arguments: Any) -> None:
        asked.update(arguments)
        raise PgBouncerError("it was only asked", name="default")

    with pytest.raises(PgBouncerError, match="only asked"):
        behind_pgbouncer.BehindPgBouncer("/x", "default", None, "psycopg").connect(refuse, (), {}, 1.0)
    assert ("prepare_threshold" not in asked) is prepares


def test_more_workers_than_connections_take_turns(running):
    one, other = engine("pgbouncer://default"), engine("pgbouncer+psycopg2://default")
    backend = "SELECT pg_backend_pid()"
    assert execute(one, backend) == execute(other, backend)
    one.dispose()
    other.dispose()


def test_time_outs_hold_for_each_transaction(running):
    used = engine("pgbouncer://default", statement_timeout="deadline", lock_timeout=2)
    show = "SELECT current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')"
    statement, lock = invoke(lambda: execute(used, show), remaining_ms=5_000).split()
    assert lock == "2s"
    assert 1_000 < int(statement.removesuffix("ms")) <= 4_700
    used.dispose()


def test_one_that_was_killed_is_back_for_the_next_invocation(running):
    used = engine("pgbouncer://default")
    assert invoke(lambda: execute(used, "SELECT 1")) == 1
    running.kill_pgbouncer()
    assert invoke(lambda: execute(used, "SELECT 1"), remaining_ms=8_000) == 1
    used.dispose()


def test_one_that_starts_late_is_waited_for(extension, postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("PERINVOKE_ROOT", str(tmp_path / "root"))
    used = engine("pgbouncer://default")
    late = extension(postgres.url())
    late.start()
    try:
        assert invoke(lambda: execute(used, "SELECT 1"), remaining_ms=10_000) == 1
    finally:
        used.dispose()
        late.popen.terminate()
        late.popen.wait(10)
        wait_until(lambda: not late.pgbouncers())


@repeated_after_a_stall
def test_one_that_is_not_there_is_told_with_how_to_start_it(root):
    used = engine("pgbouncer://elsewhere")
    started = time.monotonic()
    with pytest.raises(PgBouncerNotRunning, match=r"no PgBouncer named 'elsewhere'.*perinvoke run --extension pgbouncer"):
        invoke(lambda: execute(used, "SELECT 1"), remaining_ms=1_000)
    assert time.monotonic() - started < 20


def test_another_database_than_the_one_behind_it_is_told(running):
    used = engine("pgbouncer://default/other")
    with pytest.raises(PgBouncerError, match=r"behind that PgBouncer is the database 'postgres'"):
        execute(used, "SELECT 1")


@pytest.mark.parametrize("url", ["pgbouncer://u:p@default", "pgbouncer://default:6432", "pgbouncer+asyncpg://default"])
def test_a_url_that_says_more_than_it_can_is_refused(url, root):
    with pytest.raises(PoolError, match=r"pgbouncer://NAME"):
        engine(url)
