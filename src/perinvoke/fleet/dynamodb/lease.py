"""``LeaseLock``: one holder at a time over all execution environments, functions and regions that use the same table.

Guarantees:
* Every acquisition has a token that is greater than all before it. A guarded write is refused once a later holder has written:
  ``lock.guard`` (``fencing.py``). That is what to build on: no clock is involved.
* While no machine's monotonic clock runs faster than another's, and wall clocks are no further apart than
  ``max_clock_skew_seconds``, no two hold it at once: a holder's own end comes before the one that others go by.
* A holder that has died, or can't be reached, keeps others waiting until its lease ends, and not longer.
* One write to take what is free, one to give it back; no thread, unless ``heartbeat=True``. Of an environment's waiting workers
  one asks DynamoDB.
* However an acquisition or the body ends (an exception, the deadline, a forgotten release), the end of the invocation finds what
  is left and gives it back.

Not guaranteed: that a holder notices its loss before its next write. A process may stand still between any two of its lines. So
``lost`` is for stopping early, and the token for being right.

How it works is in ``lease_protocol.py``.
"""

from __future__ import annotations

import hashlib
import os

from perinvoke.errors import LockTimeout
from perinvoke.fleet.dynamodb import fencing, heartbeat, lease_end, lease_holds
from perinvoke.fleet.dynamodb.caller import LONGEST_SECONDS, Turn, client_of, lessee, name_of_caller, patience_of
from perinvoke.fleet.dynamodb.lease_arguments import Names
from perinvoke.fleet.dynamodb.lease_holds import Hold, Stage
from perinvoke.fleet.dynamodb.lease_protocol import Terms, acquire, not_to_be_had
from perinvoke.fleet.dynamodb.steps import run
from perinvoke.fleet.errors import LeaseNotHeld, LeaseTimeout
from perinvoke.fleet.patience import REAL_CLOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from typing import Any, Self, TypeVar

    from perinvoke.fleet.dynamodb.caller import Lessee
    from perinvoke.fleet.dynamodb.lease_holds import Identity
    from perinvoke.fleet.patience import Patience

    Function = TypeVar("Function", bound=Callable[..., Any])

# Seconds that a lease lasts beyond its invocation's deadline: for giving it back.
_MARGIN_SECONDS = 1.0


class LeaseLock:
    """A lease on a key of a table, over all environments: a context manager and a decorator, which may be used again and again.

    Lives as long as the variable that holds it. A hold lives until it is released, its invocation ends, or its lease does. It is
    owned by the invocation, thread and task that took it, which may take it again through any LeaseLock of the same table and
    key, and has to release it as often. Outside an invocation the process takes the invocation's place. A forked child holds
    nothing of its parent's, renews nothing and releases nothing.

    Blocks its thread while it waits and asks, never for longer than the invocation has time. In async code run what needs the
    lease in a thread: ``await asyncio.to_thread(work)``.

    Args:
        table: the table's name or ARN; ``perinvoke table create`` makes one.
        key: what is locked; up to 2,042 bytes in UTF-8.
        lease_seconds: how long it lasts, if nobody gives it back. None: until the invocation's deadline and a second more (a
            quarter of an hour where there is no deadline); with a heartbeat: 30 seconds.
        heartbeat: renew it, each time that a third of it is over, as long as it is held and the invocation runs. For holding it
            where there is no deadline, and for work whose death others should notice earlier than at the deadline.
        timeout: seconds that ``acquire`` waits at most. None: as long as the invocation may; outside one, half a minute.
        max_clock_skew_seconds: how far the wall clocks of two environments may be apart. A lease whose published end is past by
            more than this is taken over; else only when its record has stayed the same for as long as it lasts.
        client: a low-level client for DynamoDB, instead of ``boto3_client("dynamodb")``. Its own time-outs count then.

    Raises:
        LeaseError: table, key or one of the numbers can't be used.
    """

    def __init__(
        self,
        table: str,
        key: str,
        *,
        lease_seconds: float | None = None,
        heartbeat: bool = False,
        timeout: float | None = None,
        max_clock_skew_seconds: float = 1.0,
        client: Any = None,
    ) -> None:
        self._names = names = Names(table, key)
        names.check_lease(lease_seconds, heartbeat=heartbeat)
        names.check_timeout(timeout)
        names.check_skew(max_clock_skew_seconds)
        self.table = table
        self.key = key
        self.lease_seconds = lease_seconds
        self.heartbeat = heartbeat
        self.timeout = timeout
        self.max_clock_skew_seconds = max_clock_skew_seconds
        self._client = client
        self._last: tuple[Hashable, str | None] | None = None  # the owner that released it here last, and why it had lost it

    def acquire(self, timeout: float | None = None) -> None:
        """Take the lease, waiting for it at most ``timeout`` seconds, and no longer than the invocation may.

        One write where it is free. Whoever waits reads about twice a second, and of an environment's workers only one does. Where
        answers were lost and it came to nothing, it takes up to a second more to give back what may have been taken.

        Raises:
            LeaseTimeout: others held it all that time; the error names the last holder that was seen.
            LeaseLost: this owner holds it already, but has lost it: release it first.
            LeaseError: another task or invocation of this very thread holds it; or the time-out is no number from 0 on.
            TableMissing, TableSchemaError, TableForbidden: the table can't be used so.
            TableUnavailable: throttled, or without an answer, for all that time.
            NotInInvocation: the invocation has ended meanwhile, in another thread.
        """
        self._names.check_timeout(timeout)
        bounds = [bound for bound in (self.timeout, timeout) if bound is not None]
        patience = patience_of(min(bounds, default=None))
        owner, client = lessee(), client_of(self._client)
        identity = self._identity(client)
        if self._taken_again(identity, owner, patience):
            return
        self._refuse_waiting_for_own_thread(identity, owner)
        hold = self._new_hold(identity, owner, client)

        def wait_for_turn() -> None:
            try:
                hold.turn.take(patience.left())
            except LockTimeout as error:
                raise not_to_be_had(self.table, self.key, patience.waited_seconds(), hold.turn.holder()) from error

        self._take(hold, wait_for_turn, patience)

    def try_acquire(self) -> bool:
        """Take the lease if it is free, with one write; False if others hold it. Doesn't wait. Raises as ``acquire`` does."""
        patience = patience_of(0.0)
        owner, client = lessee(), client_of(self._client)
        identity = self._identity(client)
        if self._taken_again(identity, owner, patience):
            return True
        hold = self._new_hold(identity, owner, client)

        def try_turn() -> None:
            if not hold.turn.try_take():
                raise not_to_be_had(self.table, self.key, patience.waited_seconds(), hold.turn.holder())

        try:
            self._take(hold, try_turn, patience)
        except LeaseTimeout:
            return False
        return True

    def release(self) -> None:
        """Give the lease back, once for each time it was taken; the last time with one write.

        Blocks for two seconds at most, where DynamoDB doesn't answer. Whatever becomes of it, nothing is raised for it: a lease
        that couldn't be given back ends by itself, and one that was lost is left to whom it belongs now. ``lost`` tells, and a
        log record.

        Raises:
            LeaseNotHeld: this owner doesn't hold it.
        """
        hold = self._held()
        if lease_holds.holds.given_back_once(hold):
            self._last = hold.owner.key, lease_end.end(hold)

    def count(self) -> int:
        """How often this owner has taken the lease and not given it back. Asks nobody."""
        hold = self._found()
        return 0 if hold is None else hold.count

    @property
    def token(self) -> int:
        """The number of this acquisition: greater than that of every one before, whoever's it was. Also when the lease is lost.

        Raises:
            LeaseNotHeld: this owner doesn't hold it.
        """
        token = self._held().token
        assert token is not None
        return token

    @property
    def lost(self) -> str | None:
        """Why this owner has the lease no more, though it has not given it back; None: as far as is known here, it has.

        Asks nobody.

        ``"expired"``: its time is over, on this process's monotonic clock. ``"stolen"``: another one has it, or the record was
        removed. ``"outage"``: it could not be renewed for as long as it lasted. After the release: what was so until then.
        """
        hold = self._found()
        if hold is not None:
            return hold.lost()
        last = self._last
        return last[1] if last is not None and last[0] == lessee().key else None

    def raise_if_lost(self) -> None:
        """Raise if this owner has the lease no more; nothing after a release in time. Asks nobody.

        Raises:
            LeaseLost: it has lost it; ``reason`` says why.
            LeaseNotHeld: it has not taken it through this object.
        """
        lost = self.lost
        if lost is not None:
            raise self._names.loss(lost)
        if self._last is None or self._last[0] != lessee().key:
            self._held()

    def guard(self, write: Mapping[str, Any], *, attribute: str = fencing.ATTRIBUTE) -> dict[str, Any]:
        """A write that DynamoDB refuses once a later holder has written the item: it has a condition more, and sets the token.

        It fails then as other conditional writes do, with ``ConditionalCheckFailedException``. Also works when the lease is lost:
        DynamoDB decides. All writes of the item have to be guarded. Asks nobody.

        Args:
            write: the arguments of ``update_item`` or ``put_item``, as a client or a ``Table`` of boto3's takes them; or an
                ``Update`` or ``Put`` of a transaction. It isn't changed.
            attribute: where the item keeps the token.

        Returns:
            The arguments to call with.

        Raises:
            LeaseNotHeld: this owner doesn't hold it.
            LeaseError: the write can't be guarded: a delete, for example. The error says what to do instead.
        """
        return fencing.guarded(write, self.token, attribute=attribute, lease=(self.table, self.key))

    def condition_check(self) -> dict[str, Any]:
        """An action for ``transact``, which carries it all out only if nobody has taken the lease after this owner. Asks nobody.

        For items that can't keep a token, and for deletes. Transactions don't reach over regions, and there are none in tables
        with multi-region strong consistency.

        Raises:
            LeaseNotHeld: this owner doesn't hold it.
        """
        return fencing.condition_check(self._held().terms)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            self.release()
        except LeaseNotHeld:
            # What the body raises counts; and a child that was forked in it has nothing to release.
            if error is None and not self._is_of_parent():
                raise

    def __call__(self, function: Function) -> Function:
        """Decorate ``function``, which isn't async and no generator: it runs while the lease is held."""
        import inspect  # noqa: PLC0415  # only decorators need it
        from functools import wraps  # noqa: PLC0415

        for is_kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
            if is_kind(function):
                raise self._names.error(
                    f"{function!r} would run after the lease was given back: calling it only makes a coroutine or a generator. "
                    "Decorate a plain function, and run that in a thread: await asyncio.to_thread(function)"
                )

        @wraps(function)
        def leased(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return leased  # type: ignore[return-value]

    def __repr__(self) -> str:
        hold = self._found()
        if hold is None or hold.token is None:
            state = "not held here"
        elif (lost := hold.lost()) is not None:
            state = f"lost: {lost}, token {hold.token}"
        else:
            state = f"held, token {hold.token}, {hold.left_seconds():.1f} s left"
        return f"<LeaseLock {self.key!r} in table {self.table!r}, {state}>"

    def _new_hold(self, identity: Identity, owner: Lessee, client: Any) -> Hold:
        digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
        terms = Terms(
            self.table,
            self.key,
            owner=os.urandom(16).hex(),
            holder=name_of_caller(),
            max_skew_seconds=self.max_clock_skew_seconds,
            clock=REAL_CLOCK,
        )
        beats = (
            (heartbeat.DEFAULT_LEASE_SECONDS if self.lease_seconds is None else self.lease_seconds) if self.heartbeat else None
        )
        ends = REAL_CLOCK.monotonic() + owner.remaining_seconds() + _MARGIN_SECONDS
        turn = Turn(f"lease-{digest}", owner)
        return Hold(identity, owner, terms, client=client, turn=turn, beats_seconds=beats, ends_monotonic=ends)

    def _take(self, hold: Hold, wait_for_turn: Callable[[], None], patience: Patience) -> None:
        try:
            hold.owner.leases_at_end(lease_end.end_all)
            lease_holds.holds.enter(hold)
            wait_for_turn()
            hold.turn.note(REAL_CLOCK.monotonic() + patience.left() + _MARGIN_SECONDS)
            hold.stage = Stage.ASKING
            steps = acquire(hold.terms, lambda: self._lasts(hold), patience, floor=lease_holds.holds.highest_token)
            taken = run(steps, hold.client)
            lease_holds.holds.settle(hold, taken)
            if hold.lost() is not None:
                raise self._names.loss("expired")  # noqa: TRY301  # before its answer came: given back like the rest
            hold.note_turn()
            if hold.beats_seconds is not None:
                heartbeat.heart.start(hold)
        except BaseException as error:
            lease_end.undo(hold, error)
            raise

    def _lasts(self, hold: Hold) -> float:
        """How long the lease is to last, if it is taken now."""
        if self.lease_seconds is not None and hold.beats_seconds is None:
            return self.lease_seconds
        until_end = max(_MARGIN_SECONDS, hold.ends_monotonic - REAL_CLOCK.monotonic())
        return min(until_end, LONGEST_SECONDS + _MARGIN_SECONDS if hold.beats_seconds is None else hold.beats_seconds)

    def _taken_again(self, identity: Identity, owner: Lessee, patience: Patience) -> bool:
        hold = lease_holds.holds.find(identity, owner.key)
        if hold is None:
            return False
        if hold.stage is not Stage.HELD:  # left by an interruption
            lease_end.clear(hold, patience.left())
            return False
        lost = hold.lost()
        if lost is not None:
            raise self._names.loss(lost)
        lease_holds.holds.taken_again(hold)
        return True

    def _refuse_waiting_for_own_thread(self, identity: Identity, owner: Lessee) -> None:
        other = lease_holds.holds.in_own_thread(identity, owner)
        if other is not None and other.lost() is None:
            raise self._names.error(
                "it is held by another task or invocation of this very thread, which can't give it back while this one waits. "
                "Run all that needs it in a thread: await asyncio.to_thread(function)"
            )

    def _identity(self, client: Any) -> Identity:
        return str(client.meta.endpoint_url), self.table, self.key

    def _found(self) -> Hold | None:
        """This owner's hold; without making a client where nothing is held."""
        if not lease_holds.holds:
            return None
        return lease_holds.holds.find(self._identity(client_of(self._client)), lessee().key)

    def _held(self) -> Hold:
        hold = self._found()
        if hold is None or hold.stage is not Stage.HELD:
            why = "the process that this one was forked from took it" if self._is_of_parent() else "take it first"
            raise self._names.not_held(why)
        return hold

    def _is_of_parent(self) -> bool:
        of_parent = lease_holds.holds.of_parent
        return bool(of_parent) and (self._identity(client_of(self._client)), lessee().key) in of_parent
