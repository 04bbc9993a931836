"""Local environments for tests: the functions of tests/local/functions, on the real runtime, with a hard time-out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from perinvoke.local import LocalConfig, LocalEnvironment, Outcome

if TYPE_CHECKING:
    from collections.abc import Coroutine

FUNCTIONS = Path(__file__).parent / "local" / "functions"
T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, T], seconds: float = 30.0) -> T:
    """Run to the end, or fail after ``seconds``."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await scenario

    return asyncio.run(bounded())


def local(handler: str, **options: Any) -> LocalEnvironment:
    """An environment for one of the functions, two workers unless asked otherwise."""
    return LocalEnvironment(LocalConfig(**{"handler": handler, "workers": 2, "directory": FUNCTIONS, **options}))


def event(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def result(outcome: Outcome) -> Any:
    """What the handler returned; fails when it didn't."""
    assert outcome.ok, outcome
    return json.loads(outcome.payload)
