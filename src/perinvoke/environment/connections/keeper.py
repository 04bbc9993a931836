"""The thread of perinvoke's own that closes and cleans connections: nobody interrupts it, and nobody waits for its closing."""

from __future__ import annotations

import contextvars
import logging
import math
import os
import select
import threading
import time

from perinvoke.environment.connections.bells import ring, silence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    from perinvoke.environment.connections.budget import Budget
    from perinvoke.environment.connections.slots import Slot

    class Lender(Protocol):
        """Who has connections in slots of the budget."""

        def look_after(self, now: float, asked: frozenset[Slot]) -> float:
            """Give up what is due; ``asked`` are the slots that others ask for. Returns when to look again."""

        def mend(self) -> set[Slot]:
            """Put right what was interrupted, under the budget's lock; the slots that are rightly held."""


KEEPER = "perinvoke-keeper"  # the thread's name

logger = logging.getLogger("perinvoke")

# Seconds. The keeper's longest sleep: by then it notices that somebody has removed the files of its slots.
_LONGEST_SLEEP_SECONDS = 5.0


class Keeper:
    """The thread that closes and cleans; it starts with its process's first slot, and lives as long as the process.

    What it is told to do is done in the order of telling. A job that hangs holds up the others: who waits for one cuts the
    connection's network end, which lets it fail.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._jobs: list[Callable[[], object]] = []
        self._bell: tuple[int, int] | None = None  # both ends of a pipe
        self._thread: threading.Thread | None = None
        self._sleeps_until = 0.0
        self._due = math.inf  # the earliest look that was asked for since it last planned

    def start(self) -> None:
        """Start it, if it doesn't run. Under the budget's lock."""
        if self._thread is None or not self._thread.is_alive():
            self._bell = self._bell or _pipe()
            thread = threading.Thread(target=self._run, args=(self._bell[0],), name=KEEPER, daemon=True)
            contextvars.Context().run(thread.start)
            self._thread = thread

    def do(self, job: Callable[[], object]) -> None:
        """Have ``job`` done soon. Doesn't block; what it raises is dropped."""
        with self._budget.lock:
            self._jobs.append(job)
            self.start()
            self.wake()

    def is_here(self) -> bool:
        """Whether this is its thread, which must not wait for what it is to do itself."""
        return threading.current_thread() is self._thread

    def look_by(self, at: float) -> None:
        """Have it look after everything at that second of the monotonic clock, or before. Under the budget's lock."""
        self._due = min(self._due, at)
        if at < self._sleeps_until:
            self.wake()

    def wake(self) -> None:
        """Have it look now. Under the budget's lock."""
        if self._bell is not None:
            ring(self._bell[1])

    def forget(self) -> None:
        """In a forked child: the thread is the parent's."""
        for fd in self._bell or ():
            os.close(fd)

    def _run(self, bell: int) -> None:
        next_look = 0.0
        while True:
            with self._budget.lock:
                silence(bell)  # it is rung for each job
                jobs, self._jobs = self._jobs, []
                bells = {slot.ask_fd: slot for slot in self._budget.slots}
                next_look, self._due = min(next_look, self._due), math.inf
                self._sleeps_until = 0.0 if jobs else min(next_look, time.monotonic() + _LONGEST_SLEEP_SECONDS)
            for job in jobs:
                _done(job)
            if jobs:
                continue  # slots may have come and gone
            rung = wait_readable([bell, *bells], max(0.0, self._sleeps_until - time.monotonic()))
            for fd in rung:
                silence(fd)
            next_look = self._look(frozenset(bells[fd] for fd in rung if fd in bells))

    def _look(self, asked: frozenset[Slot]) -> float:
        """Have all lenders give up what is due; when to look again."""
        with self._budget.lock:
            self._budget.mend()
        now, next_look = time.monotonic(), math.inf
        for lender in tuple(self._budget.lenders):
            try:
                next_look = min(next_look, lender.look_after(now, asked))
            except Exception:  # one lender's trouble must not be the others'
                logger.exception("perinvoke's keeper of connections met with an error")
        return next_look


def _done(job: Callable[[], object]) -> None:
    try:
        job()
    except BaseException:  # noqa: BLE001, S110  # who gave it has caught what matters; the thread must go on
        pass


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    return ends


def wait_readable(fds: Iterable[int], seconds: float) -> list[int]:
    """Those of the descriptors at which there is something to read; waits for it, but no longer than ``seconds``."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(seconds * 1000)]
