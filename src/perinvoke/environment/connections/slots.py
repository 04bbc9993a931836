"""The slots of a budget: who holds one may have a connection open. Lock files below the root, counted over all workers.

* A slot is held by ``flock`` on its file. The kernel frees it when its holder dies, however it dies.
* A slot whose holder died with a connection in it is taken only when that connection is gone at the server too: a budget is a
  promise about what the server counts. Where the kernel doesn't tell (a unix socket, a connection that was reset), a moment is
  let pass, in which a server notices.
* A slot whose file somebody has removed (a handler that sweeps /tmp) is lost: its holder closes the connection at its return.
"""

from __future__ import annotations

import fcntl
import os
import time

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections.bells import open_bell, ring
from perinvoke.environment.connections.board import Board, Line, open_board
from perinvoke.environment.connections.network_end import open_at_server
from perinvoke.environment.kernel_lock import LOCK_FILE, is_at, try_lock

# Seconds that a server is given to notice that a worker was killed, where nothing tells that it has. PostgreSQL ends an idle
# session at once, and one that works at its next look at the socket (DEAD_CLIENT_CHECK_MS).
NOTICE_SECONDS = 0.25
# The same where connecting was interrupted: nobody knows how far that had got.
OPENING_NOTICE_SECONDS = 1.0

TURN, FREED, BOARD, TIMEOUTS = "turn", "freed", "board", "timeouts"


class Slot:
    """A slot that this process holds; lives from the grant to its release."""

    __slots__ = ("ask_fd", "directory", "fd", "number", "taken_at")

    def __init__(self, directory: SlotDirectory, number: int, fd: int, ask_fd: int) -> None:
        self.directory = directory
        self.number = number
        self.fd = fd
        self.ask_fd = ask_fd  # the bell that others ring when they want it
        self.taken_at = time.monotonic()

    def is_lost(self) -> bool:
        """Whether somebody removed its file: others can't see any more that it is held."""
        return os.fstat(self.fd).st_nlink == 0

    def release(self, *, half_open: bool = False, left: str = "") -> None:
        """Give it back; its connection is closed. Whoever has the turn is woken.

        ``half_open``: connecting was interrupted; ``left``: the server still has its end of the connection between these. To
        whoever takes it next it looks as if its holder had died.
        """
        if left:
            self.directory.board.write_mourned(self.number, states.CLOSING, left)
        elif half_open:
            self.directory.board.write_mourned(self.number, states.OPENING, "")
        else:
            self.directory.board.write_state(self.number, states.FREE)
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.close()
        ring(self.directory.freed_fd)

    def close(self) -> None:
        """Forget it without giving it back: in a forked child."""
        os.close(self.fd)
        os.close(self.ask_fd)

    def __repr__(self) -> str:
        return f"<Slot {self.number}>"


class SlotDirectory:
    """The files of one budget, open in one process; lives as long as the process uses it.

    Nothing here blocks beyond a moment, and nothing may be interrupted: only perinvoke's own threads come here, which no signal
    handler and no deadline reaches.
    """

    def __init__(self, path: str, count: int, board: Board, freed_fd: int, turn_fd: int) -> None:
        self.path = path
        self.count = count
        self.board = board
        self.freed_fd = freed_fd
        self.turn_fd = turn_fd

    def try_take(self) -> Slot | None:
        """A slot that nobody holds and whose last connection is gone; None if there is none now."""
        first = os.getpid() % self.count  # where there are many slots and few workers, each soon finds one
        for number in (*range(first, self.count), *range(first)):
            slot = self._try_take(number)
            if slot is not None:
                return slot
        return None

    def path_of_ask(self, number: int) -> str:
        """The bell of a slot."""
        return f"{self.path}/ask-{number:03}"

    def note_timeout(self) -> None:
        """Count one who waited in vain. A byte for each: appending needs no lock."""
        try:
            fd = os.open(f"{self.path}/{TIMEOUTS}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, b".")
            finally:
                os.close(fd)
        except OSError:
            pass  # a full disk: a figure is no reason to fail

    def is_swept(self) -> bool:
        """Whether somebody has removed the files."""
        return self.board.is_swept() or os.fstat(self.turn_fd).st_nlink == 0

    def close(self) -> None:
        """Close what is open; slots that are held stay held."""
        self.board.close()
        os.close(self.freed_fd)
        os.close(self.turn_fd)

    def _try_take(self, number: int) -> Slot | None:
        path = slot_path(self.path, number)
        fd = os.open(path, LOCK_FILE | os.O_CREAT, 0o600)
        try:
            if try_lock(fd) and is_at(fd, path) and self._is_clean(number):
                return Slot(self, number, fd, open_bell(self.path_of_ask(number)))
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # and with it the lock, if we had it: no other process has this open file
        return None

    def _is_clean(self, number: int) -> bool:
        """Whether the connection that a dead holder had in the slot is gone."""
        line = self.board.line(number)
        if line.state == states.FREE:
            return True
        if line.pid != 0:  # not looked at since: note when its holder was found dead, in place of whose it was
            self.board.write_mourned(number, line.state, line.endpoints)
            line = self.board.line(number)
        is_open = open_at_server(line.endpoints)
        if is_open is None:  # also where the kernel has forgotten, which it does a minute after the death
            waited = time.monotonic() - line.since
            is_open = 0 <= waited < (OPENING_NOTICE_SECONDS if line.state == states.OPENING else NOTICE_SECONDS)
        return not is_open or self._is_anothers(line)

    def _is_anothers(self, line: Line) -> bool:
        """Whether a living worker's new connection has got the same port."""
        others = (other for other in self.board.lines() if other.number != line.number)
        return bool(line.endpoints) and any(other.endpoints == line.endpoints for other in others)


def slot_path(directory: str, number: int) -> str:
    """The lock file of a slot."""
    return f"{directory}/slot-{number:03}"


def open_slots(path: str, count: int) -> SlotDirectory | int:
    """Open the files of the budget in the directory ``path``, which exists; or the count that those who use it go by.

    Raises:
        OSError: they can't be made or opened.
    """
    board = open_board(f"{path}/{BOARD}", count)
    if isinstance(board, int):
        return board
    opened: list[int] = []
    try:
        opened.append(open_bell(f"{path}/{FREED}"))
        opened.append(os.open(f"{path}/{TURN}", LOCK_FILE | os.O_CREAT, 0o600))
    except BaseException:
        board.close()
        for fd in opened:
            os.close(fd)
        raise
    return SlotDirectory(path, count, board, *opened)
