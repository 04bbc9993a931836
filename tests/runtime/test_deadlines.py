"""What a caller sees when a handler is still at it at its deadline, on the real runtime; and that the documentation says so."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perinvoke.local import LocalConfig, LocalEnvironment
from perinvoke.local.outcome import Outcome, Status
from stalls import repeated_after_a_stall

FUNCTIONS = Path(__file__).parent / "functions"
PAGE = Path(__file__).parents[2] / "docs" / "deadlines.md"
# Generous: a busy machine stands still for a second at times. The interrupt comes after 2.55 seconds.
TIMEOUT_SECONDS = 5.0
VARIABLES = {"PERINVOKE_TIMEOUT_MARGIN_MS": "2500", "AWS_EXECUTION_ENV": f"AWS_Lambda_python3.{max(12, sys.version_info[1])}"}
AT_ONCE_SECONDS = 2.0
SIDE_BY_SIDE = 7
ROW = re.compile(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def rows() -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """The table: what the handler does, what the caller gets, when the worker is free; and what replacing changes."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| at its deadline the handler is in") :]
    found = ROW.findall(table[: table.index("\n\n")])[1:]  # the first one is the heading
    return {way: (caller, free) for way, caller, free, _ in found}, {way: replaced for way, _, _, replaced in found}


ROWS, SUPERVISED = rows()
REPLACED = [way for way, told in SUPERVISED.items() if told != "the same"]


@dataclass
class Seen:
    first: Outcome
    second: Outcome
    log: str

    def row(self) -> tuple[str, str]:
        caller = {Status.FUNCTION_ERROR: f"`{self.first.error_type}`", Status.TIMED_OUT: "the platform's time-out"}
        free = "at once" if self.second.waited_seconds < AT_ONCE_SECONDS else "when it ends"
        if "doesn't give way though its time is up" in self.log:
            free += "; stacks in the log"
        return caller[self.first.status], free


def environment(handler: str, root: Path, lines: list[str], *, supervise: bool = False, **env: str) -> LocalEnvironment:
    return LocalEnvironment(
        LocalConfig(
            handler=f"deadlines.{handler}",
            workers=1,
            queue=True,
            supervise=supervise,
            timeout_seconds=TIMEOUT_SECONDS,
            directory=FUNCTIONS,
            env={"PERINVOKE_ROOT": str(root), **VARIABLES, **env},
            on_log=lambda line: lines.append(line.text),
        )
    )


def event(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


async def see(way: str, root: Path, *, supervise: bool = False, **env: str) -> Seen:
    lines: list[str] = []
    async with environment("async_handler" if "async" in way else "handler", root, lines, supervise=supervise, **env) as local:
        first = await local.invoke(event(way=way))
        second = await local.invoke(event())
        return Seen(first, second, "\n".join(lines))


@repeated_after_a_stall
def test_a_supervised_worker_that_does_not_give_way_is_replaced_as_the_table_says(tmp_path):
    """And one that does, is not."""
    ways = [*REPLACED, "`time.sleep`"]

    async def scenario() -> list[Seen]:
        env = {"PERINVOKE_ON_TIMEOUT": "replace"}
        return await asyncio.gather(*(see(way, tmp_path / str(at), supervise=True, **env) for at, way in enumerate(ways)))

    for way, seen in zip(ways, asyncio.run(asyncio.wait_for(scenario(), 60)), strict=True):
        assert seen.first.error_type == "InvocationTimeout", way
        assert seen.first.duration_seconds < TIMEOUT_SECONDS
        assert seen.second.ok
        assert seen.second.waited_seconds < AT_ONCE_SECONDS
        assert (seen.second.worker_pid != seen.first.worker_pid) is (way in REPLACED)
        assert ("its worker was ended and replaced" in seen.first.error_message) is (way in REPLACED)
        assert ("deadlines.py" in seen.log) is True, "the log doesn't tell where the code stood"
    assert len(REPLACED) == 3


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Every row of the table, a few at a time, each in an environment of its own."""

    async def scenario() -> dict[str, Seen]:
        places = asyncio.Semaphore(SIDE_BY_SIDE)

        async def one(number: int, way: str) -> Seen:
            async with places:
                return await see(way, tmp_path_factory.mktemp("roots") / str(number))

        found = await asyncio.gather(*(one(number, way) for number, way in enumerate(ROWS)))
        return dict(zip(ROWS, found, strict=True))

    return asyncio.run(asyncio.wait_for(scenario(), 100))


def test_the_table_names_every_way():
    text = (FUNCTIONS / "deadlines.py").read_text(encoding="utf-8")
    ways = re.findall(r'^    "(.+?)": (?:lambda|_)', text, re.MULTILINE)
    assert set(ROWS) == set(ways)
    assert len(ways) == 14


@pytest.mark.parametrize("way", ROWS)
def test_the_caller_and_the_worker_fare_as_the_table_says(way, seen):
    assert seen[way].row() == ROWS[way]


@pytest.mark.parametrize("way", ROWS)
def test_cleanup_runs_and_the_worker_serves_the_next_one(way, seen):
    assert seen[way].second.ok
    assert seen[way].log.count("cleaned up") == 2


@pytest.mark.parametrize("way", [way for way, (caller, _) in ROWS.items() if "InvocationTimeout" in caller])
def test_the_error_comes_before_the_cut_and_tells_what_it_should(way, seen):
    outcome = seen[way].first
    assert outcome.duration_seconds < TIMEOUT_SECONDS
    told = re.fullmatch(
        r"invocation (\S+) was interrupted (?:\S+ s before|when) its (\S+) s were over, "
        r"which the platform set: it stood at (.*)\. "
        r"Let it do less, or give it more time\.",
        outcome.error_message,
    )
    assert told is not None, outcome.error_message
    assert told[1] == outcome.request_id
    assert TIMEOUT_SECONDS - 2 < float(told[2]) <= TIMEOUT_SECONDS
    assert re.search(r"\S+\.py:\d+ in \w+", told[3])


def test_a_transaction_that_is_open_is_rolled_back(tmp_path):
    database = tmp_path / "database"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("create table t (x)")

    async def scenario() -> None:
        async with environment("handler", tmp_path / "root", []) as local:
            outcome = await local.invoke(event(database=str(database)))
            assert outcome.error_type == "InvocationTimeout"
            with closing(sqlite3.connect(database, timeout=0)) as other:  # at once: the lock is gone too
                other.execute("insert into t values ('other')")
                assert other.execute("select x from t").fetchall() == [("other",)]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_the_callers_own_time_out_counts_from_the_requests_start(tmp_path):
    """An API Gateway request that began before it came here: the answer comes while its caller still waits."""

    async def scenario() -> None:
        lines: list[str] = []
        async with environment("handler", tmp_path / "root", lines, PERINVOKE_CALLER_TIMEOUT_SECONDS="5") as local:
            started_ms = int((time.time() - 1.5) * 1000)
            outcome = await local.invoke(event(way="`time.sleep`", requestContext={"requestTimeEpoch": started_ms}))
            assert outcome.error_type == "InvocationTimeout"
            assert "which PERINVOKE_CALLER_TIMEOUT_SECONDS set" in outcome.error_message
            assert outcome.duration_seconds < 3.5

    asyncio.run(asyncio.wait_for(scenario(), 60))


MODES = {
    "off": "",
    "report": "is still running though its time is up. Stacks, innermost first: thread MainThread",
    "replace": "needs a supervisor that ends its worker, and there is none",
}


def test_the_other_modes(tmp_path):
    async def one(mode: str, told: str) -> None:
        lines: list[str] = []
        async with environment("handler", tmp_path / mode, lines, PERINVOKE_ON_TIMEOUT=mode) as local:
            outcome = await local.invoke(event(way="a handler that swallows `BaseException`"))
            assert outcome.status is Status.TIMED_OUT
            assert (await local.invoke(event())).ok
            text = "\n".join(lines)
            assert told in text
            assert ("Stacks" in text) is bool(told)

    async def scenario() -> None:
        await asyncio.gather(*(one(mode, told) for mode, told in MODES.items()))

    asyncio.run(asyncio.wait_for(scenario(), 60))
