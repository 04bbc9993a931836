"""The board of a budget: one file in which every worker reads who has what, and each slot's holder writes its own line.

* A line is written by the process that holds its slot and by nobody else, so that no write needs a lock.
* What it says is for figures, for asking, and for who comes after a dead holder. Who holds a slot is decided by the kernel's lock
  on the slot, never by the board.
* ``pread`` and ``pwrite``, no ``mmap``: a full disk is an error there, and in a mapping it is a signal that kills the worker.

Times are seconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import fcntl
import math
import os
import struct
import time

from perinvoke.environment.kernel_lock import LOCK_FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

FREE, OPENING, IN_USE, IDLE, CLEANING, CLOSING = range(6)

_MAGIC = b"perinv01"
_HEAD = struct.Struct("=8sIIdI")  # magic, slots, unused, when somebody last waited, which process
_WANTED = struct.Struct("=dI")
_WANTED_AT = 16
_HEAD_BYTES = 64
# state, pid, since when in it, what the connection's end of the network looks like
_STATE = struct.Struct("=IId96s")
# connects, reconnects, resets, leaks, waits
_COUNTS = struct.Struct("=5Q")
_COUNTS_AT = _STATE.size
# How often it was waited how long: from 10 µs on, each column reaches 1.5 times as far as the one before; the last is 2 hours.
COLUMNS = 50
_FIRST_SECONDS, _FACTOR = 1e-5, 1.5
_WAITS = struct.Struct(f"={COLUMNS}I")
_WAITS_AT = _COUNTS_AT + _COUNTS.size
_LINE_BYTES = 512
# Seconds. Who waits says so again after a fraction of this; who was killed while waiting is believed no longer.
WANTED_SECONDS = 0.1


class Line:
    """What the board says of one slot. Lives for a moment."""

    __slots__ = ("connects", "endpoints", "leaks", "number", "pid", "reconnects", "resets", "since", "state", "waits")

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.state, self.pid, self.since, endpoints = _STATE.unpack_from(data)
        self.endpoints = endpoints.rstrip(b"\0").decode("ascii", "replace")
        self.connects, self.reconnects, self.resets, self.leaks, _ = _COUNTS.unpack_from(data, _COUNTS_AT)
        self.waits: tuple[int, ...] = _WAITS.unpack_from(data, _WAITS_AT)


class Board:
    """One process's view of a board that is open; lives as long as the process uses the budget. Nothing here blocks."""

    def __init__(self, fd: int, slots: int) -> None:
        self.fd = fd
        self.slots = slots
        self._pid = os.getpid()

    def write_state(self, number: int, state: int, endpoints: str = "") -> None:
        """Say what the holder of the slot does with it, from now on."""
        data = _STATE.pack(state, self._pid, time.monotonic(), endpoints.encode("ascii"))
        os.pwrite(self.fd, data, _line_at(number))

    def write_mourned(self, number: int, state: int, endpoints: str) -> None:
        """Say that the slot's holder was found dead, in that state and with that connection in it."""
        os.pwrite(self.fd, _STATE.pack(state, 0, time.monotonic(), endpoints.encode("ascii")), _line_at(number))

    def add(self, number: int, *, connects: int = 0, reconnects: int = 0, resets: int = 0, leaks: int = 0) -> None:
        """Count something that the holder of the slot did."""
        at = _line_at(number) + _COUNTS_AT
        counts = _COUNTS.unpack(os.pread(self.fd, _COUNTS.size, at))
        more = (connects, reconnects, resets, leaks, 0)
        os.pwrite(self.fd, _COUNTS.pack(*map(int.__add__, counts, more)), at)

    def add_wait(self, number: int, seconds: float) -> None:
        """Count how long the holder of the slot has waited for it, or for a connection in it."""
        at = _line_at(number) + _WAITS_AT + 4 * column(seconds)
        count = int.from_bytes(os.pread(self.fd, 4, at), "little") + 1
        os.pwrite(self.fd, (count & 0xFFFFFFFF).to_bytes(4, "little"), at)

    def line(self, number: int) -> Line:
        """What the board says of the slot."""
        return Line(number, os.pread(self.fd, _LINE_BYTES, _line_at(number)))

    def lines(self) -> list[Line]:
        """What it says of all slots; not of one moment, because others go on."""
        data = os.pread(self.fd, self.slots * _LINE_BYTES, _HEAD_BYTES)
        return [Line(number, data[number * _LINE_BYTES : (number + 1) * _LINE_BYTES]) for number in range(self.slots)]

    def want(self, *, now: bool = True) -> None:
        """Say that somebody waits for a slot; or no longer does."""
        os.pwrite(self.fd, _WANTED.pack(time.monotonic() if now else 0.0, self._pid), _WANTED_AT)

    def is_wanted_elsewhere(self) -> bool:
        """Whether another process waits for a slot: says so, and is alive."""
        at, pid = _WANTED.unpack(os.pread(self.fd, _WANTED.size, _WANTED_AT))
        return bool(pid != self._pid and 0 <= time.monotonic() - at < WANTED_SECONDS)  # before: of an earlier boot

    def is_swept(self) -> bool:
        """Whether somebody has removed the file."""
        return os.fstat(self.fd).st_nlink == 0

    def close(self) -> None:
        """Close the file, and with it the claim to use it."""
        os.close(self.fd)


def open_board(path: str, slots: int) -> Board | int:
    """The board at ``path``, made if need be; or the number of slots that those who use it go by, where that is another.

    Who uses a board holds ``flock`` shared on it. A board that nobody uses is written anew: it may be of an earlier environment.
    Blocks while another process writes it, for microseconds.

    Raises:
        OSError: the file can't be made or opened.
    """
    while True:
        fd = os.open(path, LOCK_FILE | os.O_CREAT, 0o600)
        try:
            if _is_unused(fd):
                _begin(fd, slots)
            fcntl.flock(fd, fcntl.LOCK_SH)
            found = _slots_of(fd)
            if os.fstat(fd).st_nlink and found:
                if found != slots:
                    os.close(fd)
                    return found
                return Board(fd, slots)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed meanwhile, or taken by one who writes it


def column(seconds: float) -> int:
    """The column of the histogram that a wait is counted in."""
    if seconds <= _FIRST_SECONDS:
        return 0
    return min(COLUMNS - 1, math.ceil(math.log(seconds / _FIRST_SECONDS, _FACTOR)))


def percentile(waits: Iterable[int], share: float) -> float:
    """The seconds that at least ``share`` of all waits didn't exceed, rounded up to the end of their column; 0 without any."""
    counts = list(waits)
    wanted = share * sum(counts)
    if not wanted:
        return 0.0
    reached = 0
    for number, count in enumerate(counts):
        reached += count
        if reached >= wanted:
            return _FIRST_SECONDS * _FACTOR**number
    return _FIRST_SECONDS * _FACTOR ** (COLUMNS - 1)


def _line_at(number: int) -> int:
    return _HEAD_BYTES + number * _LINE_BYTES


def _is_unused(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _slots_of(fd: int) -> int:
    """How many slots the board was written for; 0 where it isn't whole."""
    head = os.pread(fd, _HEAD.size, 0)
    if len(head) < _HEAD.size:
        return 0
    magic, slots, _, _, _ = _HEAD.unpack(head)
    return slots if magic == _MAGIC and os.fstat(fd).st_size == _line_at(slots) else 0


def _begin(fd: int, slots: int) -> None:
    """Make it the board of a new environment. What dead workers have left is kept: it counts until it is gone."""
    if _slots_of(fd) == slots:
        for number in range(slots):
            os.pwrite(fd, bytes(_LINE_BYTES - _COUNTS_AT), _line_at(number) + _COUNTS_AT)
        return
    os.ftruncate(fd, 0)  # and all is written, also what is nought: later writes find their blocks, however full the disk is then
    os.pwrite(fd, bytes(_line_at(slots)), 0)
    os.pwrite(fd, _HEAD.pack(_MAGIC, slots, 0, 0.0, 0), 0)
