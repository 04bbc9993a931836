"""Sixteen workers of the real runtime count in one item at once: by hand they lose some, here none.

In full that is 64 invocations of 100 additions each. ``TEST_ADDITIONS=100`` makes it so; the server takes some
milliseconds for a request and serves one at a time, so it takes minutes.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from environments import event, result, run
from perinvoke.local import LocalConfig, LocalEnvironment

FUNCTIONS = Path(__file__).parent / "functions"
WORKERS = 16
INVOCATIONS = 64
ADDITIONS = int(os.environ.get("TEST_ADDITIONS", "5"))  # of each invocation; arbitrary: so it takes seconds
TIMEOUT_SECONDS = 600


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_SECONDS)
def test_over_sixteen_workers_additions_by_hand_are_lost_and_ours_are_not(dynamodb, root):
    tables = {how: dynamodb.table() for how in ("naive", "versioned", "counted")}
    env = {"PERINVOKE_ROOT": str(root), **dynamodb.variables()}
    config: dict[str, Any] = {
        "workers": WORKERS,
        "timeout_seconds": TIMEOUT_SECONDS,
        "directory": FUNCTIONS,
        "queue": True,
        "env": env,
    }

    async def count(local: LocalEnvironment, how: str) -> None:
        asked = event(how=how, times=ADDITIONS, table=tables[how])
        started = time.monotonic()
        with dynamodb.counted() as operations:
            outcomes = await asyncio.gather(*(local.invoke(asked) for _ in range(INVOCATIONS)))
        assert [result(outcome) for outcome in outcomes] == [ADDITIONS] * INVOCATIONS
        print(f"\n{how}: {standing(how)} after {time.monotonic() - started:.1f} s, {len(operations)} requests")  # noqa: T201  # for pytest -s

    async def scenario() -> None:
        async with LocalEnvironment(LocalConfig(handler="counts.handler", **config)) as local:
            for how in tables:
                await count(local, how)

    def standing(how: str) -> int:
        [item] = dynamodb.items(tables[how])
        return int(item["n"]["N"])

    run(scenario(), 3 * TIMEOUT_SECONDS)
    assert standing("naive") < INVOCATIONS * ADDITIONS
    assert standing("versioned") == INVOCATIONS * ADDITIONS
    assert standing("counted") == INVOCATIONS * ADDITIONS
