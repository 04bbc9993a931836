"""What every test may use: a root of its own, and a Lambda context like the runtime's."""

from __future__ import annotations

import resource
import threading
import time
from typing import TYPE_CHECKING

import hypothesis
import pytest
from awslambdaric.lambda_context import LambdaContext

from perinvoke import worker
from perinvoke.settings import read_settings
from stalls import begun_anew

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from databases import MariaDb, Postgres
    from dynamodb_server import DynamoDb


# An example that takes longer than others says nothing of the code: the machine may have stood still.
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")


def pytest_configure() -> None:
    """A worker keeps some files open in its root for as long as it lives, and here most tests have a root of their own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A test that fails now and then is seen, also where it passed in the end."""
    if begun_anew:
        terminalreporter.section("begun anew, because the machine may have stood still")
        for line in begun_anew:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """No test begins while a thread of the last one's worker still runs: some count threads and descriptors, some fork."""
    worker.process.watches.close()
    for thread in threading.enumerate():
        if thread.name == "perinvoke-trash":
            thread.join(30)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PERINVOKE_ROOT of this test."""
    path = tmp_path / "root"
    monkeypatch.setenv("PERINVOKE_ROOT", str(path))
    return path


@pytest.fixture
def lambda_context() -> LambdaContext:
    """What the real runtime hands to a handler, twenty seconds before its deadline."""
    return LambdaContext("8476a536-e9f4-11e8-9739-2dfe598c3fcd", None, None, int(time.time() * 1000) + 20_000, "arn", "tenant-1")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that all tests share; one that restarts it, or needs settings, takes a server of its own."""
    from databases import Postgres  # only those who use it need the drivers

    with Postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of this test's own: to be restarted, stopped and paused."""
    from databases import Postgres

    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """A MariaDB server that all tests share; skips where MariaDB isn't installed."""
    from databases import MariaDb

    missing = MariaDb.missing()
    if missing is not None:
        pytest.skip(missing)
    with MariaDb() as server:
        yield server


@pytest.fixture(scope="session")
def dynamodb() -> Iterator[DynamoDb]:
    """A DynamoDB that all tests share; each takes a table of its own, and resets ``faults`` to what it was."""
    from dynamodb_server import DynamoDb

    with DynamoDb() as server:
        yield server


def trash_is_empty(root: Path) -> bool:
    """Wait until what was thrown away below ``root`` is gone."""
    return worker.process.worker(read_settings({"PERINVOKE_ROOT": str(root)})).trash.wait_empty(10)
