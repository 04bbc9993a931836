"""What one process has of one pool's connections: which are idle, which are lent to whom, and what becomes of each.

Every method says whether the budget's lock must be held; a change of stage always needs it. What blocks (opening, cleaning,
closing) is done without it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections.entry import CLEAN, Cleaning, Entry, Loan, Stage
from perinvoke.environment.connections.network_end import open_at_server
from perinvoke.environment.connections.turns import given_up_at, is_turn_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from perinvoke.environment.connections.budget import Budget
    from perinvoke.environment.connections.connector import Connector
    from perinvoke.environment.connections.network_end import NetworkEnd
    from perinvoke.environment.connections.slots import Slot

logger = logging.getLogger("perinvoke")


class Holdings:
    """The connections of one pool in one process; lives as long as the pool. A forked child begins with none.

    Args:
        connector: what is done with the connections.
        budget: the process's share of the budget; for each process its own.
        name: for messages; without a password.
        idle_seconds: a connection that nobody used for so long is closed.
    """

    def __init__(self, connector: Connector, budget: Callable[[], Budget], *, name: str, idle_seconds: float) -> None:
        self.name = name
        self.connector = connector
        self.budget = budget
        self._idle_seconds = idle_seconds
        self._disposed_at = 0.0
        self._is_disposed = False
        self._forgotten: list[object] = []
        self._cuts: dict[NetworkEnd, float] = {}  # what takes too long is cut then
        self._begin()

    def _begin(self) -> None:
        self.pid = os.getpid()
        self.entries: set[Entry] = set()
        self.idle: list[Entry] = []
        self.loans: dict[Hashable, list[Loan]] = {}
        self.dropped: dict[Hashable, list[str]] = {}  # where those were taken that the garbage collector has returned

    # --- with the lock -------------------------------------------------------------------------------------------------

    def begin_loan(self, loan: Loan) -> None:
        """Note the loan, before it has got anything: the end of its invocation finds it."""
        self._is_disposed = False
        self.loans.setdefault(loan.key, []).append(loan)

    def end_loan(self, loan: Loan, entry: Entry | None) -> None:
        """The loan is over; nobody uses its connection, if it had one."""
        loans = self.loans.get(loan.key, [])
        if loan in loans:
            loans.remove(loan)
        if not loans:
            self.loans.pop(loan.key, None)
        if entry is not None:
            entry.loan = None

    def hand(self, entry: Entry, loan: Loan) -> None:
        """Give the loan a connection, which it may have to make fit first."""
        entry.move(Stage.CHECKING)
        entry.is_asked = entry.is_queued = False
        entry.loan, loan.entry = loan, entry
        entry.note(states.IN_USE)

    def settle(self, entry: Entry) -> None:
        """What becomes of a connection that nobody uses now: it is another thread's, or idle, or closed."""
        waiting = self.budget().next_of(self) if self._is_kept(entry) else None
        if waiting is not None:
            self.hand(entry, waiting)
            entry.slot.directory.board.add_wait(entry.slot.number, time.monotonic() - waiting.asked_at)
            waiting.settle()
        elif self._is_kept(entry):
            entry.move(Stage.IDLE)
            entry.is_queued = False
            entry.idle_since = time.monotonic()
            self.idle.append(entry)
            entry.note(states.IDLE)
            self.budget().keeper.look_by(entry.idle_since + self._idle_seconds)
        else:
            self.close_soon(entry)

    def close_soon(self, entry: Entry) -> None:
        """Have the keeper close it."""
        entry.move(Stage.CLOSING)
        self._queue(entry)

    def _queue(self, entry: Entry) -> None:
        self.budget().keeper.do(functools.partial(self.close, entry))
        entry.is_queued = True  # last: what was interrupted before is found by mend, and closing twice is closing once

    def mend(self) -> set[Slot]:
        """Close what an interrupt has left half-way between two stages; the slots that are rightly held.

        All stages change under the lock. So whoever has it sees a connection in a stage that it can stay in, or one that a
        signal's handler, or a deadline, tore out of somebody's hands.
        """
        for entry in [entry for entry in self.entries if not self._is_whole(entry)]:
            entry.stage = Stage.CLOSING
            entry.loan = None
            if entry in self.idle:
                self.idle.remove(entry)
            self._queue(entry)
        granted = [loan.slot for loans in self.loans.values() for loan in loans if loan.slot is not None]
        return {*granted, *(entry.slot for entry in self.entries)}

    def _is_whole(self, entry: Entry) -> bool:
        if entry.stage is Stage.IDLE:
            return entry in self.idle
        if entry.stage in {Stage.CLEANING, Stage.CLOSING}:
            return entry.is_queued
        loan = entry.loan
        return loan is not None and loan.entry is entry and loan in self.loans.get(loan.key, ())

    def _is_kept(self, entry: Entry) -> bool:
        if not self.connector.is_open(entry.connection) or entry.slot.is_lost() or entry.opened_at < self._disposed_at:
            return False
        return not self.budget().is_wanted_elsewhere(entry.slot) or not is_turn_over(
            taken_at=entry.slot.taken_at, connect_seconds=entry.connect_seconds, now=time.monotonic()
        )

    # --- without the lock ----------------------------------------------------------------------------------------------

    def undo(self, loan: Loan) -> None:
        """Undo what an interrupted loan has got so far. Doesn't block."""
        budget = self.budget()
        budget.withdraw(loan)
        with budget.lock:
            entry = loan.entry if loan.entry is not None and loan.entry.loan is loan else None
            self.end_loan(loan, entry)
            if entry is not None:
                self.close_soon(entry)
            elif loan.slot is not None:
                budget.keeper.do(functools.partial(budget.release, loan.slot))
            loan.entry = loan.slot = None

    def begin_cleaning(self, entry: Entry) -> bool:
        """Have its session cleaned as far as that goes without waiting. False: it takes waiting. Doesn't block."""
        try:
            how = self.connector.begin_cleaning(entry.connection)
        except Exception as error:  # noqa: BLE001  # whatever the driver raises; who waits for it will meet it again
            logger.debug("the session of a connection of %s could not be reset: %s", self.name, error)
            how = Cleaning.BLOCKS
        if how is Cleaning.BLOCKS:
            return False
        entry.used_for = CLEAN
        if how is Cleaning.SENT:
            entry.is_being_cleaned = True
            entry.slot.directory.board.add(entry.slot.number, resets=1)
        return True

    def cleaned(self, entry: Entry) -> bool:
        """Have its session cleaned; False where that failed, and it has to be replaced. Blocks."""
        if self.begin_cleaning(entry):
            return True
        try:
            self.connector.clean(entry.connection)
        except Exception as error:  # noqa: BLE001  # the same
            logger.debug("the session of a connection of %s could not be reset: %s", self.name, error)
            return False
        entry.slot.directory.board.add(entry.slot.number, resets=1)
        entry.used_for = CLEAN
        return True

    def is_clean(self, entry: Entry, seconds: float) -> bool:
        """Whether the cleaning that has begun was a success; waits for the server's answer so long."""
        if not entry.is_being_cleaned:
            return True
        entry.is_being_cleaned = False
        try:
            self.connector.end_cleaning(entry.connection, seconds)
        except Exception as error:  # noqa: BLE001  # the same
            logger.debug("the session of a connection of %s was not reset: %s", self.name, error)
            return False
        return True

    def look_after(self, now: float, asked: frozenset[Slot]) -> float:
        """By the keeper: close what is due; ``asked`` are the slots that others ask for. Returns when to look again."""
        due, next_look = [], math.inf
        with self.budget().lock:
            for entry in list(self.idle):
                entry.is_asked |= entry.slot in asked
                at = given_up_at(
                    idle_since=entry.idle_since,
                    connect_seconds=entry.connect_seconds,
                    idle_seconds=self._idle_seconds,
                    is_asked=entry.is_asked,
                )
                if at <= now or entry.slot.is_lost():
                    self.idle.remove(entry)
                    entry.move(Stage.CLOSING)
                    entry.is_queued = True
                    due.append(entry)
                else:
                    next_look = min(next_look, at)
            for end, at in list(self._cuts.items()):
                if at <= now:
                    del self._cuts[end]
                    end.cut()
                next_look = min(next_look, at)
        for entry in due:
            self.close(entry)
        return next_look

    @contextlib.contextmanager
    def cut_after(self, entry: Entry, seconds: float) -> Iterator[None]:
        """Have the keeper cut the connection when what is done with it takes longer: a driver's call then fails at once."""
        end = entry.end
        if end is None or seconds == math.inf:
            yield
            return
        at = time.monotonic() + seconds
        with self.budget().lock:
            self._cuts[end] = at
            self.budget().keeper.look_by(at)
        try:
            yield
        finally:
            self._cuts.pop(end, None)

    def close(self, entry: Entry) -> None:
        """By the keeper: close it, wait until the server has, and give its slot back. Blocks for a moment. Idempotent."""
        if entry.stage is Stage.CLOSED:
            return
        entry.note(states.CLOSING)
        try:
            if entry.connection is not None:
                self.connector.close(entry.connection)
        except BaseException as error:  # noqa: BLE001  # somebody's function, about a connection that nobody wants any more
            logger.debug("closing a connection of %s: %s", self.name, error)
        finally:
            with self.budget().lock:
                entry.move(Stage.CLOSED)
                self.entries.discard(entry)
            # What the server has not let go of by now, it goes on counting.
            left = entry.endpoints if open_at_server(entry.endpoints) else ""
            self.budget().release(entry.slot, half_open=entry.is_half_open, left=left)

    def dispose(self) -> None:
        """Close what is idle, soon, and what is in use when it is returned. Doesn't block."""
        with self.budget().lock:
            self._disposed_at, self._is_disposed = time.monotonic(), True
            while self.idle:
                self.close_soon(self.idle.pop())

    def is_at_rest(self) -> bool:
        """Whether the pool was disposed of, and not used since. With the lock."""
        return self._is_disposed and not self.entries

    def forget(self) -> None:
        """In a forked child: begin anew. What was inherited leads nowhere, and is kept: finalizers would talk to the server."""
        for entry in self.entries:
            if entry.end is not None:
                entry.end.sever()
        self._forgotten.append((self.entries, self.loans))
        self._cuts = {}
        self._begin()
