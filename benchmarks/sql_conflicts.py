"""Writes to hot rows of PostgreSQL by many processes: optimistic, pessimistic, advisory; beside a loop that is written by hand.

``python benchmarks/sql_conflicts.py`` prints it; ``make bench`` runs it with the others and writes ``RESULTS.md``.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.orm import Session

import sql_conflict_handlers as handlers
from measure import Measured, percentile
from results import Findings, Row, Unit, page, show

# The server is the tests' own: what starts it, and lets nothing of it survive, is tested there, and isn't needed twice.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from databases import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    _Worker = subprocess.Popen[str]

PROCESSES = 8
HOT_ROWS = (1, 10, 100)
_NAMES = {
    handlers.OPTIMISTIC: "`Versioned` and `retry_conflicts`",
    handlers.PESSIMISTIC: "`locked`",
    handlers.ADVISORY: "`advisory_lock`",
    handlers.BY_HAND: "a version column and a loop by hand",
}
_START_SECONDS = 60  # of a process; generous: they share the processors
_ANSWER_SECONDS = 60  # after the end of its turn

_METHOD = (
    (
        f"{PROCESSES} processes, each with a connection of SQLAlchemy's and psycopg's to one PostgreSQL 18 on the same machine "
        "(fsync=off), each in its own loop: BEGIN, read a row at random from so many, "
        f"{handlers.WORK_SECONDS * 1000:.0f} ms of work, write it with one more, COMMIT. READ COMMITTED."
    ),
    (
        "By hand: `version_id_col`, and after a StaleDataError or an OperationalError the same again, after a pause of up to "
        f"{handlers.PAUSE_SECONDS * 1000:.0f} ms."
    ),
    "All in turn, and round again. Writes per second: of all processes together. p99: of one write, with its repetitions.",
    "At the end the rows have to hold as many as were written: none of them has lost one.",
)
_UNPROVEN = (
    "What a network does: a round trip there lengthens every transaction, and so every wait for a lock.",
    "Transactions with several rows, where locks meet in deadlocks.",
    "More processors: here the database and its clients share those of one machine.",
)


@dataclass
class _Turns:
    """What one contender showed with so many hot rows, in the order of the rounds."""

    rates: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    writes: int = 0

    def measured(self, figure: str) -> Measured:
        figures = tuple(getattr(self, figure))
        return Measured(figures, figures)


def findings(*, quick: bool, folder: Path) -> Findings:
    """Measure; writes only where PostgreSQL makes its temporary directory."""
    del folder
    show("sql conflicts ...")
    rounds, seconds = (1, 0.4) if quick else (5, 1.0)
    with Postgres() as server:
        engine = sa.create_engine(server.url())
        _fill(engine)
        with _workers(server.url()) as workers:
            found = {rows: _taking_turns(workers, rows, rounds=rounds, seconds=seconds) for rows in HOT_ROWS}
        _check(engine, found)
        engine.dispose()
    lines = [row for rows, turns in found.items() for row in _rows(rows, turns)]
    return Findings("Conflicts in SQL databases", tuple(lines), _METHOD, _UNPROVEN)


def _rows(rows: int, turns: dict[str, _Turns]) -> list[Row]:
    """Each of the ways beside the loop by hand."""
    hot = "1 hot row" if rows == 1 else f"{rows} hot rows"
    figures = {"rates": ("writes per second", Unit.PER_SECOND), "p99": ("p99 of a write", Unit.MILLISECONDS)}
    return [
        Row(
            f"SQL, {hot}, {told}: {_NAMES[way]}",
            unit,
            turns[way].measured(figure),
            _NAMES[handlers.BY_HAND],
            turns[handlers.BY_HAND].measured(figure),
        )
        for figure, (told, unit) in figures.items()
        for way in _NAMES
        if way != handlers.BY_HAND
    ]


def _taking_turns(workers: Sequence[_Worker], rows: int, *, rounds: int, seconds: float) -> dict[str, _Turns]:
    turns = {way: _Turns() for way in _NAMES}
    for way, turn in turns.items():
        turn.writes += len(_turn(workers, way, rows, 0.2))  # statements are prepared, pages are read
    for number in range(rounds):
        for way in turns if number % 2 else reversed(turns):
            taken = _turn(workers, way, rows, seconds)
            turns[way].rates.append(len(taken) / seconds)
            turns[way].p99.append(percentile(taken, 0.99))
            turns[way].writes += len(taken)
    return turns


def _turn(workers: Sequence[_Worker], way: str, rows: int, seconds: float) -> list[float]:
    order = json.dumps([way, rows, seconds]) + "\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(order)
        worker.stdin.flush()
    return [taken for worker in workers for taken in _answer(worker, seconds + _ANSWER_SECONDS)]


def _answer(worker: _Worker, seconds: float) -> list[float]:
    assert worker.stdout is not None
    if not select.select([worker.stdout], [], [], seconds)[0]:
        raise RuntimeError(f"a process has not answered within {seconds:.0f} s")
    taken: list[float] = json.loads(worker.stdout.readline() or "null")
    return taken


@contextlib.contextmanager
def _workers(url: str) -> Iterator[list[_Worker]]:
    """Those who write, waiting for orders; started anew, not forked, so that they share nothing."""
    command = [sys.executable, handlers.__file__, url]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=-1) for _ in range(PROCESSES)
    ]
    try:
        for worker in workers:
            _answer(worker, _START_SECONDS)
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _fill(engine: sa.Engine) -> None:
    handlers.Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for model in set(handlers.MODELS.values()):
            session.add_all(model(id=number) for number in range(1, max(HOT_ROWS) + 1))


def _check(engine: sa.Engine, found: dict[int, dict[str, _Turns]]) -> None:
    with Session(engine) as session:
        for model in set(handlers.MODELS.values()):
            written = sum(turns[way].writes for turns in found.values() for way in turns if handlers.MODELS[way] is model)
            there = session.scalar(sa.select(sa.func.sum(model.value)))
            if there != written:
                raise RuntimeError(f"{written} writes to {model.__tablename__}, and {there} are there")


def main() -> None:
    """Measure and print."""
    quick = "--quick" in sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="perinvoke-bench-", ignore_cleanup_errors=True) as folder:
        show(page([findings(quick=quick, folder=Path(folder))], root=Path(folder), quick=quick))


if __name__ == "__main__":
    main()
