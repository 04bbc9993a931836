"""Sixteen workers of the real runtime over one database: naive counting loses, all other ways don't; and nobody is told an error.

In full that is 64 invocations of 100 additions each, and 200 names in each database; ``TEST_SQL_ADDITIONS=100`` makes it so, and
takes some minutes.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from environments import event, result, run
from perinvoke.local import LocalConfig, LocalEnvironment

FUNCTIONS = Path(__file__).parent / "functions"
sys.path.append(str(FUNCTIONS))
races: Any = importlib.import_module("sql_races")

WORKERS = 16
INVOCATIONS = 64
# Of each invocation; so few that CI has the time, and so many that counting naively surely loses.
ADDITIONS = int(os.environ.get("TEST_SQL_ADDITIONS", "2"))
RACERS = 8
FEW_ADDITIONS = 10
TIMEOUT_SECONDS = 300
WAYS = ("naive", "locked", "serializable", "versioned", "advisory")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_SECONDS)]


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def engine(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/race.sqlite3"
    else:
        url = request.getfixturevalue("postgres" if request.param == "postgresql" else "mariadb").url()
    engine = sa.create_engine(url, connect_args={"timeout": 60} if request.param == "sqlite" else {})
    if request.param == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    races.Base.metadata.drop_all(engine)
    races.Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([races.Plain(id=1), races.Plain(id=2), races.Counted(id=1)])
    yield engine
    races.Base.metadata.drop_all(engine)
    engine.dispose()


def workers(engine: sa.Engine, root: Path) -> LocalEnvironment:
    env = {"PERINVOKE_ROOT": str(root), "CONFLICTS_URL": engine.url.render_as_string(hide_password=False)}
    how: dict[str, Any] = {"workers": WORKERS, "timeout_seconds": TIMEOUT_SECONDS, "directory": FUNCTIONS, "queue": True}
    return LocalEnvironment(LocalConfig(handler="sql_races.handler", env=env, isolate=True, preload="handler", **how))


async def all_of(environment: LocalEnvironment, events: list[bytes]) -> list[Any]:
    return [result(outcome) for outcome in await asyncio.gather(*(environment.invoke(one) for one in events))]


def value_of(engine: sa.Engine, model: type[Any], number: int = 1) -> int:
    with Session(engine) as session:
        return int(session.get_one(model, number).value)


def test_sixteen_workers_lose_nothing_but_naively_make_each_row_once_and_both_finish_after_a_deadlock(engine, root):
    """In one environment, which takes a while to start."""

    async def scenario() -> None:
        async with workers(engine, root) as environment:
            await count(environment, engine)
            await create(environment, engine)
            await deadlock(environment, engine)

    run(scenario(), 2 * TIMEOUT_SECONDS)


async def count(environment: LocalEnvironment, engine: sa.Engine) -> None:
    """Sixty-four invocations add to one row, in each of the ways."""
    for how in WAYS if engine.dialect.name != "sqlite" else WAYS[:-1]:
        model = races.Counted if how == "versioned" else races.Plain
        with Session(engine) as session, session.begin():
            session.execute(sa.update(model).values(value=0))
        started = time.monotonic()
        added = await all_of(environment, [event(what="count", how=how, times=ADDITIONS)] * INVOCATIONS)
        print(f"\n{engine.dialect.name} {how}: {value_of(engine, model)} after {time.monotonic() - started:.1f} s")  # noqa: T201  # for pytest -s
        assert sum(added) == INVOCATIONS * ADDITIONS
        assert (value_of(engine, model) == sum(added)) is (how != "naive"), how


async def create(environment: LocalEnvironment, engine: sa.Engine) -> None:
    """Eight race for each row."""
    started = time.monotonic()
    names = 200 if engine.dialect.name == "postgresql" or ADDITIONS > FEW_ADDITIONS else 40
    halves = [(0, names // 2), (names // 2, names)]
    made = await all_of(environment, [event(what="create", numbers=half) for half in halves * RACERS])
    print(f"\n{engine.dialect.name}: rows made after {time.monotonic() - started:.1f} s")  # noqa: T201  # the same
    assert sum(made) == names
    with Session(engine) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(races.Made)) == names


async def deadlock(environment: LocalEnvironment, engine: sa.Engine) -> None:
    """Two change two rows in opposite order; in SQLite one begins when the other has ended."""
    with Session(engine) as session, session.begin():
        session.execute(sa.update(races.Plain).values(value=0))
    attempts = await all_of(environment, [event(what="both", order=order, seconds=0.3) for order in ([1, 2], [2, 1])])
    assert sorted(attempts) == ([1, 1] if engine.dialect.name == "sqlite" else [1, 2])
    assert [value_of(engine, races.Plain, number) for number in (1, 2)] == [2, 2]
