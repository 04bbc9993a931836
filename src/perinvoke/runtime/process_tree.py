"""Parents and children, as Linux keeps them (prctl(2), proc(5))."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
_EASIER_TO_KILL = 100  # thousandths of all memory: more than the parent can have beyond what they share


def children() -> list[int]:
    """The process ids of this process's children, zombies included."""
    found: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208  # names are enough
            found += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    except OSError:  # the thread has ended; or there is no descriptor left to read with
        pass
    return found


def adopt_orphans() -> None:
    """From now on what a dead child of this process leaves running becomes its child, too. Not inherited by a fork."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends, and end now if it has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before the call above


def die_before_parent() -> None:
    """When memory runs out, the kernel is to choose this process rather than its parent; proc(5), ``oom_score_adj``."""
    try:
        adjustment = int(_OOM_SCORE_ADJ.read_text())
        _OOM_SCORE_ADJ.write_text(str(min(1000, adjustment + _EASIER_TO_KILL)))
    except OSError:  # not allowed here: then it may be the parent, and the platform replaces the environment
        pass


def reap_all_but(workers: set[int]) -> None:
    """Reap the children that have ended, except workers. Doesn't block."""
    for pid in set(children()) - workers:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue


def kill_children() -> None:
    """Kill the children there are, and those that become ours by that. What survives SIGKILL is stuck in the kernel."""
    for _ in range(10):  # arbitrary: the depth of a process tree
        pids = children()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue
        if not pids:
            return
