"""The environment's turn at something that all environments share: of its workers one waits there, the others wait for that one.

A file lock makes waiting cheaper and fairer. Nothing depends on it: it is done without where the root can't be used, and where
somebody keeps it too long. For that, whoever has it notes in its file until when that may be, on the monotonic clock, which all
processes of an environment have in common. So a worker that stands still, or goes on after its time, doesn't keep the others from
what it has lost.
"""

from __future__ import annotations

import logging
import os
import time

from perinvoke.environment import lock_table
from perinvoke.errors import LockError, LockTimeout, RootError, ScratchUnavailable
from perinvoke.sharing.locks import lock_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from perinvoke.environment.file_lock import FileLock
    from perinvoke.sharing.asker import Asker

_MAX_NOTE_BYTES = 1_000
# Seconds between two looks at the note, when it says that who has the turn has had it long enough by then. Arbitrary.
_LEAST_SECONDS = 0.05
# Seconds until a look where there is no note, because somebody has only just got the turn. Arbitrary.
_NO_NOTE_SECONDS = 1.0
# Whether it was told that there is no such lock; of this process.
_told: list[str] = []

logger = logging.getLogger("perinvoke")


class Turn:
    """One owner's turn; lives as long as its hold of the distant thing. What has it may give it back in any thread.

    Args:
        name: of the lock.
        owner: whose it is.
    """

    __slots__ = ("_lock", "_name", "_owner")

    def __init__(self, name: str, owner: Asker) -> None:
        self._name = name
        self._owner = owner
        self._lock: FileLock | None = None

    def take(self, wait_seconds: float) -> None:
        """Wait for the turn, or until who has it has had it long enough.

        Raises:
            LockTimeout: neither came in that time.
            NotInInvocation: the owner's invocation has ended meanwhile.
        """
        until = time.monotonic() + wait_seconds
        try:
            self._lock = lock_of(self._name, self._owner)
            while not self._taken_before(until):
                if self._is_overdue():
                    self._lock = None
                    return
        except (LockError, RootError, ScratchUnavailable) as error:
            self._do_without(error)

    def try_take(self) -> bool:
        """Take it if it is free, or was kept too long; False at once otherwise."""
        try:
            self._lock = lock_of(self._name, self._owner)
            if self._lock.try_acquire():
                return True
            if self._is_overdue():
                self._lock = None
                return True
        except (LockError, RootError, ScratchUnavailable) as error:
            self._do_without(error)
            return True
        return False

    def note(self, until_monotonic: float, holder: str = "") -> None:
        """Note until when the turn is kept at most, and who has got the distant thing. On a full disk there is no note."""
        self._write(f"{until_monotonic:.3f} {holder}")

    def holder(self) -> str | None:
        """Who has the distant thing, as far as who has the turn has noted it."""
        return self._noted()[1] or None

    def end(self) -> None:
        """Give it back; idempotent. Doesn't block."""
        if self._lock is not None and self._lock.count():
            self._write("")
            self._lock.release()

    def _taken_before(self, until_monotonic: float) -> bool:
        """Whether the turn was had before who has it has had it long enough; False then."""
        assert self._lock is not None
        now = time.monotonic()
        kept_until = self._noted()[0]
        look_in = _NO_NOTE_SECONDS if kept_until is None else max(_LEAST_SECONDS, kept_until - now)
        try:
            self._lock.acquire(max(0.0, min(until_monotonic - now, look_in)))
        except LockTimeout:
            if time.monotonic() >= until_monotonic:
                raise
            return False
        return True

    def _is_overdue(self) -> bool:
        kept_until = self._noted()[0]
        return kept_until is not None and time.monotonic() > kept_until

    def _noted(self) -> tuple[float | None, str]:
        """Until when who has the turn keeps it, and the holder; None where there is no note."""
        assert self._lock is not None
        try:
            with open(self._lock.path, "rb") as file:
                kept_until, _, holder = file.read(_MAX_NOTE_BYTES).decode("utf-8", "replace").partition(" ")
            return (float(kept_until) if kept_until else None), holder
        except (OSError, ValueError):  # swept, or half written
            return None, ""

    def _write(self, text: str) -> None:
        hold = None if self._lock is None else lock_table.table.holds.get((self._lock.path, self._owner.key))
        if hold is None:
            return
        try:
            os.ftruncate(hold.fd, 0)
            os.pwrite(hold.fd, text.encode("utf-8", "replace")[:_MAX_NOTE_BYTES], 0)
        except OSError:
            pass

    def _do_without(self, error: Exception) -> None:
        self._lock = None
        if not _told:
            _told.append(self._name)
            logger.warning("the workers of this environment wait for leases without a file lock, each for itself: %s", error)
