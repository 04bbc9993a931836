"""The experiment: each hazard on the real runtime with 8 workers, once with the bare handler and once with perinvoke.

A figure counts what should never happen. A run in which something else went wrong (an invocation failed, the long one didn't see
its own entry) gives no figure but an error: zero must mean that nothing leaked, not that nothing ran. The last figure is no count
but memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perinvoke.demo.figures import Count, Figure, Memory
from perinvoke.errors import LocalError
from perinvoke.local import LocalConfig, LocalEnvironment, Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from perinvoke.local import Outcome

WORKERS = 8
_FOLDER = Path(__file__).parent
_HEAVY = "boto3 and two clients" if find_spec("boto3") else "aiohttp and rich"  # as heavy.py does

_LONG_ID = "the-long-invocation"
_READ_SECONDS = 2.0  # of the long invocation
_WRITERS = 100  # short invocations beside it
_PAYLOAD_LINES = 7_000  # 37 bytes each: 256 KB, so that one write is seen half done too
_PAYLOAD_TIMES = 10
_MOMENT_SECONDS = 1.0  # after the last answer; removal goes on beside the next invocations
_TIMEOUT_SECONDS = 1.0  # of the functions that run into it
_KEPT_SECONDS = 3.0  # of the one whose workers die: a busy machine may take a second to notice
_CHARGE_SECONDS = 1.3  # longer than that; the caller has its answer by then
_DEAD = 4  # of the workers; when all have died, their callers hear it at once


@dataclass(frozen=True)
class Hazard:
    """One thing that goes wrong in shared workers.

    Attributes:
        what: what the figure counts.
        handler: for both columns.
        figure: counts it, in an environment that runs the handler over a temp directory of its own.
        declared_handler: the second column's handler where the code has to declare something.
        module: of the handlers.
        timeout_seconds: the function's.
        supervise: the second column's function also has perinvoke's exec wrapper, which preloads the handler's module.
    """

    what: str
    handler: str
    figure: Callable[[LocalEnvironment], Awaitable[Figure]]
    declared_handler: str | None = None
    module: str = "app"
    timeout_seconds: float = 30.0
    supervise: bool = False


@dataclass(frozen=True)
class Finding:
    """A hazard's two figures."""

    hazard: Hazard
    bare: Figure
    protected: Figure


async def foreign_entries(environment: LocalEnvironment) -> Figure:
    """Request ids that a long invocation found in its file and that aren't its own."""
    pause = (_READ_SECONDS - 1.0) / _WRITERS  # so that the long one still reads when the last ones write
    long = _result(environment, {"seconds": _READ_SECONDS}, request_id=_LONG_ID)
    short = (_result_later(environment, {"seconds": 0}, number * pause) for number in range(1, _WRITERS + 1))
    seen, *_ = await asyncio.gather(long, *short)
    if _LONG_ID not in seen:
        raise LocalError("the demo's long invocation did not find its own entry in its file")
    return Count(len(seen) - 1, _WRITERS)


async def corrupt_reads(environment: LocalEnvironment) -> Figure:
    """Reads that gave something else than the invocation had just written under that name."""
    event = {"lines": _PAYLOAD_LINES, "times": _PAYLOAD_TIMES}
    counts = await results(environment, [event] * (4 * WORKERS))
    return Count(sum(counts), _PAYLOAD_TIMES * len(counts))


async def files_left(environment: LocalEnvironment) -> Figure:
    """Files below the temp directory when all answers have been given, and a moment has passed."""
    names = await results(environment, [{}] * 100)
    await asyncio.sleep(_MOMENT_SECONDS)
    return Count(_count_files(Path(environment.config.env["TMPDIR"])), len(names))


async def state_leaked(environment: LocalEnvironment) -> Figure:
    """Invocations whose module state held another one's values when they began."""
    found = await results(environment, [{"item": f"item {number}"} for number in range(100)])
    return Count(sum(before != [] for before in found), len(found))


async def variables_leaked(environment: LocalEnvironment) -> Figure:
    """Invocations that began with an environment variable of another one."""
    found = await results(environment, [{"customer": f"customer {number}"} for number in range(100)])
    return Count(sum(before is not None for before in found), len(found))


async def directories_leaked(environment: LocalEnvironment) -> Figure:
    """Invocations that began in the directory that another one had gone to."""
    found = await results(environment, [{}] * 100)
    return Count(_count_elsewhere(found, environment.config.directory), len(found))


async def late_charges(environment: LocalEnvironment) -> Figure:
    """Charges made by invocations whose caller has been told that the time was over."""
    books = Path(environment.config.env["TMPDIR"]) / "books.txt"
    event = json.dumps({"seconds": _CHARGE_SECONDS, "books": str(books)}).encode()
    began = time.monotonic()
    outcomes = await asyncio.gather(*(environment.invoke(event) for _ in range(WORKERS)))
    for outcome in outcomes:
        if outcome.error_type not in ("Sandbox.Timedout", "InvocationTimeout"):
            raise _failure(outcome)
    await asyncio.sleep(began + _CHARGE_SECONDS + _MOMENT_SECONDS / 2 - time.monotonic())
    return Count(len(books.read_text(encoding="ascii").split()) if books.exists() else 0, len(outcomes))


async def callers_kept(environment: LocalEnvironment) -> Figure:
    """Callers that heard of their worker's death no sooner than at the time-out."""
    outcomes = await asyncio.gather(*(environment.invoke(b"{}") for _ in range(_DEAD)))
    for outcome in outcomes:
        if outcome.error_type not in ("Sandbox.Timedout", "WorkerDied"):
            raise _failure(outcome)
    return Count(sum(outcome.status is Status.TIMED_OUT for outcome in outcomes), len(outcomes))


async def memory(environment: LocalEnvironment) -> Figure:
    """What the workers take, and their parent, which may hold what they share."""
    await results(environment, [{"seconds": 0.2}] * WORKERS)
    return Memory.of({environment.runtime_pid, *environment.worker_pids})


HAZARDS = (
    Hazard("other invocations' request ids in the file that a long one reads", "journal", foreign_entries),
    Hazard("reads that differ from what was just written under that name", "convert", corrupt_reads),
    Hazard("files left behind after the last answer", "export", files_left),
    Hazard("invocations that began with another one's module state", "shop", state_leaked, "shop_declared"),
    Hazard("invocations that began with another one's environment variable", "log_in", variables_leaked),
    Hazard("invocations that began in another one's working directory", "unpack", directories_leaked),
    Hazard(
        "payments made after the caller was told of a time-out",
        "charge",
        late_charges,
        timeout_seconds=_TIMEOUT_SECONDS,
        supervise=True,
    ),
    Hazard(
        "callers kept waiting for the time-out because their worker had died",
        "die",
        callers_kept,
        timeout_seconds=_KEPT_SECONDS,
        supervise=True,
    ),
    Hazard(f"memory of {WORKERS} workers that load {_HEAVY}", "handler", memory, module="heavy", supervise=True),
)


async def find(hazards: Iterable[Hazard], folder: Path, *, on_step: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Try all ``hazards``, one after the other, bare and with perinvoke; every file is made below ``folder``.

    ``on_step`` is called before each run with what comes.

    Raises:
        LocalError: an environment can't be started, or an invocation failed.
    """
    findings = []
    for number, hazard in enumerate(hazards):
        figures = []
        for isolate in (False, True):
            on_step(f"{hazard.what}, {'with perinvoke' if isolate else 'bare'}")
            temp_directory = folder / f"{number}-{'with-perinvoke' if isolate else 'bare'}"
            temp_directory.mkdir()
            figures.append(await _figure(hazard, temp_directory, isolate=isolate))
        findings.append(Finding(hazard, *figures))
    return findings


async def _figure(hazard: Hazard, temp_directory: Path, *, isolate: bool) -> Figure:
    handler = hazard.declared_handler if isolate and hazard.declared_handler else hazard.handler
    config = LocalConfig(
        handler=f"{hazard.module}.{handler}",
        workers=WORKERS,
        timeout_seconds=hazard.timeout_seconds,
        directory=_FOLDER,
        # Where perinvoke's root is by default: below the temp directory. So what perinvoke itself leaves there counts too.
        env={"TMPDIR": str(temp_directory), "PERINVOKE_ROOT": str(temp_directory / "perinvoke")},
        isolate=isolate,
        preload="handler" if isolate and hazard.supervise else "",
        queue=True,
    )
    async with LocalEnvironment(config) as environment:
        return await hazard.figure(environment)


def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))  # passes over what is removed meanwhile


def _count_elsewhere(directories: Iterable[str], home: Path) -> int:
    return sum(directory != os.path.realpath(home) for directory in directories)


async def results(environment: LocalEnvironment, events: Iterable[dict[str, Any]]) -> list[Any]:
    """The results of all ``events``; as many at once as there are workers, the others wait in line."""
    return await asyncio.gather(*(_result(environment, event) for event in events))


async def _result_later(environment: LocalEnvironment, event: dict[str, Any], seconds: float) -> Any:
    await asyncio.sleep(seconds)
    return await _result(environment, event)


async def _result(environment: LocalEnvironment, event: dict[str, Any], *, request_id: str | None = None) -> Any:
    outcome = await environment.invoke(json.dumps(event).encode(), request_id=request_id)
    if not outcome.ok:
        raise _failure(outcome)
    return json.loads(outcome.payload)


def _failure(outcome: Outcome) -> LocalError:
    return LocalError(f"an invocation of the demo failed ({outcome.status.value}): {outcome.error_message}")
