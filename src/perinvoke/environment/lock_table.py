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

from perinvoke.environment.kernel_lock import open_into
from perinvoke.errors import NotInInvocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

# The owner of what a process keeps in use as long as it lives.
PROCESS = ("audience", None)


class Stage(enum.Enum):
    """Where a place in the queue has got to."""

    STARTING = "its thread does not run yet: nobody may take it over"
    WAITING = "its thread blocks in flock"
    GRANTED = "it has the lock; its claimant takes the descriptor"


class Claim:
    """One call of ``acquire``: on whose behalf, and the descriptor it has got so far. Lives as long as the call."""

    __slots__ = ("fd", "opened", "owner")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.fd = -1
        self.opened: list[int] = []  # and not yet in the ledger


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
        # The owner and the thread of every descriptor that an acquire has opened and nobody has closed.
        self.ledger: dict[int, tuple[Hashable, int]] = {}

    def open(self, claim: Claim, path: str, flags: int) -> None:
        """Open the file for the claim. Under the lock: a fork waits for it, so that the child knows what to close."""
        with self.lock:
            open_into(claim.opened, path, flags)
            claim.fd = claim.opened[-1]
            self.ledger[claim.fd] = claim.owner, threading.get_ident()
            claim.opened.clear()

    def hold(self, claim: Claim, path: str, *, shared: bool, ended: Callable[[], bool]) -> None:
        """Enter what the claim has got as its owner's.

        Raises:
            NotInInvocation: the owner's end has come meanwhile, and what it held was given back. Either the end sees this hold,
                or this sees the end: both happen under the lock.
        """
        with self.lock:
            if ended():
                raise NotInInvocation(
                    f"the invocation that wanted {path} has ended meanwhile; wait for its threads before it returns"
                )
            self.holds[path, claim.owner] = Hold(claim.fd, shared=shared)

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
                if abandoned and waiter.path == path and waiter.shared is shared and os.fstat(waiter.fd).st_nlink:
                    waiter.claimant = claim
                    return waiter
        return None

    def granted(self, claim: Claim) -> Waiter | None:
        """The claim waits no longer: the waiter that got it the lock, whose descriptor is the claim's now; None if none did."""
        with self.lock:
            for waiter in [waiter for waiter in self.waiters if waiter.claimant is claim]:
                if waiter.stage is Stage.GRANTED:
                    self.ledger[waiter.fd] = claim.owner, threading.get_ident()
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
            while claim.opened:
                os.close(claim.opened.pop())

    def give_back_all(self, owner: Hashable) -> list[str]:
        """Give back everything ``owner`` still holds; the paths.

        What another thread has just opened on its behalf is that thread's to close: the number could be another file's by the
        time it locks it. It gets an error instead of a hold.
        """
        with self.lock:
            paths = [path for path, holder in self.holds if holder == owner]
            for path in paths:
                fd = self.holds[path, owner].fd
                del self.holds[path, owner]
                self._close(fd)
            interrupted = owner, threading.get_ident()
            for fd in [fd for fd, holder in self.ledger.items() if holder == interrupted]:
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

    def leave_to_child(self, child: LockTable) -> None:
        """In a forked child: close every descriptor. It shares the parent's locks, which stay the parent's.

        But for what the process keeps in use for its life: a module that was imported before the fork goes on using it in the
        child, whatever becomes of the parent.
        """
        kept = {key: hold for key, hold in self.holds.items() if key[1] == PROCESS}
        child.holds.update(kept)
        for fd in {*self.ledger, *(waiter.fd for waiter in self.waiters)} - {hold.fd for hold in kept.values()}:
            try:
                os.close(fd)
            except OSError:
                pass


table = LockTable()


def _forget() -> None:
    global table  # a forked child has a table of its own
    inherited, table = table, LockTable()
    inherited.leave_to_child(table)


def _pause() -> None:
    table.lock.acquire()  # a fork waits for what is just being opened


def _go_on() -> None:
    table.lock.release()


os.register_at_fork(before=_pause, after_in_parent=_go_on, after_in_child=_forget)


def give_back_all(owner: Hashable) -> list[str]:
    """Give back every lock that ``owner`` holds in this process; what they are."""
    return [f"lock {path}" for path in table.give_back_all(owner)]
