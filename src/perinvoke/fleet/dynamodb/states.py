"""Every state of a lease's record and of an idempotency record, and every legal transition. All the requests are made from here.

The values that states are compared with:

==================  ==========================================================================================
``us``              the owner: one acquisition of a lease, one run of a function. 32 random digits, used once
``overdue_ms``      a deadline before this one is past on every machine's clock: now, less the skew that clocks may have
``now_ms``          now; where it doesn't matter whose clock it is
``seen_owner``,     what the record of a holder said that didn't change for its whole lease, on the monotonic clock of the one who
``seen_token``,     looks. Known only to somebody who has waited so long. An owner alone doesn't do: one whose answer was lost may
``seen_renewals``   take its own lease over
``token``           of a holder, who was told it
``renewal``         which of a holder's renewals it is
==================  ==========================================================================================
"""

from __future__ import annotations

from perinvoke.fleet.dynamodb.conditions import KEY, TTL, State, StateTable, Term, Transition

# Values whose names say what they are.
CONSTANTS = {"zero": 0, "one": 1, "nobody": "nobody", "running": "running", "done": "done"}


class Lease:
    """The record of a lease. ``token`` and ``displaced`` stay when it is given back."""

    ABSENT = State("absent", Term(KEY, "missing"))
    FREE = State("free", Term(KEY, "exists"), Term("owner", "missing"))
    # Ours without a break, and this renewal isn't one that was delayed until a later one was carried out.
    KEPT = State("kept", Term("owner", "=", "us"), Term("token", "=", "token"), Term("renewals", "<=", "renewal"))
    OURS = State("ours", Term("owner", "=", "us"))
    OVERDUE = State("overdue", Term("owner", "exists"), Term("deadline_ms", "<", "overdue_ms"))
    SILENT = State(
        "silent", Term("owner", "=", "seen_owner"), Term("token", "=", "seen_token"), Term("renewals", "=", "seen_renewals")
    )
    HELD = State("held", Term("owner", "exists"))

    TAKE = Transition(
        "take",
        (ABSENT, FREE, OVERDUE, SILENT),
        OURS,
        sets={
            "displaced": "if_not_exists(#owner, :nobody)",  # from whom it was taken over: tells a theft from a release later
            "token": "if_not_exists(#token, :floor) + :one",
            "owner": ":us",
            "holder": ":holder",
            "renewals": ":zero",
            "lease_ms": ":lease_ms",
            "deadline_ms": ":deadline_ms",
            TTL: ":expiration",
        },
        returns="UPDATED_NEW",
    )
    RENEW = Transition(
        "renew",
        (KEPT,),
        KEPT,
        sets={
            "renewals": ":renewal",
            "lease_ms": ":lease_ms",
            "deadline_ms": ":deadline_ms",
            TTL: ":expiration",
        },
    )
    RELEASE = Transition(
        "release",
        (KEPT, OURS),
        FREE,
        sets={TTL: ":expiration"},
        removes=("owner", "holder", "renewals", "lease_ms", "deadline_ms"),
    )

    TABLE = StateTable((ABSENT, FREE, KEPT, OURS, OVERDUE, SILENT, HELD), (TAKE, RENEW, RELEASE))


class Idempotency:
    """The record of a call. ``result`` is JSON; ``problem`` tells why there is none."""

    ABSENT = State("absent", Term(KEY, "missing"))
    OURS = State("ours", Term("state", "=", "running"), Term("owner", "=", "us"))
    ABANDONED = State("abandoned", Term("state", "=", "running"), Term("deadline_ms", "<", "overdue_ms"))
    RUNNING = State("running", Term("state", "=", "running"))
    EXPIRED = State("expired", Term("state", "=", "done"), Term("expires_ms", "<=", "now_ms"))
    DONE = State("done", Term("state", "=", "done"), Term("expires_ms", ">", "now_ms"))

    BEGIN = Transition(
        "begin",
        (ABSENT, ABANDONED, EXPIRED),
        OURS,
        sets={
            "state": ":running",
            "owner": ":us",
            "deadline_ms": ":deadline_ms",
            "payload": ":payload",
            TTL: ":expiration",
        },
        removes=("result", "problem", "expires_ms"),
    )
    COMPLETE = Transition(
        "complete",
        (OURS,),
        DONE,
        sets={"state": ":done", "result": ":result", "problem": ":problem", "expires_ms": ":expires_ms", TTL: ":expiration"},
        removes=("deadline_ms",),
    )
    FORGET = Transition("forget", (OURS,), ABSENT)

    TABLE = StateTable((ABSENT, OURS, ABANDONED, RUNNING, EXPIRED, DONE), (BEGIN, COMPLETE, FORGET))
