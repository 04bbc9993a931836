"""Sixteen workers who want a row that somebody doesn't give up: each ends before its own deadline, and the database is clean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from environments import event, local, result, run
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perinvoke.local import LocalEnvironment

FUNCTIONS = Path(__file__).parent / "functions"
WORKERS = 16
TIMEOUT_SECONDS = 5.0
# Who waits, and who has locked what, but for the one who looks and what it looks into.
LOCKS = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE pid <> pg_backend_pid() AND virtualtransaction IS NOT NULL "
    "AND (locktype IN ('advisory', 'tuple', 'transactionid') OR relation = 'hot'::regclass)",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx",
}
WAITERS = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE (info LIKE '%FOR UPDATE%' OR state = 'User lock') "
    "AND id <> CONNECTION_ID()",
}
COUNT = dict.fromkeys(LOCKS, "SELECT count FROM hot")


@pytest.fixture
def database(request) -> Iterator[sa.Engine]:
    engine = sa.create_engine(request.getfixturevalue(request.param).url(), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE hot (id int PRIMARY KEY, count int NOT NULL)")
        connection.exec_driver_sql("INSERT INTO hot VALUES (1, 0)")
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE hot")


@contextlib.contextmanager
def holder(env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that has the row and the key locked inside the block."""
    command = [sys.executable, str(FUNCTIONS / "sql_locks.py")]
    with subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def number(database: sa.Engine, query: dict[str, str]) -> int:
    with database.connect() as connection:
        return int(connection.execute(sa.text(query[database.dialect.name])).scalar_one())


async def clean(database: sa.Engine, query: dict[str, str]) -> None:
    """A server takes a moment to end what its clients have left."""
    until = time.monotonic() + 20
    while found := number(database, query):
        assert time.monotonic() < until, f"{found} are left"
        await asyncio.sleep(0.02)


async def all_add(environment: LocalEnvironment) -> list[Any]:
    """Half of them want the row, the others the key first."""
    calls = (environment.invoke(event(advisory=bool(number % 2))) for number in range(WORKERS))
    return [result(outcome) for outcome in await asyncio.gather(*calls)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database", "over"), [("postgres", "sqlalchemy"), ("postgres", "perinvoke"), ("mariadb", "perinvoke")], indirect=["database"]
)
@repeated_after_a_stall
def test_every_waiter_ends_before_its_deadline_and_leaves_nothing(over, database, root):
    before = number(database, COUNT)
    url = database.url.render_as_string(hide_password=False)
    env = {"PERINVOKE_ROOT": str(root), "SQL_LOCKS_ENGINE": over, "SQL_LOCKS_URL": url, "PERINVOKE_TIMEOUT_MARGIN_MS": "2000"}
    options: dict[str, Any] = {"env": env, "queue": True, "isolate": True, "preload": "handler", "directory": FUNCTIONS}

    async def waiters_wait() -> None:
        """All of them, or on a busy machine most; they need time for what comes after."""
        until = time.monotonic() + TIMEOUT_SECONDS / 4
        while number(database, WAITERS) < WORKERS and time.monotonic() < until:  # noqa: ASYNC110  # a server has no events
            await asyncio.sleep(0.02)
        assert number(database, WAITERS) > 1

    async def scenario() -> None:
        async with local("sql_locks.add", workers=WORKERS, timeout_seconds=TIMEOUT_SECONDS, **options) as environment:
            await asyncio.gather(*(environment.invoke(event(warm=True)) for _ in range(2 * WORKERS)))
            workers = environment.worker_pids
            with holder(env):
                ended = await all_add(environment)
                assert {each["came"] for each in ended} == {"RowLocked Hot", "RowLocked The advisory lock"}
                assert min(each["left"] for each in ended) > 0
                await clean(database, WAITERS)
            await clean(database, LOCKS)
            with holder(env) as process:
                waiting = asyncio.create_task(all_add(environment))
                await waiters_wait()
                process.send_signal(signal.SIGKILL)
                assert {each["came"] for each in await waiting} == {"added"}
            await clean(database, LOCKS)
            assert environment.worker_pids == workers

    run(scenario(), 60)
    assert number(database, COUNT) == before + WORKERS
