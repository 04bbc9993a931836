"""Leases on the real runtime: sixteen workers that want one, workers that die with it, handlers that time out or forget it."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from environments import event, result, run
from perinvoke.local import LocalConfig, LocalEnvironment
from processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.local import Outcome
    from perinvoke.local.logs import LogLine

FUNCTIONS = Path(__file__).parent / "functions"
WORKERS = 16
# Two seconds until the interrupt, and two for what comes of it: machines stand still for a second at times.
HANGING: dict[str, Any] = {"workers": 1, "timeout_seconds": 4, "variables": {"PERINVOKE_TIMEOUT_MARGIN_MS": "2000"}}


@pytest.fixture
def table(dynamodb):
    return dynamodb.table()


@pytest.fixture
def start(dynamodb, table, root) -> Callable[..., LocalEnvironment]:
    def local(variables: dict[str, str] | None = None, **options: Any) -> LocalEnvironment:
        env = {"PERINVOKE_ROOT": str(root), "TABLE": table, **dynamodb.variables(), **(variables or {})}
        config = {"workers": 2, "timeout_seconds": 30, "directory": FUNCTIONS, "queue": True, **options}
        return LocalEnvironment(LocalConfig(handler="leases.handler", env=env, **config))

    return local


def others() -> dict[str, dict[str, str]]:
    """The lease k, held in another environment for long: from now on, which is later than when this was imported."""
    numbers = {"token": 1, "renewals": 0, "lease_ms": 60_000, "deadline_ms": int((time.time() + 600) * 1000)}
    return {"id": {"S": "lease#k"}, "owner": {"S": "other"}, **{name: {"N": str(value)} for name, value in numbers.items()}}


def owner_of(dynamodb, table, key) -> str | None:
    owners: list[str | None] = [
        item.get("owner", {}).get("S") for item in dynamodb.items(table) if item["id"] == {"S": f"lease#{key}"}
    ]
    return owners[0] if owners else None


def check_turns(turns: list[dict[str, Any]]) -> None:
    """One after the other, with growing tokens."""
    turns.sort(key=lambda turn: turn["entered"])
    assert all(turn["lost"] is None for turn in turns)
    assert all(earlier["left"] <= later["entered"] for earlier, later in itertools.pairwise(turns))
    tokens = [turn["token"] for turn in turns]
    assert tokens == sorted(set(tokens))


@pytest.mark.slow
def test_of_sixteen_workers_that_want_it_one_has_it_and_one_asks(dynamodb, table, start):
    """First another environment has it; all that time one of ours asks for it."""
    invocations, client = 4 * WORKERS, dynamodb.client()
    client.put_item(TableName=table, Item=others())

    def give_back() -> None:
        wait_until(lambda: "GetItem" in dynamodb.operations[before:], 30)
        time.sleep(3)
        client.delete_item(TableName=table, Key={"id": {"S": "lease#k"}})

    async def scenario() -> list[Outcome]:
        async with start(workers=WORKERS, timeout_seconds=60) as local:
            wanted = [local.invoke(event(use="hold", key="k")) for _ in range(invocations)]
            return list(await asyncio.gather(asyncio.to_thread(give_back), *wanted))[1:]

    before = len(dynamodb.operations)
    with dynamodb.counted() as operations:
        turns = [result(outcome) for outcome in run(scenario(), 90)]
    check_turns(turns)
    assert len(turns) == invocations
    assert len({turn["pid"] for turn in turns}) > WORKERS / 2
    # The first one is refused, and takes it later; all the others find it free.
    assert operations.count("UpdateItem") == 1 + 2 * invocations
    assert operations.count("GetItem") < 30  # of three seconds, in which 16 pollers would ask some 150 times


def test_when_its_holder_is_killed_the_next_one_has_it_after_the_deadline_and_the_skew(dynamodb, table, start):
    async def scenario() -> tuple[Outcome, float, dict[str, Any]]:
        async with start(supervise=True, timeout_seconds=3) as local:
            died = await local.invoke(event(use="die", key="k"))
            at = time.monotonic()
            assert owner_of(dynamodb, table, "k") is not None
            while True:
                outcome = await local.invoke(event(use="hold", key="k"))
                if outcome.ok:
                    return died, at, result(outcome)

    died, at, turn = run(scenario(), 30)
    assert not died.ok
    check_turns([turn])
    assert 2.0 < turn["entered"] - at < 20  # three seconds of the deadline, one more, and one of the skew; less what went before


@pytest.mark.parametrize("fields", [{"use": "hang"}, {"use": "hang", "heartbeat": True, "lease_seconds": 0.9}])
def test_a_handler_that_times_out_while_it_holds_gives_it_back(dynamodb, table, start, fields):
    async def scenario() -> tuple[Outcome, dict[str, Any]]:
        async with start(**HANGING) as local:
            timed_out = await local.invoke(event(key="k", **fields))
            assert owner_of(dynamodb, table, "k") is None
            return timed_out, result(await local.invoke(event(use="hold", key="k")))

    timed_out, turn = run(scenario())
    assert b"InvocationTimeout" in timed_out.payload
    check_turns([turn])


def test_a_handler_that_times_out_while_it_waits_leaves_nothing_and_the_holder_is_not_disturbed(dynamodb, table, start):
    async def scenario() -> tuple[Outcome, Outcome]:
        async with start(**HANGING) as local:
            timed_out = await local.invoke(event(use="hang_while_waiting", key="k"))
            assert owner_of(dynamodb, table, "k") == "other"
            dynamodb.client().delete_item(TableName=table, Key={"id": {"S": "lease#k"}})
            return timed_out, await local.invoke(event(use="hold", key="k"))

    dynamodb.client().put_item(TableName=table, Item=others())
    timed_out, turn = run(scenario())
    assert b"InvocationTimeout" in timed_out.payload
    check_turns([result(turn)])


@pytest.mark.parametrize("use", ["forget", "forget_in_thread"])
def test_a_forgotten_release_is_given_back_and_reported(dynamodb, table, start, use):
    lines: list[LogLine] = []

    async def scenario() -> Outcome:
        async with start(workers=1, on_log=lines.append) as local:
            await local.invoke(event(use=use, key="k"))
            assert owner_of(dynamodb, table, "k") is None
            outcome: Outcome = await local.invoke(event(use="hold", key="k"))
            return outcome

    check_turns([result(run(scenario()))])
    told = [line.text for line in lines if "given back" in line.text]
    assert len(told) == 1
    assert f"lease 'k' in table '{table}', still held at the end" in told[0]
    assert "lock /" not in told[0]
