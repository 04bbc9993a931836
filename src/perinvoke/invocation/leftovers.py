"""What an invocation leaves running: threads, pooled calls and child processes, found and named.

Threads and pooled calls are known from ``carry.py``. Child processes can be started in many ways, so the kernel is asked: two
system calls tell whether there are any and whether any was reaped since the last look; only then are they looked up by name.
"""

from __future__ import annotations

# signal.getsignal makes an enum of the answer, which takes a microsecond, and its import one millisecond.
import _signal  # type: ignore[import-not-found]  # typeshed leaves it out
import os
import threading
import time

from perinvoke.stdlib_resource import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from perinvoke.invocation.context import Invocation

# proc(5): the 22nd field of /proc/PID/stat; the first two stand before the closing bracket.
_START_TIME = 19
_TICK_SECONDS = 0.01
# How long a thread that is told to end may take, as an executor's is that isn't waited for (AnyIO's, below FastAPI); arbitrary,
# and longer than the interpreter takes to switch threads.
_ENDING_SECONDS = 0.01
# Looked up once: these two calls are made in every invocation.
_waitid = getattr(os, "waitid", None)  # macOS has it from Python 3.13 on
_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
_getrusage, _CHILDREN = resource.getrusage, resource.RUSAGE_CHILDREN


class ChildWatch:
    """Sees child processes that an invocation leaves; lives as long as the process, and a forked child starts with a new one.

    Costs two system calls an invocation, both at its end.
    """

    __slots__ = ("_reaped",)

    def __init__(self) -> None:
        self._reaped = _reaped()

    def look(self, invocation: Invocation) -> tuple[list[str], bool]:
        """The children started by ``invocation`` that still run; and whether all of them are accounted for.

        They are not when a child was waited for since the last look: it may have left a daemon that is nobody's child.
        """
        reaped, self._reaped = self._reaped, _reaped()
        any_children = has_children()
        if any_children or reaped != self._reaped or invocation.had_children:
            parent = invocation.parent
            while parent is not None:  # what was seen here, the look at the parent's end won't see again
                parent.had_children = True
                parent = parent.parent
            left = [pid for pid in _pids() if _started_in(invocation, pid)] if any_children else []
            return named_if_running(left), False
        return [], _signal.getsignal(_signal.SIGCHLD) is not _signal.SIG_IGN  # ignored, children vanish without being counted


def _started_in(invocation: Invocation, pid: int) -> bool:
    """Whether the process is younger than the invocation. Its age is told in ticks: one more counts as younger."""
    fields = _stat(pid)
    if len(fields) <= _START_TIME:
        return False  # gone
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")
    return age <= time.monotonic() - invocation.started_monotonic + _TICK_SECONDS


def named_if_running(pids: Iterable[int]) -> list[str]:
    """Those of ``pids`` that still run, by name and pid. A child that ended and was not waited for doesn't."""
    return [_name(pid) for pid in sorted(pids) if _stat(pid)[:1] not in ([], ["Z"])]


def threads_left_running(invocation: Invocation) -> list[str]:
    """Threads and pooled calls of the invocation that still run or wait to run, by name. Blocks for 10 ms at most."""
    latest = time.monotonic() + _ENDING_SECONDS
    for thread in list(invocation.threads):
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(max(0.0, latest - time.monotonic()))
    threads = [f"thread {thread.name}" for thread in invocation.threads if thread.is_alive()]
    return threads + [f"pooled call {name}" for future, name in list(invocation.work.items()) if not future.done()]


def has_children() -> bool:
    """Whether the process has children at all, also dead ones that nobody waited for yet."""
    if _waitid is None:
        return False
    try:
        _waitid(os.P_ALL, 0, _LOOK)
    except ChildProcessError:
        return False
    return True


def _reaped() -> int:
    """A number that grows with every child that is waited for: each has had page faults."""
    return _getrusage(_CHILDREN).ru_minflt


def _pids() -> frozenset[int]:
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        return frozenset()  # no /proc
    if os.path.exists(f"/proc/self/task/{tasks[0]}/children"):
        return frozenset(pid for task in tasks for pid in _children_of_task(task))
    everybody = (int(name) for name in os.listdir("/proc") if name.isdigit())  # a kernel without CONFIG_PROC_CHILDREN
    return frozenset(pid for pid in everybody if _stat(pid)[1:2] == [str(os.getpid())])


def _children_of_task(task: str) -> list[int]:
    try:
        with open(f"/proc/self/task/{task}/children", encoding="ascii") as children:
            return [int(pid) for pid in children.read().split()]
    except OSError:
        return []  # the thread ended


def _stat(pid: int) -> list[str]:
    """State, parent and so on; empty when the process is gone. proc(5): the name before them may hold spaces and brackets."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()
    except OSError:
        return []


def _name(pid: int) -> str:
    """Not its arguments: they may hold a secret."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return f"child process {comm.read().strip()} (pid {pid})"
    except OSError:
        return f"child process (pid {pid})"
