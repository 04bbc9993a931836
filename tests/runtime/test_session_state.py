"""Whatever an invocation leaves in its database session, no other ever sees: over a budget and over PgBouncer.

All workers share one connection, so that each invocation gets what another has used, in the same worker or in another.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from database_environments import BUDGET, PGBOUNCER, options_for
from environments import local, run

if TYPE_CHECKING:
    from perinvoke.local import Outcome

FUNCTIONS = Path(__file__).parent / "functions"
KINDS = (
    *("SET", "SET of a custom setting", "SET SESSION CHARACTERISTICS", "SET search_path"),
    *("SET ROLE", "SET SESSION AUTHORIZATION", "a temporary table", "a session's advisory lock", "LISTEN", "PREPARE"),
    *("a cursor WITH HOLD", "a transaction begun by hand", "a forgotten connection", "a failed transaction"),
)
WORKERS = 3
INVOCATIONS = 12  # of each kind


@pytest.fixture(scope="module", params=["psycopg", "psycopg2", pytest.param("pg8000", marks=pytest.mark.slow), PGBOUNCER])
def answers(request, postgres, tmp_path_factory):
    """For each kind of state what its invocations found, all run in one environment."""
    which = PGBOUNCER if request.param == PGBOUNCER else BUDGET
    options = options_for(which, postgres, tmp_path_factory.mktemp("sessions") / "root", connections=1)
    if which == BUDGET:
        options["env"]["SESSIONS_URL"] = postgres.url(request.param)
    postgres.execute("DROP TABLE IF EXISTS note")
    postgres.execute("CREATE TABLE note (text text)")
    return run(every_kind(options), 60)


async def every_kind(options: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Callers that call without a pause: whoever has the connection uses it several times before another gets it."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}

    async def caller(kind: str) -> None:
        for _ in range(INVOCATIONS // WORKERS):
            found[kind].append(told(await environment.invoke(json.dumps({"what": kind}).encode())))

    async with local("sessions.state", workers=WORKERS, directory=FUNCTIONS, **options) as environment:
        for kind in KINDS:
            await asyncio.gather(*(caller(kind) for _ in range(WORKERS)))
    return found


def told(outcome: Outcome) -> dict[str, Any]:
    """What an invocation found; it has failed where what another left was in its way."""
    answer: dict[str, Any] = json.loads(outcome.payload)
    return answer if outcome.ok else {"clean": False, "found": answer["errorMessage"]}


@pytest.mark.parametrize("kind", KINDS)
def test_no_invocation_finds_what_another_left(kind, answers):
    assert [answer["found"] for answer in answers[kind] if not answer["clean"]] == []


def test_the_connection_was_used_again_and_went_from_worker_to_worker(answers):
    """Else the others would prove nothing."""
    assert len({answer.get("worker") for kind in KINDS for answer in answers[kind]}) == WORKERS
    once = [kind for kind in KINDS if len({answer.get("backend") for answer in answers[kind]}) == INVOCATIONS]
    assert once == []
