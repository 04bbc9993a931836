"""A password that changes while PgBouncer runs: when the server refuses the login, the secret is read again."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from perinvoke.errors import PerinvokeError
from perinvoke.pgbouncer.secret import Reading
from perinvoke.pgbouncer.target import complete, parse_secret

if TYPE_CHECKING:
    from perinvoke.pgbouncer.log import Log
    from perinvoke.pgbouncer.target import Database, Target

# Rotation changes the database before the secret, and each look costs a request: after one that has found nothing new, the next
# refused login is followed by another no sooner than after so long, then after twice as long, and so long at most.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 60.0


class Rotation:
    """Lives as long as the extension. Doesn't block: what it asks comes in by a descriptor.

    Args:
        secret: its name; None where none says who logs in.
        url: what the URL says of where.
        log: for what can't be read.
    """

    def __init__(self, secret: str | None, url: Target | None, log: Log) -> None:
        self._secret, self._url, self._log = secret, url, log
        self._reading: Reading | None = None
        self._not_before = 0.0  # on the monotonic clock
        self._pause_seconds = _PAUSE_SECONDS

    @property
    def fd(self) -> int | None:
        """Becomes readable when there is something to take; None while nothing is asked."""
        return None if self._reading is None else self._reading.fd

    def until(self) -> float | None:
        """When to look even if nothing has become readable, on the monotonic clock."""
        return None if self._reading is None else time.monotonic() + self._reading.remaining_seconds()

    def login_refused(self) -> None:
        """The server has refused a login."""
        if self._secret is None or self._reading is not None or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        with suppress(OSError):  # no process, no memory: the next refusal asks again
            self._reading = Reading(self._secret)

    def take(self, readable: set[int]) -> Database | None:
        """What the secret says now, once that is known; None before, and where it can't be used, which is logged."""
        reading = self._reading
        if reading is None or not (reading.remaining_seconds() == 0 or (reading.fd in readable and reading.read())):
            return None
        self.close()
        secret = self._secret or ""
        try:
            return complete(self._url, parse_secret(secret, reading.fields()), secret)
        except PerinvokeError as error:
            self._log.write("ERROR", f"the server refuses the login, and {error}")
            return None

    def found_new(self) -> None:
        """What was taken was new: the next refusal is worth a look soon."""
        self._pause_seconds = _PAUSE_SECONDS

    def close(self) -> None:
        """Ask no more. Idempotent."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None
