"""One connection and one loan of it: what both know, and what may follow what."""

from __future__ import annotations

import enum
import os
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import CodeType, FrameType
    from typing import Any

    from perinvoke.environment.connections.network_end import NetworkEnd
    from perinvoke.environment.connections.slots import Slot

# Code that takes a connection on somebody else's account: whose line is told, is the first one that isn't here.
_NOT_THE_TAKER = ("perinvoke", "sqlalchemy", "contextlib", "alembic", "pandas", "sqlmodel", "flask_sqlalchemy")


# Nobody has used the connection since it was opened or cleaned.
CLEAN = object()


class Stage(enum.Enum):
    """Where a connection has got to. It holds its slot in every stage but the last."""

    OPENING = "its slot is there, and it is being opened"
    CHECKING = "it is made fit for the loan that gets it"
    IN_USE = "it is lent"
    IDLE = "it waits for the next loan"
    CLEANING = "what its last user left in it is removed"
    CLOSING = "it is being closed"
    CLOSED = "its slot was given back"


class Cleaning(enum.Enum):
    """How far the cleaning of a session has got without waiting for the server."""

    NOTHING = "nothing is left in it"
    SENT = "the server is told; its answer is heard before the next loan"
    BLOCKS = "it takes waiting"


# What may follow what. Everything that changes a stage goes through Entry.move.
FOLLOWS = {
    Stage.OPENING: frozenset({Stage.IN_USE, Stage.CLOSING}),
    Stage.CHECKING: frozenset({Stage.IN_USE, Stage.CLOSING}),
    Stage.IN_USE: frozenset({Stage.IDLE, Stage.CHECKING, Stage.CLEANING, Stage.CLOSING}),
    Stage.IDLE: frozenset({Stage.CHECKING, Stage.CLEANING, Stage.CLOSING}),
    Stage.CLEANING: frozenset({Stage.IDLE, Stage.CHECKING, Stage.CLOSING}),
    Stage.CLOSING: frozenset({Stage.CLOSED}),
    Stage.CLOSED: frozenset(),
}


class Entry:
    """A connection in its slot; lives from the grant of the slot to its release, in one process.

    Attributes:
        used_for: whose session it holds: the key of who used it since it was last cleaned, or ``CLEAN``.
        end: its socket, where it has one that is known.
        is_asked: another worker has asked for its slot since it was last used.
        is_cut: it was taken from another thread, which may have been using it.
        is_half_open: connecting was interrupted: the server may not have noticed yet.
        is_queued: the keeper has been told what to do with it.
        is_being_cleaned: the server was told to clean its session, and its answer wasn't heard yet.
    """

    __slots__ = (
        "connect_seconds",
        "connection",
        "end",
        "idle_since",
        "is_asked",
        "is_being_cleaned",
        "is_cut",
        "is_half_open",
        "is_queued",
        "loan",
        "opened_at",
        "pid",
        "slot",
        "stage",
        "used_for",
    )

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.pid = os.getpid()
        self.stage = Stage.OPENING
        self.connection: Any = None
        self.end: NetworkEnd | None = None
        self.loan: Loan | None = None
        self.used_for: Hashable = CLEAN
        self.is_asked = False
        self.is_being_cleaned = False
        self.is_cut = False
        self.is_half_open = False
        self.is_queued = False
        self.opened_at = self.idle_since = time.monotonic()
        self.connect_seconds = 0.0

    @property
    def endpoints(self) -> str:
        """Its end of the network, for who comes after a death."""
        return "" if self.end is None else self.end.endpoints

    def note(self, state: int) -> None:
        """Say on the board what is done with it now."""
        self.slot.directory.board.write_state(self.slot.number, state, self.endpoints)

    def move(self, stage: Stage) -> None:
        """Change its stage; under the budget's lock."""
        assert stage in FOLLOWS[self.stage], f"{self.stage} → {stage}"
        self.stage = stage

    def __repr__(self) -> str:
        return f"<Entry {self.slot!r} {self.stage.name}>"


class Loan:
    """One loan of a connection; lives from the asking to the return.

    Known to the end of its invocation before it has got anything, so that an interrupt at any place leaves nothing behind.
    """

    __slots__ = ("asked_at", "code", "entry", "error", "key", "lender", "line", "settled", "slot", "thread_id")

    def __init__(self, lender: object, key: Hashable) -> None:
        self.lender = lender
        self.key = key
        self.thread_id = threading.get_ident()
        self.asked_at = time.monotonic()
        self.entry: Entry | None = None
        self.slot: Slot | None = None  # granted, and not yet in an entry
        self.error: BaseException | None = None
        self.settled: threading.Event | None = None  # there while it waits
        self.code, self.line = _taker()

    def place(self) -> str:
        """The line that took it."""
        return "an unknown line" if self.code is None else f"{self.code.co_filename}:{self.line} in {self.code.co_name}"

    def is_elsewhere(self) -> bool:
        """Whether another thread took it that is still there: it may be using it right now."""
        return self.thread_id != threading.get_ident() and self.thread_id in sys._current_frames()  # noqa: SLF001  # documented

    def settle(self) -> None:
        """Tell who waits for it that it has got something."""
        if self.settled is not None:
            self.settled.set()


def _taker() -> tuple[CodeType | None, int]:
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  # inspect's own way; importing that costs a worker 8 ms
    while frame is not None:
        name: str = frame.f_globals.get("__name__") or ""
        if name.partition(".")[0] not in _NOT_THE_TAKER:
            return frame.f_code, frame.f_lineno
        frame = frame.f_back
    return None, 0
