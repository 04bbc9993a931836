"""Database connections of 16 workers: anew for each invocation, a pool in each worker, a budget for all, PgBouncer.

``python benchmarks/connections.py`` prints it; ``make bench`` runs it with the others and writes ``RESULTS.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from connection_handlers import ACCOUNTS, BUDGET, DATABASE
from measure import Measured
from perinvoke.local import LocalConfig, LocalEnvironment, drive
from results import Findings, Row, Target, Unit, page, show

# The server is the tests' own: what starts it, and lets nothing of it survive, is tested there, and isn't needed twice.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from databases import PeakWatch, Postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from perinvoke.local import LoadReport

WORKERS = 16
_ANEW, _POOLS, _BUDGET, _PGBOUNCER = "anew", "pool_per_worker", "budget", "pgbouncer"
_NAMES = {
    _ANEW: "a connection for each invocation",
    _POOLS: "a pool in each worker",
    _BUDGET: f"`engine`, {BUDGET} connections for all",
    _PGBOUNCER: f"PgBouncer with {BUDGET}",
}
_WORKLOADS = {
    "one short transaction": b"{}",
    "one short transaction and 10 ms for a service": b'{"wait_seconds": 0.01}',
}

_METHOD = (
    f"{WORKERS} workers of awslambdaric below `perinvoke.local`, and as many callers that each wait for their answer.",
    (
        "The handler is preloaded and isolated, below `perinvoke-exec`, for every contender: what isolation costs is measured "
        "elsewhere, and what is compared here is where connections come from."
    ),
    "A transaction: SQLAlchemy and psycopg, BEGIN, one SELECT, one UPDATE of a row of the worker's own, COMMIT.",
    (
        "A connection for each invocation: `create_engine(poolclass=NullPool)`. A pool in each worker: `create_engine`, as it "
        "comes. All over TCP on 127.0.0.1 with SCRAM-SHA-256, without TLS; to PgBouncer over its unix socket."
    ),
    (
        "Each contender has a PostgreSQL 18 of its own, all alike (fsync=off, 16 MB of shared buffers), so that its clients are "
        "counted for themselves. All environments are alive at the same time and take turns; the idle ones only wait."
    ),
    (
        "The most connections: what pg_stat_activity shows, also of clients that are just being let in or haven't quite left, "
        "looked at without a pause by a thread, in rounds whose throughput isn't counted."
    ),
)
_UNPROVEN = (
    "What a network does: connecting anew costs several of its round trips, and TLS some more, which here are for nothing.",
    "What a database does that has more work than this: here it, the workers and those who call them share the processors.",
    "What many execution environments together do to a server: each has a budget of its own.",
)


@dataclass
class _Turns:
    """What one contender showed with one workload, in the order of the rounds."""

    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    peak: int = 0

    def add(self, report: LoadReport) -> None:
        self.rates.append(report.per_second)
        self.p50.append(report.latency(0.5))
        self.p99.append(report.latency(0.99))


def findings(*, quick: bool, folder: Path) -> Findings:
    """Measure; writes below ``folder`` only, and where PostgreSQL makes its temporary directory."""
    show("connections ...")
    # Long rounds: at the end of one, some workers have nothing to do, and which these are takes a budget a moment to notice.
    rounds, requests = (1, 2 * WORKERS) if quick else (15, 25 * WORKERS)
    turns = asyncio.run(_taking_turns(_contenders(), folder, rounds=rounds, requests=requests))
    rows = [row for what, found in turns.items() for row in _rows(what, found)]
    return Findings("Database connections", tuple(rows), _METHOD, _UNPROVEN)


def _contenders() -> Sequence[str]:
    return tuple(name for name in _NAMES if name != _PGBOUNCER or pgbouncer_is_installed())


def pgbouncer_is_installed() -> bool:
    """Debian puts it where only root's PATH leads."""
    return shutil.which("pgbouncer") is not None or shutil.which("pgbouncer", path="/usr/sbin") is not None


# --- rows ------------------------------------------------------------------------------------------------------------------


def _rows(what: str, turns: dict[str, _Turns]) -> list[Row]:
    """What bounds connections beside what doesn't."""
    bounded = [name for name in (_BUDGET, _PGBOUNCER) if name in turns]
    thrice, ninety = Target(3.0, at_least=True), Target(0.9, at_least=True)

    def row(figure: str, unit: Unit, name: str, peer: str, target: Target | None = None) -> Row:
        found = [_measured(turns[one], figure) for one in (name, peer)]
        return Row(f"database, {what}, {_FIGURES[figure]}: {_NAMES[name]}", unit, found[0], _NAMES[peer], found[1], target)

    rows = [row("rates", Unit.PER_SECOND, name, _ANEW, thrice) for name in bounded]
    rows += [row("rates", Unit.PER_SECOND, name, _POOLS, ninety if name == _PGBOUNCER else None) for name in bounded]
    rows += [row(figure, Unit.MILLISECONDS, name, _POOLS) for figure in ("p50", "p99") for name in (_ANEW, *bounded)]
    most = Target(BUDGET, Unit.CONNECTIONS)
    rows += [row("peak", Unit.CONNECTIONS, name, _POOLS, None if name == _ANEW else most) for name in (_ANEW, *bounded)]
    return rows


_FIGURES = {
    "rates": f"throughput of {WORKERS} workers",
    "p50": "latency p50",
    "p99": "latency p99",
    "peak": "most connections at once",
}


def _measured(turns: _Turns, figure: str) -> Measured:
    found = getattr(turns, figure)
    figures = (float(found),) if figure == "peak" else tuple(found)
    return Measured(figures, figures)


# --- rounds ----------------------------------------------------------------------------------------------------------------


async def _taking_turns(contenders: Sequence[str], folder: Path, *, rounds: int, requests: int) -> dict[str, dict[str, _Turns]]:
    """For each workload, and in it for each contender, what it showed."""
    async with contextlib.AsyncExitStack() as stack:
        sides = {name: await stack.enter_async_context(_side(name, folder)) for name in contenders}
        found = {}
        for what, event in _WORKLOADS.items():
            turns = found[what] = {name: _Turns() for name in contenders}
            for side in sides.values():
                await side.load(event, 2 * WORKERS)  # each worker has connected, where it may
            for number in range(rounds):
                for name in contenders if number % 2 else reversed(contenders):
                    turns[name].add(await sides[name].load(event, requests))
            for name in contenders:
                with PeakWatch(sides[name].server) as watch:
                    await sides[name].load(event, requests)
                turns[name].peak = watch.peak
        return found


@dataclass(frozen=True)
class _Side:
    """One contender's database and environment."""

    server: Postgres
    environment: LocalEnvironment

    async def load(self, event: bytes, requests: int) -> LoadReport:
        report = await drive(self.environment, [event], requests=requests)
        if report.failed:
            raise RuntimeError(f"{report.failed} of {requests} invocations failed: {report.errors} {report.samples}")
        return report


@contextlib.asynccontextmanager
async def _side(name: str, folder: Path) -> AsyncIterator[_Side]:
    with Postgres() as server:
        server.execute(f"CREATE TABLE account AS SELECT id, 0 AS balance FROM generate_series(0, {ACCOUNTS - 1}) AS id")
        server.execute("ALTER TABLE account ADD PRIMARY KEY (id)")
        async with LocalEnvironment(_config(name, server, folder)) as environment:
            yield _Side(server, environment)


def _config(name: str, server: Postgres, folder: Path) -> LocalConfig:
    env = {
        DATABASE: server.url(),
        "PERINVOKE_PGBOUNCER_URL": server.url(""),
        "PERINVOKE_PGBOUNCER_MAX_CONNECTIONS": str(BUDGET),
        "PERINVOKE_ROOT": str(folder / f"{name}-root"),
        "TMPDIR": str(folder),
    }
    return LocalConfig(
        handler=f"connection_handlers.{name}",
        workers=WORKERS,
        directory=Path(__file__).parent,
        env=env,
        isolate=True,
        preload="handler",
        extensions=("pgbouncer",) if name == _PGBOUNCER else (),
        queue=True,  # a worker that has answered needs a moment until it asks for more
    )


def main() -> None:
    """Measure and print."""
    quick = "--quick" in sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="perinvoke-bench-", ignore_cleanup_errors=True) as folder:
        show(page([findings(quick=quick, folder=Path(folder))], root=Path(folder), quick=quick))


if __name__ == "__main__":
    main()
