"""Leases, idempotency and versioned writes on moto's DynamoDB: requests and time, beside the libraries that people use for them.

``python benchmarks/dynamodb.py`` prints it; ``make bench`` runs it with the others and writes ``RESULTS.md``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import dynamodb_peers as peers
import dynamodb_waiters as waiters
from measure import Measured, timed
from moto_process import MotoProcess
from results import Findings, Row, Target, Unit, page, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Call = Callable[[], object]

WAITERS = 16
_OURS, _LOCK, _POWERTOOLS, _PYNAMODB, _BARE = "perinvoke", "python-dynamodb-lock", "Powertools", "PynamoDB", "boto3"
# Of waiting, by who waits.
_WAITING = {
    waiters.OURS: "`LeaseLock`",
    waiters.OFTEN: f"{_LOCK}, told to ask every {waiters.OFTEN_SECONDS} s",
    waiters.DEFAULT: f"{_LOCK} as it comes: every 5 s",
}

_LEASE, _FIRST, _REPLAY, _VERSIONED = (
    "a lease taken and given back",
    "the first call of a key",
    "the replay of a call",
    "a versioned update",
)
_NAMES = {
    (_LEASE, _OURS): "`LeaseLock`",
    (_FIRST, _OURS): "`idempotent`",
    (_REPLAY, _OURS): "`idempotent`",
    (_VERSIONED, _OURS): "`update_versioned`",
    (_LEASE, _BARE): "two bare UpdateItem of boto3's",
    (_VERSIONED, _PYNAMODB): "PynamoDB's `VersionAttribute`",
}
_PROCESSOR = "processor time of the client"
# Requests; the design's are of writes, and what is counted here are all.
_TARGETS = {_LEASE: 2, _FIRST: 2, _REPLAY: 1}

_METHOD = (
    (
        "moto's DynamoDB over HTTP, connections kept open, in a process of its own. It serves one request at a time, and counts "
        "them. Every library runs in the benchmark's process, with the same boto3 settings; "
        "PynamoDB makes its own client."
    ),
    "All in turn, a few calls at a time, and round again. Requests: all that the server was asked for, reads too.",
    (
        "Time: moto's for the most part, which parses expressions, and takes twice as long for an UpdateItem as for a PutItem; "
        "DynamoDB doesn't. Processor time: that of the benchmark's process alone: the library, boto3 and HTTP."
    ),
    (
        f"Waiting: {WAITERS} processes of one execution environment wait for a lease that another environment holds; what they "
        "ask for is counted over some seconds. Then it is given back, and each that gets it gives it back at once."
    ),
    "python-dynamodb-lock and Powertools with their defaults, Powertools without a cache; the lock has two threads of its own.",
)
_UNPROVEN = (
    "How long DynamoDB takes: a request has a network's round trip there, beside which a library's own time hardly counts.",
    "What waiters of many environments ask for: of each environment one asks.",
    "That what is promised holds under contention and faults: tests prove that, not this.",
)


@dataclass
class _Turns:
    """What one contender showed, in the order of the rounds."""

    requests: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    seconds: list[Sequence[float]] = field(default_factory=list)

    def measured(self, figure: str) -> Measured:
        if figure == "time":
            return Measured(
                rounds=tuple(statistics.fmean(calls) for calls in self.seconds),
                calls=tuple(call for calls in self.seconds for call in calls),
            )
        figures = tuple(self.requests if figure == "requests" else self.processor)
        return Measured(figures, figures)


def findings(*, quick: bool, folder: Path) -> Findings:
    """Measure; writes below ``folder`` only."""
    show("dynamodb ...")
    with _root(folder / "root"), MotoProcess() as server:
        peers.make_tables(peers.client_of(server.account()))
        calls = _call_rows(server, rounds=2 if quick else 20, times=3 if quick else 5)
        # As it comes, python-dynamodb-lock asks every 5 seconds: it can't be seen in less.
        libraries = [name for name in _WAITING if name != waiters.DEFAULT or not quick]
        waiting = _waiting_rows(server, folder, libraries, rounds=1 if quick else 2, seconds=1.0 if quick else 5.0)
    return Findings("DynamoDB", (*calls, *waiting), _METHOD, _UNPROVEN)


@contextlib.contextmanager
def _root(path: Path) -> Iterator[None]:
    """Where perinvoke keeps its files meanwhile."""
    before = os.environ.get("PERINVOKE_ROOT")
    os.environ["PERINVOKE_ROOT"] = str(path)
    try:
        yield
    finally:
        os.environ.pop("PERINVOKE_ROOT") if before is None else os.environ.update(PERINVOKE_ROOT=before)


# --- calls -------------------------------------------------------------------------------------------------------------------


def _call_rows(server: MotoProcess, *, rounds: int, times: int) -> list[Row]:
    account, client = server.account(), peers.client_of(server.account())
    locks = peers.lock_client_of(account)
    try:
        handlers = peers.handlers(client)
        tasks: dict[str, Mapping[str, Call]] = {
            _LEASE: peers.lease_cycles(client, locks),
            _FIRST: {name: _with_fresh_event(handler) for name, handler in handlers.items()},
            _REPLAY: {name: _with_event(handler) for name, handler in handlers.items()},
            _VERSIONED: peers.versioned_updates(client, server.url, account),
        }
        turns = _taking_turns(server, tasks, rounds=rounds, times=times)
    finally:
        waiters.end(locks)
    return [row for task in tasks for row in _rows_of(task, turns[task])]


def _with_fresh_event(handler: Callable[[dict[str, str]], object]) -> Call:
    return lambda: handler(peers.fresh_event())


def _with_event(handler: Callable[[dict[str, str]], object]) -> Call:
    event = peers.fresh_event()
    return lambda: handler(dict(event))


def _taking_turns(
    server: MotoProcess, tasks: Mapping[str, Mapping[str, Call]], *, rounds: int, times: int
) -> dict[str, dict[str, _Turns]]:
    turns = {task: {name: _Turns() for name in calls} for task, calls in tasks.items()}
    contenders = [(task, name, call) for task, calls in tasks.items() for name, call in calls.items()]
    for _, _, call in contenders:  # warm: connections, moto's parsers, the record of the replay
        timed(call, 2)
    for number in range(rounds):
        for task, name, call in contenders if number % 2 else reversed(contenders):
            its = turns[task][name]
            server.served()
            began = time.process_time()
            its.seconds.append(timed(call, times))
            its.processor.append((time.process_time() - began) / times)
            its.requests.append(server.served() / times)
    return turns


def _rows_of(task: str, turns: dict[str, _Turns]) -> Iterator[Row]:
    for peer, its in turns.items():
        if peer == _OURS:
            continue
        names = [_NAMES.get((task, name), name) for name in (_OURS, peer)]
        for figure in ("requests", "time", _PROCESSOR):
            if peer == _BARE and figure == "requests":
                continue
            unit = Unit.REQUESTS if figure == "requests" else Unit.MILLISECONDS
            target = Target(_TARGETS[task], Unit.REQUESTS) if figure == "requests" and task in _TARGETS else None
            ours, theirs = turns[_OURS].measured(figure), its.measured(figure)
            yield Row(f"DynamoDB, {task}, {figure}: {names[0]}", unit, ours, names[1], theirs, target)


# --- waiting -----------------------------------------------------------------------------------------------------------------


def _waiting_rows(server: MotoProcess, folder: Path, libraries: Sequence[str], *, rounds: int, seconds: float) -> list[Row]:
    rates: dict[str, list[float]] = {name: [] for name in libraries}
    ends: dict[str, list[float]] = {name: [] for name in libraries}
    for number in range(rounds):
        for name in libraries if number % 2 else reversed(libraries):
            with _waiting(name, server, folder) as (holder, environment):
                server.served()
                time.sleep(seconds)
                rates[name].append(server.served() / seconds)
                if name != waiters.DEFAULT:  # which takes a quarter of a minute
                    released = time.monotonic()  # the same clock for all processes of a machine
                    holder.release()
                    ends[name].append(max(map(float, _lines(environment))) - released)
    told, ours = f"DynamoDB, {WAITERS} waiters of one lease", waiters.OURS
    return [
        Row(f"{told}, {what}: {_WAITING[ours]}", unit, _measured(found[ours]), _WAITING[name], _measured(found[name]))
        for what, unit, found in (
            ("asked for meanwhile", Unit.REQUESTS_PER_SECOND, rates),
            ("from its release until all have had it", Unit.SECONDS, ends),
        )
        for name in libraries
        if name != ours and found[name]
    ]


def _measured(figures: Sequence[float]) -> Measured:
    return Measured(tuple(figures), tuple(figures))


@contextlib.contextmanager
def _waiting(library: str, server: MotoProcess, folder: Path) -> Iterator[tuple[waiters.Holder, subprocess.Popen[str]]]:
    """Who holds the lease, and those who wait for it."""
    holder = waiters.Holder(library, server.account())
    command = [sys.executable, str(Path(waiters.__file__)), library, server.url, str(WAITERS)]
    env = {**os.environ, "PERINVOKE_ROOT": str(folder / "waiters")}  # another execution environment than the holder's
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True) as environment:
        try:
            _lines(environment)
            time.sleep(0.5)  # the last ones have asked for the first time
            yield holder, environment
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(environment.pid, signal.SIGKILL)
            holder.close()


def _lines(environment: subprocess.Popen[str]) -> list[str]:
    """One of each waiter."""
    assert environment.stdout is not None
    lines = [environment.stdout.readline().strip() for _ in range(WAITERS)]
    if not all(lines):
        raise RuntimeError("a waiter has ended too early; what it says of that is above")
    return lines


def main() -> None:
    """Measure and print."""
    quick = "--quick" in sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="perinvoke-bench-", ignore_cleanup_errors=True) as folder:
        show(page([findings(quick=quick, folder=Path(folder))], root=Path(folder), quick=quick))


if __name__ == "__main__":
    main()
