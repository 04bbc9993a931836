"""A lease, step by step: taking, renewing and giving back, by whoever may be stopped, delayed or answered by nobody between them.

A lease is one record. Who takes it writes an owner (random, used once), how long the lease is, and when it ends on its own wall
clock; and adds one to the record's token. Who gives it back removes the owner; the token stays.

When may another one take it over?

* Its published end is past, even if its clock was ``max_skew_seconds`` ahead of ours. That needs no waiting: a request says so.
* Its record stayed the same for its whole lease, on our own monotonic clock, since we first saw it. A holder that renews changes
  it; one that doesn't has stopped at the latest a lease after it asked for it, which was before we saw it. This needs no two
  clocks that agree, only two that run about equally fast: a lease is a five-hundredth longer for others than for its holder.

A holder stops by itself: its lease ends, on its monotonic clock, counted from before it was asked for. What a holder can't know
is that it stood still between looking at that clock and writing. Hence the token: it grows with every take, so a write that
carries it is refused once a successor has written (``fencing.py``). Where the record was removed, the token goes on from the
microseconds since 1970. That is more than any count reaches, unless who makes the record anew has a clock that is behind the one
of who made it the last time, by more than the time in between.

Every answer may be lost, and the request be repeated by botocore. So a refusal is looked at: if the record has our owner, it was
we.
"""

from __future__ import annotations

import math
from decimal import Decimal

from perinvoke.fleet.dynamodb.answers import Answered
from perinvoke.fleet.dynamodb.conditions import KEY
from perinvoke.fleet.dynamodb.insist import insist
from perinvoke.fleet.dynamodb.states import CONSTANTS, Lease
from perinvoke.fleet.dynamodb.steps import Call, Pause
from perinvoke.fleet.dynamodb.values import plain
from perinvoke.fleet.errors import LeaseTimeout, TableError, TableSchemaError, TableUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from typing import Any, TypeVar

    from perinvoke.fleet.dynamodb.answers import Answer, Item
    from perinvoke.fleet.patience import Clock, Patience

    Result = TypeVar("Result")
    Steps = Generator[Call | Pause, Answer | None, Result]

PREFIX = "lease#"  # of a record's key; the table serves others too
_NUMBERS = ("token", "renewals", "lease_ms", "deadline_ms")
# Seconds that a record is kept after its lease, so that people can look at it. Arbitrary: the token doesn't need it.
_KEPT_SECONDS = 86_400
# By how much a lease is longer for others than for its holder: clocks run unequally. Linux slews a monotonic clock by at most 500
# millionths, so two of them differ by 1,000.
_LONGER_FOR_OTHERS = 1.002


class Terms:
    """What a lease is asked for with; lives as long as one acquisition.

    Args:
        table: the table's name or ARN.
        key: of the lease.
        owner: random; used for no other acquisition.
        holder: who it is, for people: a request id.
        max_skew_seconds: how far the wall clocks of two environments may be apart, also when they are looked at one after the
            other: none may be off by more than half of it.
        clock: this process's.

    Attributes:
        token: what was given to it; None until then.
        renewals: how often it was to be renewed.
    """

    __slots__ = ("clock", "holder", "key", "max_skew_seconds", "owner", "renewals", "table", "token")

    def __init__(self, table: str, key: str, *, owner: str, holder: str, max_skew_seconds: float, clock: Clock) -> None:
        self.table = table
        self.key = key
        self.owner = owner
        self.holder = holder
        self.max_skew_seconds = max_skew_seconds
        self.clock = clock
        self.token: int | None = None
        self.renewals = 0

    @property
    def record_key(self) -> str:
        """Under which the record lies."""
        return PREFIX + self.key

    def values(self, **others: object) -> dict[str, Any]:
        """What states and transitions are made with, now."""
        overdue_ms = self.clock.epoch_ms() - round(self.max_skew_seconds * 1000)
        return {**CONSTANTS, "us": self.owner, "overdue_ms": overdue_ms, **others}

    def ending(self, lease_seconds: float) -> dict[str, Any]:
        """The values of a lease that begins now and lasts so long."""
        now_ms, lease_ms = self.clock.epoch_ms(), math.ceil(lease_seconds * 1000 * _LONGER_FOR_OTHERS)
        return {
            "lease_ms": lease_ms,
            "deadline_ms": now_ms + lease_ms,
            "expiration": (now_ms + lease_ms) // 1000 + _KEPT_SECONDS,
        }


class Taken:
    """What a holder has: the token, and until when on its own monotonic clock it may count on it."""

    __slots__ = ("token", "until_monotonic")

    def __init__(self, token: int, until_monotonic: float) -> None:
        self.token = token
        self.until_monotonic = until_monotonic

    def __repr__(self) -> str:
        return f"<Taken {self.token} until {self.until_monotonic:.3f}>"


class Sighting:
    """What a waiter has seen of a holder, and since when nothing has changed; lives as long as the wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: tuple[object, ...] | None = None
        self._since_monotonic = 0.0
        self._lease_seconds = 0.0

    def note(self, record: Mapping[str, Any]) -> None:
        """What the record says now; read after the last note."""
        seen = (record.get("owner"), record.get("token"), record.get("renewals"))
        if seen != self._seen:
            self._seen, self._since_monotonic = seen, self._clock.monotonic()
            self._lease_seconds = float(record.get("lease_ms", 0)) / 1000

    def silent(self) -> dict[str, object]:
        """The values that say so, when it has not changed for its whole lease; else none."""
        if self._seen is None or self._seen[0] is None or self.silent_in() > 0:
            return {}
        return dict(zip(("seen_owner", "seen_token", "seen_renewals"), self._seen, strict=True))

    def silent_in(self) -> float:
        """Seconds until then, if nothing changes."""
        return self._since_monotonic + self._lease_seconds - self._clock.monotonic()


def token_floor(clock: Clock, highest_seen: int) -> int:
    """What the token of a record that has to be made anew goes on from."""
    return max(highest_seen, clock.epoch_ms() * 1000)


def acquire(terms: Terms, lease_seconds: Callable[[], float], patience: Patience, *, floor: int) -> Steps[Taken]:
    """Take the lease, waiting for it as long as patience lasts.

    One write where it is free. Who waits reads, and writes only when the record says that it may be taken.

    Args:
        terms: of this acquisition.
        lease_seconds: tells how long it is to last, if it is taken now.
        patience: how long to wait.
        floor: the token is greater than this one where the record isn't there, and than ``token_floor`` when it is asked for.

    Raises:
        LeaseTimeout: others held it all that time.
        TableUnavailable: there was no answer all that time. The lease may have been taken: ``release`` it.
        TableSchemaError: what is there is no lease.
        TableError: the server says that it has written it, and hasn't.
    """
    sighting = Sighting(terms.clock)
    untils: dict[int, float] = {}  # until when, on our monotonic clock, by the published end of each request that was made

    def take() -> Call:
        """For each attempt anew: a lease that begins when it is asked for isn't over when a long outage is."""
        asked_monotonic, lasts = terms.clock.monotonic(), lease_seconds()
        values = terms.values(
            **sighting.silent(), **terms.ending(lasts), holder=terms.holder, floor=token_floor(terms.clock, floor)
        )
        untils.setdefault(values["deadline_ms"], asked_monotonic + lasts)  # of two in one millisecond the earlier counts
        return Lease.TAKE.call(terms.table, terms.record_key, values)

    paused = -1
    while True:
        if patience.pauses == paused:  # free as soon as it was refused: others are quicker, or the server is of two minds
            pause = patience.pause()
            if pause is None:
                raise not_to_be_had(terms.table, terms.key, patience.waited_seconds(), None)
            yield Pause(pause)
        paused = patience.pauses
        answer = yield from insist(take, patience)
        record: Mapping[str, Any]
        if isinstance(answer, Answered):
            record = parse(terms, answer.attributes) or (yield from _written(terms, patience))
        else:
            record = yield from _wait_until_takeable(terms, answer.item, sighting, patience)
        if record.get("owner") == terms.owner:
            until = untils.get(int(record.get("deadline_ms", 0)), min(untils.values()))
            terms.token = int(record["token"])
            return Taken(terms.token, until)


def _written(terms: Terms, patience: Patience) -> Steps[Mapping[str, Any]]:
    """What stands there after a write whose answer doesn't tell, though it was asked to."""
    answer = yield from insist(_look(terms), patience)
    assert isinstance(answer, Answered)  # a read has no condition
    record = parse(terms, answer.item)
    if "owner" not in record:
        raise TableError(
            f"lease {terms.key!r} was written to table {terms.table!r}, says whoever answers there, and nothing was: it isn't "
            "DynamoDB, or a stand-in for a client that says yes to everything. A stand-in has to tell what UpdateItem wrote.",
            table=terms.table,
            action="dynamodb:UpdateItem",
        )
    return record


def _look(terms: Terms) -> Call:
    return Call("get_item", {"TableName": terms.table, "Key": {KEY: {"S": terms.record_key}}, "ConsistentRead": True})


def _wait_until_takeable(terms: Terms, found: Item | None, sighting: Sighting, patience: Patience) -> Steps[Mapping[str, Any]]:
    """Read until the record says that the lease may be taken, or that it is ours.

    Who was refused and not told why, by a DynamoDB that can't, reads at once: it may have been refused because it is ours.
    """
    record = None if found is None else parse(terms, found)
    holder = None
    while True:
        if record is not None:
            holder = record.get("holder", holder)
            sighting.note(record)
            state = Lease.TABLE.state_of(record, terms.values(**sighting.silent()))
            if state is Lease.OURS or state in Lease.TAKE.starts:
                return record
            pause = patience.pause()
            if pause is None:
                raise not_to_be_had(terms.table, terms.key, patience.waited_seconds(), holder)
            yield Pause(pause)
        try:
            answer = yield from insist(_look(terms), patience)
        except TableUnavailable as error:
            if record is None or error.attempts > 1:
                raise
            # The time was up in the middle of the last look.
            raise not_to_be_had(terms.table, terms.key, patience.waited_seconds(), holder) from error
        assert isinstance(answer, Answered)  # a read has no condition
        record = parse(terms, answer.item)


def not_to_be_had(table: str, key: str, waited_seconds: float, holder: str | None) -> LeaseTimeout:
    """The error of who waited in vain."""
    return LeaseTimeout(
        f"lease {key!r} in table {table!r} was not to be had in {waited_seconds:.3f} s; "
        f"held by {holder or 'somebody who was not seen'}. Hold it for a shorter time, or wait longer for it.",
        table=table,
        key=key,
        waited_seconds=waited_seconds,
        holder=holder,
    )


def renew(terms: Terms, lease_seconds: float, patience: Patience) -> Steps[float | None]:
    """Make the lease last so long from now on; until when, on the monotonic clock. None: it isn't ours any more.

    Or it is again, by a request for it that was thought lost and came late; but others have had it in between. A renewal that
    comes late changes nothing once a later one was carried out: it would shorten the lease.
    """
    asked_monotonic = terms.clock.monotonic()
    terms.renewals += 1
    values = terms.values(**terms.ending(lease_seconds), token=terms.token, renewal=terms.renewals)
    answer = yield from insist(Lease.RENEW.call(terms.table, terms.record_key, values), patience)
    return asked_monotonic + lease_seconds if isinstance(answer, Answered) else None


def release(terms: Terms, token: int | None, patience: Patience, *, again: bool = False) -> Steps[bool]:
    """Give the lease back, or what may have become of an acquisition that was broken off (``token`` None).

    Whether it was ours until now. True also where a repetition of the request found it given back; ``again`` says that this is
    one, of a release that was broken off.
    """
    values = terms.values(expiration=terms.clock.epoch_ms() // 1000 + _KEPT_SECONDS)
    answer = yield from insist(Lease.RELEASE.call(terms.table, terms.record_key, values), patience)
    return isinstance(answer, Answered) or _was_ours(answer.item, terms, token, lost=answer.lost or again)


def _was_ours(item: Item | None, terms: Terms, token: int | None, *, lost: bool) -> bool:
    """Whether a release that was refused had been carried out before, by an attempt whose answer was lost."""
    if not lost or token is None:
        return False
    record = parse(terms, item)
    now = int(record.get("token", 0))
    if now == token:
        return "owner" not in record
    # One take later the record tells from whom it was taken. Two takes later nobody knows: then it isn't called a theft.
    return now != token + 1 or record.get("displaced") != terms.owner


def parse(terms: Terms, item: Item | None) -> dict[str, Any]:
    """A lease's record in Python's values; empty where there is none.

    Raises:
        TableSchemaError: it is something else's.
    """
    record = plain(item or {})
    if record and not all(isinstance(record.get(name, 0), Decimal | int) for name in _NUMBERS):
        raise TableSchemaError(
            f"item {terms.record_key!r} of table {terms.table!r} is no lease: somebody else has written it. "
            "Use another key, or remove it.",
            table=terms.table,
            action="dynamodb:UpdateItem",
        )
    return record
