"""One process's share of a budget: its place in the queue for slots, and the two threads that do what nobody may interrupt.

Who wants a slot asks and waits for an event; everything else about slots is done by two threads of perinvoke's own, which no
signal handler and no deadline reaches:

* The *queue* waits for the budget's turn: an exclusive ``flock``, so that the kernel queues the workers in the order of their
  coming, and a dead one leaves the queue. Who has the turn is the only one that looks for a free slot, says on the board that
  somebody waits, and asks those who have an idle connection. It hands one slot to one loan, and queues again for the next.
* The *keeper* closes connections, for whoever asks or because they were idle too long, and cleans them between invocations.

A module imported before the fork owns neither: they start with the first loan that has to wait, and in a forked child anew.
"""

from __future__ import annotations

import contextvars
import fcntl
import functools
import os
import threading
import time

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections.bells import open_bell, ring, silence
from perinvoke.environment.connections.keeper import Keeper, wait_readable
from perinvoke.environment.connections.slots import SlotDirectory, open_slots
from perinvoke.environment.worker_directory import not_made
from perinvoke.errors import PerinvokeError, PoolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from perinvoke.environment.connections.entry import Loan
    from perinvoke.environment.connections.keeper import Lender
    from perinvoke.environment.connections.slots import Slot
    from perinvoke.environment.file_lock import Home


# Seconds. How often who has the turn looks for a slot whose holder has died: such a one rings no bell.
_LOOK_SECONDS = 0.02
# Seconds. How long the queue's thread stays without anything to do. Arbitrary.
_LINGER_SECONDS = 10.0


class Budget:
    """The slots of one budget as one process sees them; lives as long as the process. A forked child starts with a new one.

    ``lock`` guards the loans that wait, the entries of all its pools and their stages. Nothing blocks while it is held. Reentrant
    for the sake of a signal handler that takes a connection itself.
    """

    def __init__(self, name: str, count: int, home: Home, path: str, lenders: Sequence[Lender]) -> None:
        self.name = name
        self.count = count
        self.path = path
        self.lock = threading.RLock()
        self.lenders = lenders
        self.slots: set[Slot] = set()
        self.keeper = Keeper(self)
        self._home = home
        self._directory: SlotDirectory | None = None
        self._retired: list[SlotDirectory] = []
        self._waiting: list[Loan] = []
        self._changed = threading.Condition(self.lock)
        self._queue: threading.Thread | None = None

    # --- those who want a slot ---------------------------------------------------------------------------------------

    def ask(self, loan: Loan) -> None:
        """Put the loan in line: it is settled with a slot or with an error. Doesn't block.

        Raises:
            RuntimeError: no thread can be started.
        """
        with self.lock:
            self._waiting.append(loan)
            if self._queue is None:
                thread = threading.Thread(target=self._run_queue, name="perinvoke-queue", daemon=True)
                self._queue = thread
                try:
                    contextvars.Context().run(thread.start)  # it outlives the invocation that starts it, and belongs to none
                except BaseException:
                    self._queue = None
                    self._waiting.remove(loan)
                    raise
            self._changed.notify()

    def withdraw(self, loan: Loan) -> None:
        """Take the loan out of the line, if it is in it. Doesn't block."""
        with self.lock:
            if loan in self._waiting:
                self._waiting.remove(loan)
                if self._directory is not None:
                    ring(self._directory.freed_fd)  # whoever has the turn for it gives that up at once

    def next_of(self, lender: Lender) -> Loan | None:
        """Under the lock: the first loan in line that wants a connection of that pool, taken out of the line."""
        for loan in tuple(self._waiting):  # a finalizer may take one out meanwhile
            if loan.lender is lender and loan in self._waiting:
                self._waiting.remove(loan)
                if self._directory is not None:
                    ring(self._directory.freed_fd)
                return loan
        return None

    def release(self, slot: Slot, *, half_open: bool = False, left: str = "") -> None:
        """Give a slot back, whose connection is closed; idempotent. By the keeper only, which may be watching the slot's bell.

        ``half_open``: connecting was interrupted; ``left``: the server still has its end of the connection between these. Whoever
        takes the slot waits until it has noticed.
        """
        with self.lock:
            if slot in self.slots:
                self.slots.discard(slot)
                slot.release(half_open=half_open, left=left)
                self._close_retired()

    def mend(self) -> None:
        """Under the lock: put right what was interrupted; see ``Holdings.mend``."""
        held = {slot for lender in self.lenders for slot in lender.mend()}
        for slot in self.slots - held:
            self.keeper.do(functools.partial(self.release, slot))

    # --- the queue ---------------------------------------------------------------------------------------------------

    def _run_queue(self) -> None:
        while True:
            with self.lock:
                if not self._waiting and not self._changed.wait(_LINGER_SECONDS) and not self._waiting:
                    self._queue = None
                    return
            try:
                self._serve_one(self._opened())
            except OSError as error:
                self._fail(error if isinstance(error, PerinvokeError) else not_made(self._home.root, error))
            except Exception as error:  # noqa: BLE001  # it is theirs who wait; the thread must go on
                self._fail(error)

    def _opened(self) -> SlotDirectory:
        directory = self._directory
        if directory is not None and not directory.is_swept():
            return directory
        self._home.check()
        self._home.make(self.path)
        found = open_slots(self.path, self.count)
        if isinstance(found, int):
            raise PoolError(
                f"{self.name} has max_connections={self.count} here and {found} in another worker or engine of this execution "
                "environment; a budget is one number. Give all engines of one URL the same.",
                name=self.name,
            )
        with self.lock:
            if directory is not None:
                self._retired.append(directory)
            self._directory = found
            self._close_retired()
        return found

    def _close_retired(self) -> None:
        """Under the lock: close the files of a directory that was removed, when none of its slots is held any more."""
        for directory in [old for old in self._retired if all(slot.directory is not old for slot in self.slots)]:
            self._retired.remove(directory)
            directory.close()

    def _serve_one(self, directory: SlotDirectory) -> None:
        """Wait for the turn, and with it for a slot; hand that to the first in line. Blocks as long as somebody waits."""
        fcntl.flock(directory.turn_fd, fcntl.LOCK_EX)
        try:
            asked = 0
            loan = self._first()
            while self._first() is loan is not None and not directory.is_swept():  # the next one queues behind other workers
                silence(directory.freed_fd)
                with self.lock:  # a fork waits for what is just being opened
                    slot = directory.try_take()
                    if slot is not None:
                        self._grant(slot)
                        return
                directory.board.want()
                asked += 1
                self._ask_idle(directory, asked)
                wait_readable([directory.freed_fd], _LOOK_SECONDS)
        finally:
            directory.board.want(now=False)
            fcntl.flock(directory.turn_fd, fcntl.LOCK_UN)

    def _first(self) -> Loan | None:
        with self.lock:
            return self._waiting[0] if self._waiting else None

    def _grant(self, slot: Slot) -> None:
        """Under the lock: the slot is the first loan's; nobody's, if all have given up meanwhile."""
        if not self._waiting:
            slot.release()
            return
        self.slots.add(slot)
        loan = self._waiting.pop(0)
        slot.directory.board.write_state(slot.number, states.OPENING)
        slot.directory.board.add_wait(slot.number, time.monotonic() - loan.asked_at)
        loan.slot = slot
        loan.settle()
        self.keeper.start()
        self.keeper.wake()  # it is to hear the new slot's bell

    def _ask_idle(self, directory: SlotDirectory, how_many: int) -> None:
        """Ring at those whose connections are idle, the longest idle first; one more at each look, should the first not hear."""
        idle = [line for line in directory.board.lines() if line.state == states.IDLE]
        for line in sorted(idle, key=lambda line: line.since)[:how_many]:
            bell = open_bell(directory.path_of_ask(line.number))
            ring(bell)
            os.close(bell)

    def _fail(self, error: BaseException) -> None:
        with self.lock:
            failed, self._waiting = self._waiting, []
            for loan in failed:
                loan.error = error
                loan.settle()

    # --- figures -----------------------------------------------------------------------------------------------------

    def directory(self) -> SlotDirectory | None:
        """Its files, once they are open in this process."""
        return self._directory

    def is_wanted_elsewhere(self, slot: Slot) -> bool:
        """Whether another process waits for a slot."""
        return slot.directory.board.is_wanted_elsewhere()

    def close(self) -> None:
        """Close its files, which no pool uses any more."""
        with self.lock:
            directory, self._directory = self._directory, None
            if directory is not None:
                directory.close()

    # --- fork --------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """In a forked child: close what is the parent's, and give nothing back."""
        self.keeper.forget()
        for slot in self.slots:
            slot.close()
        for directory in (self._directory, *self._retired):
            if directory is not None:
                directory.close()
