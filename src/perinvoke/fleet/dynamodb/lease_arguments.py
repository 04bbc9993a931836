"""What a lease may be asked for with, and the errors of who asks for something else, or uses what it doesn't hold."""

from __future__ import annotations

import math

from perinvoke.fleet.dynamodb.lease_protocol import PREFIX
from perinvoke.fleet.errors import LeaseError, LeaseLost, LeaseNotHeld

# Seconds: the longest that Lambda lets a function run. What lasts longer was forgotten, or its holder has died.
_LONGEST_SECONDS = 900.0
# Bytes: DynamoDB's limit for a partition key.
_MAX_KEY_BYTES = 2048 - len(PREFIX)

_SHOWN = 100  # characters of a key that is too long for a message; arbitrary


class Names:
    """Which lease it is, for errors; lives as long as a LeaseLock.

    Raises:
        LeaseError: table or key can't be one.
    """

    __slots__ = ("key", "table")

    def __init__(self, table: str, key: str) -> None:
        self.table = table
        self.key = key
        given: tuple[object, object] = table, key  # whatever a caller passed
        if not isinstance(given[0], str) or not given[0]:
            raise self.error(f"the table is {table!r}; it must be the name or the ARN of one")
        if not isinstance(given[1], str) or not given[1]:
            raise self.error("the key must be a string with at least one character: what is locked, such as 'order/4711'")
        try:
            length = len(key.encode())
        except UnicodeEncodeError as error:
            raise self.error(f"the key can't be written in UTF-8: {error}") from error
        if length > _MAX_KEY_BYTES:
            raise self.error(
                f"the key has {length:,} bytes in UTF-8; DynamoDB allows {_MAX_KEY_BYTES:,} here. Take a digest of it: "
                "hashlib.sha256(key.encode()).hexdigest()"
            )

    def check_timeout(self, timeout: float | None) -> None:
        """Raises LeaseError: it is no number from 0 on."""
        if timeout is not None and not (_is_number(timeout) and timeout >= 0):
            raise self.error(
                f"timeout is {timeout!r}; allowed are seconds from 0 on, or None for as long as the invocation may wait"
            )

    def check_skew(self, seconds: float) -> None:
        """Raises LeaseError: it is no number from 0 on, or infinite."""
        if not (_is_number(seconds) and 0 <= seconds < math.inf):
            raise self.error(f"max_clock_skew_seconds is {seconds!r}; allowed are seconds from 0 on")

    def check_lease(self, seconds: float | None, *, heartbeat: bool) -> None:
        """Raises LeaseError: it is no number above 0, or too long for a lease that nobody renews."""
        if seconds is None:
            return
        if not (_is_number(seconds) and 0 < seconds < math.inf):
            raise self.error(f"lease_seconds is {seconds!r}; allowed are seconds above 0, or None for until the deadline")
        if seconds > _LONGEST_SECONDS and not heartbeat:
            raise self.error(
                f"lease_seconds is {seconds!r}, longer than a function may run ({_LONGEST_SECONDS:.0f} s): a holder that "
                "dies would keep all others waiting for so long. Let a shorter one be renewed: heartbeat=True"
            )

    def error(self, problem: str) -> LeaseError:
        """A use that can't work."""
        shown = repr(self.key)
        if len(shown) > _SHOWN:
            shown = shown[:_SHOWN] + "…"
        return LeaseError(f"lease {shown} in table {self.table!r}: {problem}", table=self.table, key=self.key)

    def not_held(self, why: str) -> LeaseNotHeld:
        """A use of what isn't held."""
        text = f"lease {self.key!r} in table {self.table!r} is not held by this invocation, thread and task: {why}"
        return LeaseNotHeld(text, table=self.table, key=self.key)

    def loss(self, reason: str) -> LeaseLost:
        """A use of what is held no more."""
        return LeaseLost(
            f"lease {self.key!r} in table {self.table!r} was lost: {reason}. Stop what it protects; it can be taken anew.",
            table=self.table,
            key=self.key,
            reason=reason,
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
