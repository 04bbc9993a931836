"""What a lock between processes costs and how fairly it is handed on: perinvoke, the kernel's own flock, three libraries.

``python benchmarks/file_locks.py`` prints it; ``make bench`` runs it with the others and writes ``RESULTS.md``.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import fasteners
import filelock
import portalocker

from measure import Measured, interleaved, percentile, timed
from perinvoke import file_lock
from results import Findings, Row, Target, Unit, page, show

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Lock = AbstractContextManager[object]
    MakeLock = Callable[[], Lock]
    Figure = Callable[[list[float]], float]

_HOLD_SECONDS = 0.002
_RAW, _OURS = "blocking flock", "perinvoke"

_METHOD = (
    "Without contention: one process takes and gives back the lock, again and again.",
    f"With contention: N processes, forked from one, take the lock, hold it for {_HOLD_SECONDS * 1000:.0f} ms and take it again.",
    "p99 of a row: of all waits of all processes in a round. Median: of the rounds.",
    "Turns: those of the luckiest process ÷ those of the unluckiest; one that never got a turn counts as having had one.",
    "filelock and portalocker poll with their default intervals, fasteners with its default back-off.",
)
_UNPROVEN = (
    "How it is with more processors: here two are shared by up to 16 processes.",
    "Locks on another file system than the one named above.",
)


def findings(*, quick: bool, folder: Path) -> Findings:
    """Measure; writes below ``folder`` only."""
    os.environ["PERINVOKE_ROOT"] = str(folder / "root")
    locks = _contenders(folder / "lock")
    rows = _uncontended_rows(locks, rounds=3 if quick else 60)
    for processes in (2,) if quick else (2, 8, 16):
        rows += _contended_rows(locks, processes, rounds=2 if quick else 5, seconds=0.2 if quick else 1.0)
    return Findings("File locks", tuple(rows), _METHOD, _UNPROVEN)


def _contenders(path: Path) -> dict[str, MakeLock]:
    """Every contender as a user would write it; each has a file of its own, and each process makes its own lock object."""
    return {
        _RAW: functools.partial(_Flock, str(path.with_name("flock"))),
        _OURS: functools.partial(file_lock, path.with_name("ours")),
        "filelock": functools.partial(filelock.FileLock, str(path.with_name("filelock"))),
        "fasteners": functools.partial(fasteners.InterProcessLock, str(path.with_name("fasteners"))),
        "portalocker": functools.partial(portalocker.Lock, path.with_name("portalocker"), timeout=60),
    }


class _Flock:
    """The kernel's lock, waited for without a bound."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)


def _uncontended_rows(locks: dict[str, MakeLock], *, rounds: int) -> list[Row]:
    def cycle(lock: Lock) -> None:
        with lock:
            pass

    blocks = {name: functools.partial(timed, functools.partial(cycle, make()), 50) for name, make in locks.items()}
    found = interleaved(blocks, rounds=rounds)
    target = Target(15e-6, Unit.MICROSECONDS)
    return [
        Row(
            f"file lock, no contention: {_OURS}",
            Unit.MICROSECONDS,
            found[_OURS],
            f"{name}, no contention",
            found[name],
            target if name == _RAW else None,
        )
        for name in locks
        if name != _OURS
    ]


def _contended_rows(locks: dict[str, MakeLock], processes: int, *, rounds: int, seconds: float) -> list[Row]:
    waits: dict[str, list[list[float]]] = {name: [] for name in locks}
    counts: dict[str, list[list[float]]] = {name: [] for name in locks}
    for number in range(rounds):
        for name in list(locks) if number % 2 else reversed(locks):
            turns = _contend(locks[name], processes, seconds)
            waits[name].append([wait for of_one in turns for wait in of_one])
            counts[name].append([float(len(of_one)) for of_one in turns])
    figures = {
        "p50 wait": (Unit.MILLISECONDS, None, _summed_up(waits, _percentile(0.5), _percentile(0.95))),
        "p99 wait (in place of p95: the longest)": (Unit.MILLISECONDS, Target(2.0), _summed_up(waits, _percentile(0.99), max)),
        "most ÷ fewest turns": (Unit.TIMES, Target(1.5, Unit.TIMES), _summed_up(counts, _spread, _spread)),
        "turns of the unluckiest process (in place of p95: of the luckiest)": (Unit.COUNT, None, _summed_up(counts, min, max)),
    }
    told = f"{processes} processes"
    held = processes == 8  # the design's targets are for eight
    return [
        Row(
            f"file lock, {told}, {what}: {name}",
            unit,
            measured[name],
            f"{_RAW}, {told}",
            measured[_RAW],
            target if held and name == _OURS else None,
        )
        for what, (unit, target, measured) in figures.items()
        for name in locks
        if name != _RAW
    ]


def _summed_up(found: dict[str, list[list[float]]], typical: Figure, extreme: Figure) -> dict[str, Measured]:
    """Two figures of each round, by contender."""
    return {
        name: Measured(rounds=tuple(map(typical, of_rounds)), calls=tuple(map(extreme, of_rounds)))
        for name, of_rounds in found.items()
    }


def _percentile(share: float) -> Figure:
    return functools.partial(percentile, share=share)


def _spread(turns: list[float]) -> float:
    return max(turns) / max(1.0, min(turns))


def _contend(make: MakeLock, processes: int, seconds: float) -> list[list[float]]:
    """The waits of each of ``processes``, which begin together."""
    begin = time.monotonic() + 0.05 + 0.005 * processes
    readers = [_started(make, begin, begin + seconds) for _ in range(processes)]
    turns = []
    for pid, reader in readers:
        with os.fdopen(reader, encoding="ascii") as pipe:
            turns.append(json.loads(pipe.read()))
        os.waitpid(pid, 0)
    return turns


def _started(make: MakeLock, begin: float, end: float) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        lock = make()
        time.sleep(max(0.0, begin - time.monotonic()))
        with os.fdopen(writer, "w", encoding="ascii") as pipe:
            json.dump(_waits(lock, end), pipe)
    except BaseException:  # noqa: BLE001  # the process ends right after
        traceback.print_exc()  # the parent finds nothing in the pipe, and says so
    finally:
        os._exit(0)  # a child of a benchmark must not go on as the benchmark


def _waits(lock: Lock, end: float) -> list[float]:
    waits = []
    while (asked := time.monotonic()) < end:
        with lock:
            waits.append(time.monotonic() - asked)
            time.sleep(_HOLD_SECONDS)
    return waits


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        is_quick = "--quick" in sys.argv
        show(page([findings(quick=is_quick, folder=Path(folder))], root=Path(folder), quick=is_quick))
