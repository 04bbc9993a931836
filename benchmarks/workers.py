"""What the exec wrapper changes for 16 workers: memory, start, first invocation, the death of a worker, throughput.

``python benchmarks/workers.py`` prints it; ``make bench`` runs it with the others and writes ``RESULTS.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Measured
from perinvoke.local import LocalConfig, LocalEnvironment
from results import Findings, Row, Target, Unit, page, show
from throughput import taking_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORKERS = 16
_STOCK, _OURS = "stock", "preloaded"
# The handlers, by what they are in a row; pandas, which takes a while, only in full.
_HANDLERS = {"boto3 with two clients": "worker_handlers.use_both"}
_MORE_HANDLERS = {"pandas": "pandas_handlers.use_pandas"} if importlib.util.find_spec("pandas") else {}
_MORE_INVOCATIONS = 4  # of each worker after its first: by then its memory hardly grows any more

_TIMEOUT_SECONDS = 2.0  # of the function whose workers die: short, because stock workers' callers wait for it
_WATCH_SECONDS = 3.0  # how long a replacement is waited for: three times the target
_LOOK_SECONDS = 0.002  # between two looks whether it is there

_METHOD = (
    "Stock: `python -m awslambdaric HANDLER`. Preloaded: the same behind `perinvoke-exec`, with PERINVOKE_PRELOAD=handler.",
    (
        f"A life: started, measured idle, one invocation on each of the {WORKERS} workers, one after the other, then "
        f"{_MORE_INVOCATIONS} more on each, {WORKERS} at once, measured used, ended. Stock and preloaded take turns."
    ),
    (
        "Memory: Pss of /proc/PID/smaps_rollup, the sum over the runtime's parent (perinvoke's supervisor in one of the two) and "
        "all processes below it, or of the workers alone where the row says so. Idle: all have polled. Not the local runner."
    ),
    "The clients' requests are built, signed, answered in the process instead of sent, and parsed.",
    "Start: from the birth of the runtime's first process, as the kernel notes it (in steps of 10 ms), until all have polled.",
    (
        f"Deaths: a handler kills its own worker by SIGKILL, one of {WORKERS}; stock has no more of them than will die, and one, "
        f"because none is replaced. A replacement that hasn't polled after {_WATCH_SECONDS:g} s is given up, and counted as that."
    ),
    "Throughput: both environments alive, in turns; nothing is preloaded. What differs: the parent, and who asks for work.",
)
_UNPROVEN = (
    "What TLS connections take: each worker makes its own on either side, and with them what certificates take.",
    "What longer use does: memory that a worker writes to becomes its own, and reference counts are written to by reading.",
    "The share of pages of the interpreter and of libraries that this benchmark's own process has mapped too; it is small.",
    "That Managed Instances honour AWS_LAMBDA_EXEC_WRAPPER: no document says so. A container image's entry point always works.",
    "How quick it is with more processors: here 16 workers start on those named above.",
)


@dataclass(frozen=True)
class _Life:
    """What one environment showed from its start to its end; memory in bytes."""

    start_seconds: float
    idle: int
    used: int
    used_workers: int
    first_seconds: tuple[float, ...]


def findings(*, quick: bool, folder: Path) -> Findings:
    """Measure; writes below ``folder`` only."""
    rows = []
    for what, handler in (_HANDLERS if quick else _HANDLERS | _MORE_HANDLERS).items():
        show(f"16 workers with {what} ...")
        rows += _life_rows(what, handler, folder, rounds=1 if quick else 3)
    show("deaths of workers ...")
    rows += asyncio.run(_death_rows(folder, rounds=1 if quick else 3))
    show("throughput, supervised ...")
    rows.append(_throughput_row(folder, rounds=2 if quick else 50, requests=40 if quick else 120))
    return Findings("Workers behind the exec wrapper", tuple(rows), _METHOD, _UNPROVEN)


def _config(
    handler: str,
    folder: Path,
    *,
    supervised: bool,
    preload: str = "",
    timeout_seconds: float = 30.0,
    workers: int = WORKERS,
) -> LocalConfig:
    wrapper = {"AWS_LAMBDA_EXEC_WRAPPER": str(Path(sys.executable).with_name("perinvoke-exec")), "PERINVOKE_PRELOAD": preload}
    return LocalConfig(
        handler=handler,
        workers=workers,
        timeout_seconds=timeout_seconds,
        directory=Path(__file__).parent,
        env={"TMPDIR": str(folder), "PERINVOKE_ROOT": str(folder / "root"), **(wrapper if supervised else {})},
        queue=True,  # a worker that has answered needs a moment until it asks for more
    )


# --- memory, start, first invocation ---------------------------------------------------------------------------------------


def _life_rows(what: str, handler: str, folder: Path, *, rounds: int) -> list[Row]:
    lives: dict[str, list[_Life]] = {_STOCK: [], _OURS: []}
    configs = {
        _STOCK: _config(handler, folder, supervised=False),
        _OURS: _config(handler, folder, supervised=True, preload="handler"),
    }
    if rounds > 1:
        asyncio.run(_life(configs[_OURS]))  # doesn't count: leaves the byte code compiled, and all files in memory
    for number in range(rounds):
        for name in configs if number % 2 else reversed(configs):
            lives[name].append(asyncio.run(_life(configs[name])))

    def row(title: str, unit: Unit, figures: Callable[[_Life], Sequence[float]], target: Target | None = None) -> Row:
        found = {name: _measured([figures(life) for life in those]) for name, those in lives.items()}
        return Row(f"{title}: {what}, {_OURS}", unit, found[_OURS], _STOCK, found[_STOCK], target)

    quarter, half = Target(0.25), Target(0.5)
    return [
        row("memory of 16 idle workers and their parent", Unit.MEBIBYTES, lambda life: [life.idle], quarter),
        row("memory of 16 used workers and their parent", Unit.MEBIBYTES, lambda life: [life.used], quarter),
        row("memory of 16 used workers alone", Unit.MEBIBYTES, lambda life: [life.used_workers]),
        row("start until all 16 workers have polled", Unit.MILLISECONDS, lambda life: [life.start_seconds], half),
        row("first invocation of a worker", Unit.MILLISECONDS, lambda life: life.first_seconds),
    ]


def _measured(rounds: Sequence[Sequence[float]]) -> Measured:
    """Each round's median: of 16 first invocations one may have met with something else on the machine."""
    return Measured(tuple(map(statistics.median, rounds)), tuple(figure for figures in rounds for figure in figures))


async def _life(config: LocalConfig) -> _Life:
    async with LocalEnvironment(config) as environment:
        start_seconds = _age_seconds(environment.runtime_pid)
        await asyncio.sleep(0.1)  # the last worker's poll may have come a moment before it was done with all else
        idle = _memory(environment.runtime_pid)
        # Workers are given invocations in the order of their polls: one that has answered stands behind the others.
        firsts = [await _invoke(environment) for _ in range(WORKERS)]
        if len({pid for pid, _ in firsts}) != WORKERS:
            raise RuntimeError("some worker had two of the first 16 invocations")
        for _ in range(_MORE_INVOCATIONS):
            await asyncio.gather(*(_invoke(environment) for _ in range(WORKERS)))
        used = _memory(environment.runtime_pid)
        return _Life(start_seconds, idle[0], used[0], used[1], tuple(seconds for _, seconds in firsts))


async def _invoke(environment: LocalEnvironment) -> tuple[int | None, float]:
    """The worker that ran it, and how long it took from the hand-over to the answer."""
    outcome = await environment.invoke(b"{}")
    if not outcome.ok:
        raise RuntimeError(f"an invocation failed: {outcome.error_type}: {outcome.error_message}")
    return outcome.worker_pid, outcome.duration_seconds


def _memory(parent: int) -> tuple[int, int]:
    """PSS in bytes: of the process and all that descend from it, and of these alone."""
    pids = _with_descendants(parent)
    if len(pids) != WORKERS + 1:
        raise RuntimeError(f"the runtime has {len(pids)} processes instead of {WORKERS + 1}")
    sizes = [_pss(pid) for pid in pids]
    return sum(sizes), sum(sizes[1:])


def _with_descendants(pid: int) -> list[int]:
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text(encoding="ascii").split():
            pids += _with_descendants(int(child))
    return pids


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _age_seconds(pid: int) -> float:
    """How long ago the process was forked: proc(5), starttime."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    began = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


# --- deaths ----------------------------------------------------------------------------------------------------------------


async def _death_rows(folder: Path, *, rounds: int) -> list[Row]:
    deaths: dict[str, list[tuple[float, float]]] = {_STOCK: [], _OURS: []}
    config = functools.partial(_config, "worker_handlers.die", folder, timeout_seconds=_TIMEOUT_SECONDS)
    stock, ours = config(supervised=False, workers=rounds + 1), config(supervised=True, preload="handler")
    async with contextlib.AsyncExitStack() as stack:
        environments = {
            _STOCK: await stack.enter_async_context(LocalEnvironment(stock)),
            _OURS: await stack.enter_async_context(LocalEnvironment(ours)),
        }
        for number in range(rounds):
            for name, environment in environments.items():
                deaths[name].append(await _death(environment, folder / f"{name}-{number}-died"))

    def row(title: str, which: int, peer: str, target: Target) -> Row:
        found = {name: _measured([[death[which]] for death in those]) for name, those in deaths.items()}
        return Row(f"a worker is killed in its invocation: {title}", Unit.MILLISECONDS, found[_OURS], peer, found[_STOCK], target)

    answered, replaced = Target(0.5, Unit.MILLISECONDS), Target(1.0, Unit.MILLISECONDS)
    return [
        row("until its caller is answered", 0, f"{_STOCK}: at the time-out, here {_TIMEOUT_SECONDS:g} s", answered),
        row("until its replacement has polled", 1, f"{_STOCK}: never, given up after {_WATCH_SECONDS:g} s", replaced),
    ]


async def _death(environment: LocalEnvironment, note: Path) -> tuple[float, float]:
    """Seconds from a worker's death until its caller was answered, and until there are as many workers as before."""
    before, workers = set(environment.worker_pids), environment.workers_left
    call = asyncio.create_task(environment.invoke(json.dumps({"note": str(note)}).encode()))
    call.add_done_callback(lambda _: answers.append(time.monotonic()))
    answers: list[float] = []
    died = await asyncio.to_thread(_wait_note, note)
    while (passed := time.monotonic() - died) < _WATCH_SECONDS:
        if before - set(environment.worker_pids) and environment.workers_left >= workers:
            break
        await asyncio.sleep(_LOOK_SECONDS)
    await call
    return answers[0] - died, min(passed, _WATCH_SECONDS)


def _wait_note(note: Path) -> float:
    """When the worker died, by its own account."""
    end = time.monotonic() + _TIMEOUT_SECONDS
    while not (note.exists() and (text := note.read_text(encoding="ascii"))):
        if time.monotonic() > end:
            raise TimeoutError("the handler that was to die didn't begin")
        time.sleep(_LOOK_SECONDS)
    return float(text)


# --- throughput ------------------------------------------------------------------------------------------------------------


def _throughput_row(folder: Path, *, rounds: int, requests: int) -> Row:
    configs = [_config("throughput_handlers.trivial", folder, supervised=supervised) for supervised in (False, True)]
    stock, ours = asyncio.run(taking_turns(configs[0], configs[1], rounds=rounds, requests=requests))
    title = f"throughput of {WORKERS} workers, a handler that only answers, supervised"
    return Row(title, Unit.PER_SECOND, ours, _STOCK, stock, Target(0.97, at_least=True))


def main() -> None:
    """Measure and print."""
    quick = "--quick" in sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="perinvoke-bench-", ignore_cleanup_errors=True) as folder:
        show(page([findings(quick=quick, folder=Path(folder))], root=Path(folder), quick=quick))


if __name__ == "__main__":
    main()
