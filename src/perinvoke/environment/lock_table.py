"""What this process holds and waits for: owners' holds, and places in the kernel's queue.

How a wait in the kernel is bounded: ``flock`` can't be given a time-out, and Python repeats it after a signal. So a thread blocks
in it, and the caller waits for the thread. When the caller gives up, the thread can't be called back: it stays in its place in
the queue, and the next caller of this process that wants the lock takes it over instead of starting another. So a lock that is
held for ever costs a process one thread, not one for every caller that gave up; and a lock that such a thread is granted when
nobody wants it any more is given back at once.

What may be interrupted: everything. A signal handler may raise between any two bytecodes of the main thread. So each call of
``acquire`` has a ``Claim`` before it does anything, whatever it opens is entered in the ledger at once, and ``withdraw`` finds
by the claim what there is to undo. What slips through even so, the end of the owner finds in the ledger.
"""

from __future__ import annotations

import contextvars
import enum
import fcntl
import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable


class Stage(enum.Enum):
    """Where a place in the queue has got to."""

    STARTING = "its thread does not run yet: nobody may take it over"
    WAITING = "its thread blocks in flock"
    GRANTED = "it has the lock; its claimant takes the descriptor"


class Claim:
    """One call of ``acquire``: on whose behalf, and the descriptor it has got so far. Lives as long as the call."""

    __slots__ = ("fd", "owner")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.fd = -1


class Hold:
    """One owner's hold on one path; lives from the grant to the last release."""

    __slots__ = ("count", "fd", "shared")

    def __init__(self, fd: int, *, shared: bool) -> None:
        self.fd = fd
        self.shared = shared
        self.count = 1


class Waiter:
    """One place in the kernel's queue, and the thread that keeps it; lives until the lock is granted.

    Without a claimant it is abandoned.
    """

    def __init__(self, table: LockTable, path: str, fd: int, *, shared: bool) -> None:
        self.path, self.fd, self.shared = path, fd, shared
        self.claimant: Claim | None = None
        self.stage = Stage.STARTING
        self.settled = threading.Event()
        self.error: OSError | None = None
        self._table = table

    def start(self) -> None:
        """Start to wait. Raises RuntimeError when no thread can be had."""
        thread = threading.Thread(target=self._wait, name="perinvoke-lock", daemon=True)
        contextvars.Context().run(thread.start)  # it may outlive the invocation that starts it, and belongs to none

    def _wait(self) -> None:
        self.stage = Stage.WAITING
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX)
        except OSError as error:  # ENOLCK: the kernel is out of memory for locks
            self.error = error
        with self._table.lock:  # its claimant may give up at this moment: one of both sees what the other did
            if self.claimant is not None:
                self.stage = Stage.GRANTED
            else:
                self._table.waiters.remove(self)
                fcntl.flock(self.fd, fcntl.LOCK_UN)
                os.close(self.fd)
        self.settled.set()


class LockTable:
    """All that this process holds and waits for; lives as long as the process. A forked child starts with an empty one.

    The lock guards all collections and every waiter's stage and claimant; nothing blocks while it is held. It is reentrant for
    the sake of a signal handler that takes a lock itself.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holds: dict[tuple[str, Hashable], Hold] = {}
        self.waiters: list[Waiter] = []
        self.ledger: dict[int, Hashable] = {}  # the owner of every descriptor that an acquire has opened and nobody has closed

    def drop(self, claim: Claim) -> None:
        """Give back the claim's descriptor, and with it what lock it has. Interrupted, it may be called again."""
        with self.lock:
            self._close(claim.fd)
            claim.fd = -1

    def enqueue(self, claim: Claim, path: str, *, shared: bool) -> Waiter:
        """A new place in the queue, which takes the claim's descriptor and has yet to be started."""
        with self.lock:
            waiter = Waiter(self, path, claim.fd, shared=shared)
            waiter.claimant = claim
            self.waiters.append(waiter)
            self.ledger.pop(claim.fd, None)
            claim.fd = -1
        return waiter

    def dequeue(self, waiter: Waiter) -> None:
        """Give up a place whose thread could not be started."""
        with self.lock:
            self.waiters.remove(waiter)
            os.close(waiter.fd)

    def adopt(self, claim: Claim, path: str, *, shared: bool) -> Waiter | None:
        """Take over the place in the queue that an earlier caller gave up."""
        with self.lock:
            for waiter in self.waiters:
                abandoned = waiter.claimant is None and waiter.stage is Stage.WAITING
                if abandoned and waiter.path == path and waiter.shared is shared:
                    waiter.claimant = claim
                    return waiter
        return None

    def granted(self, claim: Claim) -> Waiter | None:
        """The claim waits no longer: the waiter that got it the lock, whose descriptor is the claim's now; None if none did."""
        with self.lock:
            for waiter in [waiter for waiter in self.waiters if waiter.claimant is claim]:
                if waiter.stage is Stage.GRANTED:
                    self.ledger[waiter.fd] = claim.owner
                    claim.fd = waiter.fd
                    self.waiters.remove(waiter)
                    return waiter
                waiter.claimant = None
        return None

    def withdraw(self, claim: Claim, path: str) -> None:
        """Undo what an interrupted ``acquire`` has got so far."""
        with self.lock:
            self.granted(claim)
            hold = self.holds.get((path, claim.owner))
            if hold is not None and hold.fd == claim.fd:
                del self.holds[path, claim.owner]
            self.drop(claim)

    def give_back_all(self, owner: Hashable) -> list[str]:
        """Give back everything ``owner`` still holds; the paths."""
        with self.lock:
            paths = [path for path, holder in self.holds if holder == owner]
            for path in paths:
                del self.holds[path, owner]
            for fd in [fd for fd, holder in self.ledger.items() if holder == owner]:
                self._close(fd)
        return paths

    def _close(self, fd: int) -> None:
        """Unlock first: a child forked meanwhile may share the open file, and closing one of two frees nothing.

        Interrupted before that, the ledger still knows the descriptor; after it, the descriptor is harmless.
        """
        if fd in self.ledger:
            fcntl.flock(fd, fcntl.LOCK_UN)
            del self.ledger[fd]
            os.close(fd)

    def close_in_child(self) -> None:
        """In a forked child: close every descriptor. It shares the parent's locks, which stay the parent's."""
        for fd in {*self.ledger, *(waiter.fd for waiter in self.waiters)}:
            try:
                os.close(fd)
            except OSError:
                pass


table = LockTable()


def _forget() -> None:
    global table  # a forked child has a table of its own
    inherited, table = table, LockTable()
    inherited.close_in_child()


os.register_at_fork(after_in_child=_forget)


def give_back_all(owner: Hashable) -> list[str]:
    """Give back every lock that ``owner`` holds in this process; their paths."""
    return table.give_back_all(owner)
