"""Locks between the workers of an execution environment: the kernel's ``flock``, waited for in the kernel, for a bounded time.

Guarantees:
* Exclusive or shared, between all processes that lock the same path, ``filelock.FileLock`` included: both take ``flock`` on it.
* Freed by the kernel when the holder dies, however it dies. A forked child does not hold what its parent holds.
* Waiters queue in the kernel and are woken by it, in about the order of their coming. A steady stream of readers can keep a
  writer waiting, as with ``flock`` itself.
* No wait is longer than its bound. The same owner may take a lock again; it must give it back as often.

Why not a subclass of ``filelock.FileLock``, which polls: an uncontended cycle of it takes ten times as long, and with 8 processes
its 99th percentile wait is twenty times that of the kernel's queue. The primitive is the same, and tests keep it interoperable.

A lock file is never removed by those who lock it. Who is granted a lock on a file that has no name any more (somebody swept /tmp)
starts over with the one that has it: otherwise two owners would hold two files of one name.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time

from perinvoke.environment import lock_table
from perinvoke.environment.disk_usage import FULL, scratch_full
from perinvoke.environment.kernel_lock import LOCK_FILE
from perinvoke.environment.lock_sweep import NoSweep
from perinvoke.environment.lock_table import Claim, Waiter
from perinvoke.errors import LockError, LockNotHeld, LockTimeout, PerinvokeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any, Protocol, Self, TypeVar

    Function = TypeVar("Function", bound=Callable[..., Any])

    class Home(Protocol):
        """Where perinvoke keeps lock files."""

        @property
        def root(self) -> str:
            """The root it lies below."""

        def check(self) -> None:
            """See once that the root is ours. Raises RootError."""

        def make(self, directory: str) -> None:
            """Make the directory, after the root was checked. Raises RootError or ScratchUnavailable."""

        def makes_room(self, error: OSError) -> bool:
            """Whether ``error`` says that the disk is full, and room could be made on it."""

    class Owner(Protocol):
        """On whose behalf a lock is taken."""

        @property
        def key(self) -> Hashable:
            """Who may take the lock again: the same invocation, thread and task, in this order where it is a tuple."""

        def wait_seconds(self) -> float:
            """How long it may wait at most, from now."""

        def has_ended(self) -> bool:
            """Whether its end has come: what it takes now, nobody would give back."""

        def at_end(self, give_back: Callable[[Hashable], list[str]]) -> None:
            """Have ``give_back(key)`` called when the owner ends; once, however often it is asked."""


_OPEN_FLAGS = LOCK_FILE | os.O_CREAT
# A directory below the root may be missing, and be removed again by who reclaims it for being empty.
_OPEN_ATTEMPTS = 10
_CONTENDED = frozenset({errno.EWOULDBLOCK, errno.EACCES})


class FileLock:
    """A lock on a path, between processes, threads and tasks. Context manager and decorator; may be used again and again.

    Lives as long as the variable that holds it; a hold lives until it is released, its owner ends, or the process dies.

    Args:
        path: the lock file; made if it is missing.
        shared: with other shared holders, but with no exclusive one.
        timeout: seconds that ``acquire`` waits at most. None: as long as the owner may.
        owner: tells on whose behalf the lock is taken, each time.
        home: what the lock file lies in, if that is perinvoke's own; None: its directory must be there.
    """

    def __init__(
        self,
        path: str,
        *,
        shared: bool,
        timeout: float | None,
        owner: Callable[[], Owner],
        home: Home | None = None,
    ) -> None:
        self.path = path
        self.shared = shared
        self.timeout = _checked_timeout(timeout)
        self._owner = owner
        self._home = home

    def acquire(self, timeout: float | None = None) -> None:
        """Take the lock, waiting in the kernel's queue; at most ``timeout`` seconds, at most as long as the owner may.

        Raises:
            LockTimeout: it was held by others all that time; the error names the lock, the wait and who holds it.
            LockError: the lock file can't be opened, or this owner holds the lock shared and asks for it exclusively.
            ScratchFull: the disk is full, and there is no lock file yet.
        """
        timeout = _checked_timeout(timeout)
        owner = self._owner()
        if self._taken_again(owner.key):
            return
        if self._home is not None:
            self._home.check()
        claim = Claim(owner.key)
        try:
            owner.at_end(lock_table.give_back_all)
            if not self._tried(claim):
                bounds = (self.timeout, timeout, owner.wait_seconds())
                self._queued(claim, min(bound for bound in bounds if bound is not None))
            lock_table.table.hold(claim, self.path, shared=self.shared, ended=owner.has_ended)
        except BaseException:
            lock_table.table.withdraw(claim, self.path)
            raise

    def try_acquire(self) -> bool:
        """Take the lock if it is free; False at once if it isn't. Raises LockError as ``acquire`` does."""
        owner = self._owner()
        if self._taken_again(owner.key):
            return True
        if self._home is not None:
            self._home.check()
        claim = Claim(owner.key)
        try:
            owner.at_end(lock_table.give_back_all)
            if not self._tried(claim) and not self._tried_without_sweeper(claim):
                return False
            lock_table.table.hold(claim, self.path, shared=self.shared, ended=owner.has_ended)
        except BaseException:
            lock_table.table.withdraw(claim, self.path)
            raise
        return True

    def release(self) -> None:
        """Give the lock back, once for each time it was taken. Doesn't block.

        Raises:
            LockNotHeld: this owner doesn't hold it.
        """
        claim = Claim(self._owner().key)
        table = lock_table.table
        with table.lock:
            hold = table.holds.get((self.path, claim.owner))
            if hold is None:
                raise LockNotHeld(f"lock {self.path} is not held by this invocation, thread and task", path=self.path)
            if hold.count > 1:
                hold.count -= 1
                return
            claim.fd = hold.fd
            try:
                del table.holds[self.path, claim.owner]
                table.drop(claim)
            except BaseException:  # a signal handler raised in the middle: the rest is done all the same
                table.withdraw(claim, self.path)
                raise

    def count(self) -> int:
        """How often this owner has taken the lock and not given it back."""
        hold = lock_table.table.holds.get((self.path, self._owner().key))
        return 0 if hold is None else hold.count

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __call__(self, function: Function) -> Function:
        """Decorate ``function``: it runs while the lock is held."""
        from functools import wraps  # noqa: PLC0415  # only decorators need it

        @wraps(function)
        def locked(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return locked  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"<FileLock {self.path} {'shared' if self.shared else 'exclusive'}>"

    def _taken_again(self, owner: Hashable) -> bool:
        with lock_table.table.lock:
            hold = lock_table.table.holds.get((self.path, owner))
            if hold is None:
                return False
            if hold.shared and not self.shared:
                raise LockError(
                    f"lock {self.path} is held shared here and can't be made exclusive: two holders that both waited for that "
                    "would wait for ever. Release it first, or take it exclusively from the start.",
                    path=self.path,
                )
            hold.count += 1
            return True

    def _tried(self, claim: Claim) -> bool:
        """One try without waiting; False where others hold the lock."""
        table = lock_table.table
        while True:
            self._open(claim)
            try:
                fcntl.flock(claim.fd, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _CONTENDED:
                    raise
                table.drop(claim)
                return False
            if _has_its_name(claim.fd):
                return True
            table.drop(claim)

    def _tried_without_sweeper(self, claim: Claim) -> bool:
        """The try again, with the sweeper shut out: for a moment it holds each lock file that it looks at, and is no holder."""
        if self._home is None:
            return False  # a file of the user's own: nobody sweeps there
        with NoSweep(os.path.dirname(self.path)) as no_sweep:
            return no_sweep.holds and self._tried(claim)

    def _queued(self, claim: Claim, wait_seconds: float) -> None:
        """Wait in the kernel's queue until the claim has the lock, or raise LockTimeout."""
        table = lock_table.table
        started = time.monotonic()
        if wait_seconds <= 0 and self._tried_without_sweeper(claim):
            return
        while True:
            self._refuse_waiting_for_own_thread(claim.owner)
            left = wait_seconds - (time.monotonic() - started)
            if left <= 0:
                raise self._timed_out(time.monotonic() - started)
            waiter = table.adopt(claim, self.path, shared=self.shared) or self._new_waiter(claim)
            waiter.settled.wait(None if left == math.inf else left)
            if table.granted(claim) is None:
                raise self._timed_out(time.monotonic() - started)
            if waiter.error is not None:
                raise self._cannot_wait(waiter.error.strerror) from waiter.error
            if _has_its_name(claim.fd):
                return
            table.drop(claim)

    def _new_waiter(self, claim: Claim) -> Waiter:
        table = lock_table.table
        self._open(claim)
        waiter = table.enqueue(claim, self.path, shared=self.shared)
        try:
            waiter.start()
        except RuntimeError as error:
            table.dequeue(waiter)
            raise self._cannot_wait(str(error)) from error
        return waiter

    def _cannot_wait(self, reason: str | None) -> LockError:
        return LockError(f"lock {self.path} can't be waited for: {reason}", path=self.path)

    def _open(self, claim: Claim) -> None:
        for attempt in range(_OPEN_ATTEMPTS):
            try:
                if self._home is not None and attempt:
                    self._home.make(os.path.dirname(self.path))
                lock_table.table.open(claim, self.path, _OPEN_FLAGS)
            except PerinvokeError:
                raise  # of the directory
            except OSError as error:
                swept = error.errno == errno.ENOENT
                if self._home is not None and attempt < _OPEN_ATTEMPTS - 1 and (swept or self._home.makes_room(error)):
                    continue
                raise self._not_opened(error) from error
            return

    def _not_opened(self, error: OSError) -> PerinvokeError:
        if error.errno in FULL:
            root = os.path.dirname(self.path) if self._home is None else self._home.root
            return scratch_full(root, f"lock file {self.path} can't be made")
        return LockError(
            f"lock file {self.path} can't be opened: {error.strerror}. Its directory must exist and be writable.", path=self.path
        )

    def _refuse_waiting_for_own_thread(self, owner: Hashable) -> None:
        """Another task of this thread holds it: while this one waits, that one can't run to give it back."""
        with lock_table.table.lock:
            holders = [key for path, key in lock_table.table.holds if path == self.path]
        if any(isinstance(key, tuple) and isinstance(owner, tuple) and key[1] == owner[1] for key in holders):
            raise LockError(
                f"lock {self.path} is held by another task or invocation of this very thread, which can't give it back while "
                "this one waits. Run all that needs it in a thread: await asyncio.to_thread(function).",
                path=self.path,
            )

    def _timed_out(self, waited_seconds: float) -> LockTimeout:
        holders = _holders(self.path)
        told = ", ".join(f"{name} (pid {pid})" for pid, name in holders) or "nobody by now"
        return LockTimeout(
            f"lock {self.path} was not to be had in {waited_seconds:.3f} s; held by {told}. "
            "Hold it for a shorter time, or give the invocation a longer time-out.",
            path=self.path,
            waited_seconds=waited_seconds,
            holder_pids=[pid for pid, _ in holders],
        )


def _checked_timeout(timeout: float | None) -> float | None:
    given: object = timeout  # whatever a caller passed
    if given is not None and not (isinstance(given, int | float) and given >= 0):  # also refuses nan
        raise LockError(
            f"a lock's timeout is {timeout!r}; allowed are seconds from 0 on, or None for as long as the owner may wait"
        )
    return timeout


def _has_its_name(fd: int) -> bool:
    """Whether the file still has a name: ``orphans``, or anybody who swept /tmp, may have removed it before we got the lock."""
    return os.fstat(fd).st_nlink > 0


def _holders(path: str) -> list[tuple[int, str]]:
    """Pid and name of who holds the lock now, as the kernel tells; also of holders that aren't perinvoke's."""
    try:
        found = os.stat(path)
        wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        with open("/proc/locks", encoding="ascii") as locks:
            fields = [line.split() for line in locks]
    except OSError:
        return []
    # proc(5): number, FLOCK, ADVISORY, READ or WRITE, pid, file, range; a waiter has "->" after the number.
    return [(int(pid), _name(int(pid))) for _, kind, _, _, pid, file, *_ in fields if kind == "FLOCK" and file == wanted]


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return "a process"
