"""Which invocations run in this process, and whether one of them has the process to itself.

In process mode a worker runs one invocation at a time: it *claims* the process. What the process has only once is then put back
when it ends, and ``TMPDIR`` is set for child processes. In thread mode, or as soon as a second invocation starts beside the first
(asyncio, a test with threads), nobody holds a claim: process-wide things are left alone. An invocation called by another one's
handler is not beside it but inside it, and claims the process for its own time, unless it runs in a thread or task of its own.
"""

from __future__ import annotations

import threading

from perinvoke.invocation import tempdir
from perinvoke.invocation.process_state import ProcessState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from perinvoke.invocation.context import Invocation


class Occupancy:
    """The invocations running in this process; lives as long as the process. A forked child starts with an empty one.

    The lock guards the list and the claims: another invocation may start or end in any thread. It is held for microseconds, and
    for one ``mkdir`` when a directory must be made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[Invocation] = []

    def enter(self, invocation: Invocation, *, shared_process: bool) -> None:
        """Register ``invocation``, and claim the process for it unless others run beside it.

        Raises what ``Shelf.take`` raises. ``leave`` must follow in any case.
        """
        with self._lock:
            if self._running:
                self._running = [other for other in self._running if not _is_over(other)]
            beside = [other for other in self._running if not _is_inside(invocation, other)]
            for other in reversed(beside):
                _give_up(other)
            if shared_process or beside or (self._running and not _is_called_by_its_parent(invocation)):
                tempdir.follow_invocations_in_children()
                tempdir.follow_invocations()
                invocation.process_state = ProcessState(shared=True)
            else:
                directory = invocation.scratch_directory.prepare()
                tempdir.follow_invocations()  # before TMPDIR changes; tempfile may have been imported since the last invocation
                state = invocation.process_state = ProcessState(shared=False)
                invocation.claims_process = True
                state.export_tmpdir(directory)
            self._running.append(invocation)

    def leave(self, invocation: Invocation) -> tuple[list[str], list[str]]:
        """Put back what the invocation changed, if it had the process to itself to the end. Interrupted, it may be called again.

        Returns what was put back and what was left changed, in words.
        """
        with self._lock:
            state = invocation.process_state
            changes: tuple[list[str], list[str]] = ([], [])
            if state is not None:
                changes = (state.put_back(), []) if invocation.claims_process else ([], state.changes())
            if invocation in self._running:  # else its entry was interrupted
                self._running.remove(invocation)
            return changes


def _is_over(other: Invocation) -> bool:
    """Whether ``other``'s end was interrupted beyond repair: it has ended, and its thread has gone on to this invocation."""
    return other.ended and other.thread_id == threading.get_ident()


def _is_called_by_its_parent(invocation: Invocation) -> bool:
    """Whether the parent's handler waits for this invocation to return: in the same thread, and not as a task of a loop.

    One in a thread or task goes on beside its parent's handler, and perhaps beyond its end. If it claimed the process, it would
    undo what the parent does meanwhile, or bring back after the parent's end what the parent had changed.
    """
    parent = invocation.parent
    return parent is not None and parent.thread_id == invocation.thread_id and not invocation.in_loop


def _is_inside(invocation: Invocation, other: Invocation) -> bool:
    """Whether ``other``'s handler called ``invocation``, directly or through others."""
    ancestor = invocation.parent
    while ancestor is not None:
        if ancestor is other:
            return True
        ancestor = ancestor.parent
    return False


def _give_up(other: Invocation) -> None:
    if other.claims_process and other.process_state is not None:
        other.claims_process = False
        other.process_state.unexport_tmpdir()
        tempdir.unpin(other.scratch_directory.directory)
