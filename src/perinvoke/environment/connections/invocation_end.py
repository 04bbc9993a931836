"""The end of an invocation that had connections: what it forgot is taken back, what it used is cleaned.

Where the driver can, the server is told to clean a session, and the invocation ends without hearing the answer: the next
loan does. Else the keeper's thread does it, and the invocation waits for that: mostly a round trip. It doesn't wait for a
server that stands still: a connection that isn't clean in time is cut, which lets whatever is done with it fail, and closed.
"""

from __future__ import annotations

import functools
import logging
import threading

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections.entry import Entry, Loan, Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

    from perinvoke.environment.connections.holdings import Holdings

logger = logging.getLogger("perinvoke")


def take_back_all(holdings: Holdings, key: Hashable, wait_seconds: float) -> list[str]:
    """Take back what ``key`` did not return, and clean what it used; what there is to tell of it.

    Blocks for ``wait_seconds`` at most.
    """
    budget = holdings.budget()
    done = threading.Event()
    with budget.lock:
        budget.mend()
        told = [f"{place} and left to the garbage collector" for place in holdings.dropped.pop(key, ())]
        loans = holdings.loans.get(key, ())
        forgotten = [loan for loan in loans if loan.entry is not None and loan.entry.stage is Stage.IN_USE]
        told += [f"{loan.place()} and not returned" for loan in forgotten]
        taken = [_taken_from(holdings, loan) for loan in forgotten]
        interrupted = [loan for loan in holdings.loans.get(key, ()) if loan.thread_id == threading.get_ident()]
        used = [entry for entry in holdings.idle if entry.used_for == key and not holdings.begin_cleaning(entry)]
        for entry in used:
            holdings.idle.remove(entry)
            entry.move(Stage.CLEANING)
            entry.note(states.CLEANING)
        if told:
            _count_leaks(holdings, len(told))
        if taken or used:
            budget.keeper.do(functools.partial(_clean, holdings, taken, used, done))
            for entry in (*taken, *used):
                entry.is_queued = True
    for loan in interrupted:
        holdings.undo(loan)
    lines = [f"given back: connection of {holdings.name}, taken at {line}" for line in told]
    if (taken or used) and not done.wait(wait_seconds):
        lines += _cut(holdings, [entry for entry in (*taken, *used) if entry.stage is Stage.CLEANING], wait_seconds)
    return lines


def _taken_from(holdings: Holdings, loan: Loan) -> Entry:
    """Under the lock."""
    entry = loan.entry
    assert entry is not None
    holdings.end_loan(loan, entry)
    loan.entry = None
    entry.move(Stage.CLEANING)
    entry.is_cut = loan.is_elsewhere()
    if entry.is_cut and entry.end is not None:
        entry.end.cut()  # another thread may be using it right now; nobody else may, before that has failed
    return entry


def _count_leaks(holdings: Holdings, leaks: int) -> None:
    """Under the lock: on a line of ours, if we have one; nobody else may write it."""
    for slot in holdings.budget().slots:
        slot.directory.board.add(slot.number, leaks=leaks)
        return


def _cut(holdings: Holdings, late: list[Entry], wait_seconds: float) -> list[str]:
    for entry in late:
        if entry.end is not None:
            entry.end.cut()
    return [f"connection of {holdings.name} cut: the server did not answer in {wait_seconds:.3g} s"] * len(late)


def _clean(holdings: Holdings, taken: list[Entry], used: list[Entry], done: threading.Event) -> None:
    """By the keeper."""
    for entry in (*taken, *used):
        try:
            is_fit = (entry in used or _recovered(holdings, entry)) and holdings.cleaned(entry)
        except BaseException as error:  # noqa: BLE001  # of a connection that an interrupt has left half-way
            logger.debug("cleaning a connection of %s: %r", holdings.name, error)
            is_fit = False
        with holdings.budget().lock:
            if is_fit:
                holdings.settle(entry)
                continue
            entry.move(Stage.CLOSING)
        holdings.close(entry)
    done.set()


def _recovered(holdings: Holdings, entry: Entry) -> bool:
    try:
        holdings.connector.recover(entry.connection, is_cut=entry.is_cut)
    except Exception as error:  # noqa: BLE001  # whatever the driver raises, the connection is closed
        logger.debug("a connection of %s could not be rolled back: %s", holdings.name, error)
        return False
    return holdings.connector.is_open(entry.connection)
