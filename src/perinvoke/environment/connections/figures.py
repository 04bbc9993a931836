"""The figures of a budget over all workers, read from its board."""

from __future__ import annotations

import os
import struct

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections.board import COLUMNS, Board, Line, percentile
from perinvoke.environment.connections.network_end import open_at_server
from perinvoke.environment.connections.slots import BOARD, TIMEOUTS, TURN, slot_path

_OPEN = frozenset({states.IN_USE, states.IDLE, states.CLEANING, states.CLOSING})


class Stats:
    """The figures of one budget over all workers of the execution environment. Immutable; a picture of one moment, or nearly so.

    Attributes:
        name: the pool's.
        max_connections: the budget.
        open: connections that are open now, also those that a killed worker left and the server has not closed yet.
        in_use: of those, lent to an invocation.
        waiting: workers that wait for one.
        waits: how often one had to be waited for, because none was idle; ``wait_p50_seconds`` and ``wait_p99_seconds`` tell how
            long, rounded up by half at most.
        connects: connections opened in a new slot; ``reconnects``: replaced in their slot (dead, or too old).
        resets: sessions cleaned between invocations.
        leaks: connections that an invocation did not return.
        timeouts: how often it was waited in vain.
    """

    __slots__ = (
        "connects",
        "in_use",
        "leaks",
        "max_connections",
        "name",
        "open",
        "reconnects",
        "resets",
        "timeouts",
        "wait_counts",
        "wait_p50_seconds",
        "wait_p99_seconds",
        "waiting",
        "waits",
    )

    def __init__(
        self, *, name: str, max_connections: int, lines: list[Line], held: list[Line], waiting: int, timeouts: int
    ) -> None:
        waits = [sum(counts) for counts in zip(*(line.waits for line in lines), strict=True)]
        self.name = name
        self.max_connections = max_connections
        self.open = sum(line.state in _OPEN for line in held)
        self.in_use = sum(line.state == states.IN_USE for line in held)
        self.waiting = waiting
        self.waits = sum(waits)
        self.wait_counts = tuple(waits) or (0,) * COLUMNS  # by how long; see board.column
        self.wait_p50_seconds = percentile(waits, 0.5)
        self.wait_p99_seconds = percentile(waits, 0.99)
        self.connects = sum(line.connects for line in lines)
        self.reconnects = sum(line.reconnects for line in lines)
        self.resets = sum(line.resets for line in lines)
        self.leaks = sum(line.leaks for line in lines)
        self.timeouts = timeouts

    def as_dict(self) -> dict[str, object]:
        """All figures by name."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "wait_counts"}

    def __repr__(self) -> str:
        return f"Stats({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"


def read_stats(path: str, *, name: str, max_connections: int) -> Stats:
    """Read the figures of the budget in the directory ``path``; all nought where no worker has used it yet."""
    locks = _locks()
    lines = _lines(path, max_connections)
    turn = _identity(f"{path}/{TURN}")
    return Stats(
        name=name,
        max_connections=max_connections,
        lines=lines,
        held=[line for line in lines if _is_held(path, line, locks)],
        waiting=sum(lock == turn for lock in locks or ()),
        timeouts=_size(f"{path}/{TIMEOUTS}"),
    )


def _lines(path: str, slots: int) -> list[Line]:
    try:
        fd = os.open(f"{path}/{BOARD}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return []
    try:
        return Board(fd, slots).lines()
    except struct.error:
        return []  # somebody is just writing it
    finally:
        os.close(fd)


def _is_held(path: str, line: Line, locks: list[str] | None) -> bool:
    """Whether the slot's holder lives, or the server still has what it left; where nobody tells, what the board says holds."""
    if line.state == states.FREE or locks is None:
        return bool(line.state != states.FREE)
    return _identity(slot_path(path, line.number)) in locks or open_at_server(line.endpoints) is True


def _locks() -> list[str] | None:
    """Which files are locked with ``flock``, once for each who holds it or waits for it: proc(5); None where nobody tells."""
    try:
        with open("/proc/locks", encoding="ascii") as lines:
            # Number, FLOCK, ADVISORY, READ or WRITE, pid, file, range; a waiter has "->" after the number.
            return [
                file for line in lines for _, kind, _, _, _, file, *_ in [line.replace(" -> ", " ").split()] if kind == "FLOCK"
            ]
    except OSError:
        return None


def _identity(path: str) -> str:
    """A file as /proc/locks names it."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
