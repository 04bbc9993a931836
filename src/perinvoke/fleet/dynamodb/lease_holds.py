"""The leases that this process holds, asks for, or gives back: by lease and by owner.

An owner's first acquisition of a lease makes a hold; further ones count. A hold is entered before DynamoDB is asked, and stays
until it is given back: whatever is interrupted in between, the end of the invocation finds it here.

A forked child holds nothing. The leases stay its parent's, who renews them and gives them back.
"""

from __future__ import annotations

import enum
import os
import threading

from perinvoke.errors import NotInInvocation
from perinvoke.fleet.patience import REAL_CLOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any

    from perinvoke.fleet.dynamodb.caller import Lessee, Turn
    from perinvoke.fleet.dynamodb.lease_protocol import Taken, Terms

    Identity = tuple[str, str, str]  # a client's endpoint, a table, a key


class Stage(enum.Enum):
    """How far a hold has got."""

    WAITING = "for its turn in this environment; DynamoDB was not asked"
    ASKING = "a request may have been carried out"
    HELD = "the lease is its owner's"
    ENDING = "it is being given back"


class Hold:
    """One owner's hold of one lease; lives from its first acquisition to its last release.

    Args:
        identity: which lease.
        owner: whose it is.
        terms: what DynamoDB was asked for it with.
        client: what it is asked through.
        turn: the environment's.
        beats_seconds: how long each heartbeat makes it last; None: it isn't renewed.
        ends_monotonic: when its invocation is over, and with it all renewing.
    """

    __slots__ = (
        "asked_to_end",
        "beats_seconds",
        "client",
        "count",
        "ends_monotonic",
        "identity",
        "look_again_monotonic",
        "loss",
        "owner",
        "since_monotonic",
        "stage",
        "terms",
        "token",
        "trouble",
        "turn",
        "until_monotonic",
    )

    def __init__(
        self,
        identity: Identity,
        owner: Lessee,
        terms: Terms,
        *,
        client: Any,
        turn: Turn,
        beats_seconds: float | None,
        ends_monotonic: float,
    ) -> None:
        self.identity = identity
        self.owner = owner
        self.terms = terms
        self.client = client
        self.turn = turn
        self.beats_seconds = beats_seconds
        self.ends_monotonic = ends_monotonic
        self.stage = Stage.WAITING
        self.count = 1
        self.token: int | None = None
        self.since_monotonic = 0.0
        self.until_monotonic = 0.0
        self.loss: str | None = None
        self.trouble: Exception | None = None  # of the last renewal, where it met some
        self.asked_to_end = False  # a release may have been carried out
        self.look_again_monotonic = 0.0  # not before then; a request that was given up may still be on its way

    def lost(self) -> str | None:
        """Why it isn't held any more, though it was not given back; None: as far as is known here, it is. Once lost, lost."""
        if self.loss is None and self.token is not None and REAL_CLOCK.monotonic() >= self.until_monotonic:
            self.loss = "outage" if self.trouble is not None else "expired"
        return self.loss

    def note_turn(self) -> None:
        """Tell the other workers of this environment who has the lease, and until when they have to wait for him."""
        self.turn.note(self.until_monotonic, self.terms.holder)

    def held_seconds(self) -> float:
        """Since it was taken."""
        return REAL_CLOCK.monotonic() - self.since_monotonic

    def left_seconds(self) -> float:
        """Until it ends by itself, if nobody renews it; never below 0."""
        return max(0.0, self.until_monotonic - REAL_CLOCK.monotonic())

    def __str__(self) -> str:
        _, table, key = self.identity
        return f"lease {key!r} in table {table!r}"

    def __repr__(self) -> str:
        return f"<Hold of {self}, {self.stage.name.lower()}, token {self.token}, {self.loss or 'not lost'}>"


class LeaseHolds:
    """All holds of this process; lives as long as the process. Thread-safe; nothing blocks while the lock is held.

    Attributes:
        highest_token: that this process has got.
        of_parent: what the process that this one was forked from held at that moment.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may take a lease itself
        self._holds: dict[tuple[Identity, Hashable], Hold] = {}
        self.highest_token = 0
        self.of_parent: frozenset[tuple[Identity, Hashable]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self._holds) or bool(self.of_parent)

    def find(self, identity: Identity, owner: Hashable) -> Hold | None:
        """An owner's hold of a lease."""
        return self._holds.get((identity, owner))

    def of_group(self, group: Hashable) -> list[Hold]:
        """All holds of one invocation."""
        with self._lock:
            return [hold for hold in self._holds.values() if hold.owner.group == group]

    def in_own_thread(self, identity: Identity, owner: Lessee) -> Hold | None:
        """A hold of the lease by another task or invocation of this very thread, which can't go on while this one waits."""
        with self._lock:
            for (its, _), hold in self._holds.items():
                if its == identity and hold.stage is Stage.HELD and _thread_of(hold.owner) == _thread_of(owner):
                    return hold
        return None

    def enter(self, hold: Hold) -> None:
        """Note a hold before anything is done for it."""
        with self._lock:
            self._holds[hold.identity, hold.owner.key] = hold

    def settle(self, hold: Hold, taken: Taken) -> None:
        """The lease is taken.

        Raises:
            NotInInvocation: the owner's invocation has ended meanwhile, and what it held was given back. Either the end sees this
                hold, or this sees the end.
        """
        with self._lock:
            hold.token, hold.until_monotonic = taken.token, taken.until_monotonic
            hold.since_monotonic = REAL_CLOCK.monotonic()
            self.highest_token = max(self.highest_token, taken.token)
            if hold.owner.has_ended():
                raise NotInInvocation(
                    f"the invocation that wanted {hold} has ended meanwhile; wait for its threads before it returns"
                )
            hold.stage = Stage.HELD

    def taken_again(self, hold: Hold) -> None:
        """Count one acquisition more."""
        with self._lock:
            hold.count += 1

    def given_back_once(self, hold: Hold) -> bool:
        """Count one acquisition less; whether it was the last one, which isn't counted but begins the end."""
        with self._lock:
            if hold.count > 1:
                hold.count -= 1
                return False
            hold.stage = Stage.ENDING
            return True

    def remove(self, hold: Hold) -> None:
        """Forget a hold; idempotent."""
        with self._lock:
            if self._holds.get((hold.identity, hold.owner.key)) is hold:
                del self._holds[hold.identity, hold.owner.key]

    def child(self) -> LeaseHolds:
        """What a forked child begins with: it holds nothing, and knows what it has from its parent."""
        born = LeaseHolds()
        born.highest_token = self.highest_token
        born.of_parent = frozenset(self._holds) | self.of_parent
        return born


def _thread_of(owner: Lessee) -> object:
    assert isinstance(owner.key, tuple)
    return owner.key[1]


holds = LeaseHolds()
_forgotten: list[LeaseHolds] = []


def _forget() -> None:
    """In a forked child. What is forgotten is kept referenced: a client's finalizers would act on what is the parent's."""
    global holds  # noqa: PLW0603  # there is one process, and after a fork another one
    _forgotten.append(holds)
    holds = holds.child()


os.register_at_fork(after_in_child=_forget)
