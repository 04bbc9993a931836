"""Whether leases were right: from what happened, in true time, which nobody who took part in it knew.

Four things must be so. Three of them always, whatever clocks, networks and processes do:

* **tokens grow**: each take of a key that the store carried out has a greater token than the one before it, for ever.
* **writes don't go back**: a guarded write is carried out if and only if none with a greater token was before.
* **what is said is true**: who counts on a lease has a token that the store gave to it and to nobody else. Who is told that its
  lease was taken from it was robbed, be it by a request of its own that came late; who was robbed is told so, unless an answer
  was lost; and who gave up because others held the lease didn't hold it itself.

And one where clocks keep to what they promise:

* **no two hold at once**: somebody holds from when it learns that it does, until it gives the lease back, dies, or its own
  monotonic clock shows the lease's end, whether it looks or not.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True)
class Granted:
    """The store carried out a take. ``displaced``: who was in the record until then."""

    key: str
    owner: str
    token: int
    displaced: str | None = None


@dataclass(frozen=True)
class Removed:
    """The record was removed, by hand or because it was old. ``owner``: who was in it."""

    key: str
    owner: str | None = None


@dataclass(frozen=True)
class Held:
    """Somebody counted on its lease from one true time to another; where the end isn't later, it never did."""

    key: str
    owner: str
    token: int
    begins: float
    ends: float


@dataclass(frozen=True)
class Wrote:
    """The store was asked for a guarded write, and carried it out or refused it."""

    item: str
    token: int
    carried_out: bool = True


@dataclass(frozen=True)
class Told:
    """What the end of a lease, or of the wait for one, was said to be.

    Attributes:
        what: ``"given back"``, ``"robbed"``, or ``"others hold it"``.
        token: which it had.
        lost: whether an answer was lost on the way there; then "given back" may be said of what nobody knows.
        saw: the owner in the record that was seen last.
    """

    key: str
    owner: str
    what: str
    token: int = 0
    lost: bool = False
    saw: str | None = None


Event: TypeAlias = Granted | Removed | Held | Wrote | Told


@dataclass(frozen=True)
class Violation:
    """A rule that was broken, and the events that break it."""

    rule: str
    events: tuple[Event, ...]


def violations(history: Iterable[Event], *, exclusive: bool = True) -> list[Violation]:
    """Every rule that a history breaks.

    Args:
        history: what the store did, in its order; ``Held`` and ``Told`` anywhere among it.
        exclusive: whether clocks kept to what they promise, so that no two may hold at once.
    """
    events = list(history)
    rules = [_tokens_that_do_not_grow, _writes_that_go_back, _writes_that_are_barred, _tokens_of_nobody, _untruths]
    if exclusive:
        rules.append(_overlaps)
    return [violation for rule in rules for violation in rule(events)]


def _tokens_that_do_not_grow(events: list[Event]) -> Iterator[Violation]:
    last: dict[str, Granted] = {}
    for event in events:
        if isinstance(event, Granted):
            before = last.get(event.key)
            if before is not None and event.token <= before.token:
                yield Violation("tokens grow", (before, event))
            last[event.key] = event


def _writes_that_go_back(events: list[Event]) -> Iterator[Violation]:
    greatest: dict[str, Wrote] = {}
    for event in events:
        if isinstance(event, Wrote) and event.carried_out:
            before = greatest.get(event.item)
            if before is not None and event.token < before.token:
                yield Violation("writes don't go back", (before, event))
            else:
                greatest[event.item] = event


def _writes_that_are_barred(events: list[Event]) -> Iterator[Violation]:
    """A guard that lets nobody write isn't one."""
    greatest: dict[str, int] = defaultdict(int)
    for event in events:
        if isinstance(event, Wrote):
            if event.carried_out:
                greatest[event.item] = max(greatest[event.item], event.token)
            elif event.token >= greatest[event.item]:
                yield Violation("writes of the last holder are carried out", (event,))


def _tokens_of_nobody(events: list[Event]) -> Iterator[Violation]:
    granted = {(event.key, event.owner, event.token) for event in events if isinstance(event, Granted)}
    holders: dict[tuple[str, int], Held] = {}
    for event in events:
        if isinstance(event, Held) and event.ends > event.begins:
            other = holders.setdefault((event.key, event.token), event)
            if (event.key, event.owner, event.token) not in granted:
                yield Violation("a holder's token was given to it", (event,))
            elif other.owner != event.owner:
                yield Violation("a holder's token was given to nobody else", (other, event))


def _untruths(events: list[Event]) -> Iterator[Violation]:
    robbed, robbed_of = set(), set()
    for event in events:
        if isinstance(event, Removed):
            robbed.add((event.key, event.owner))
        elif isinstance(event, Granted):
            robbed.add((event.key, event.displaced))
            if event.displaced != event.owner:
                robbed_of.add((event.key, event.displaced, event.token - 1))
    for event in events:
        if isinstance(event, Told):
            if event.what == "robbed" and (event.key, event.owner) not in robbed:
                yield Violation("who is told that it was robbed was", (event,))
            if event.what == "given back" and not event.lost and (event.key, event.owner, event.token) in robbed_of:
                yield Violation("who was robbed is told so", (event,))
            if event.what == "others hold it" and event.saw == event.owner:
                yield Violation("who holds it isn't told that others do", (event,))


def _overlaps(events: list[Event]) -> Iterator[Violation]:
    by_key: dict[str, list[Held]] = defaultdict(list)
    for event in events:
        if isinstance(event, Held) and event.ends > event.begins:
            by_key[event.key].append(event)
    for holds in by_key.values():
        longest: Held | None = None
        for held in sorted(holds, key=lambda held: held.begins):
            if longest is not None and held.begins < longest.ends and held.owner != longest.owner:
                yield Violation("no two hold at once", (longest, held))
            if longest is None or held.ends > longest.ends:
                longest = held
