"""The process between the runner and the runtime: whatever the runtime starts, it outlives and ends.

A program of its own (``python keeper.py CONTROL_FD FOLDER GRACE_SECONDS COMMAND...``), standard library only. Guarantees:

* When the runner closes the control socket or dies, even by SIGKILL, every process that descends from the runtime ends: those
  in its process group, and those that a handler detached with ``setsid``. The kernel re-parents orphans to the nearest
  subreaper, which is this process; so all descendants become its children, and it has no others.
* FOLDER is removed last.
* If this process itself is killed, the runtime's parent goes with it; its workers find nobody to poll and end soon.

On the control socket the runner hears ``started PID`` and ``ended CODE``. SIGUSR1 ends everything without grace.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_SECONDS = 10.0  # arbitrary bound; only a process stuck in the kernel survives SIGKILL that long


def prctl(option: int, value: int) -> None:
    """Call what Python doesn't offer; where it fails, less is guaranteed and the rest still holds."""
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def start(command: list[str]) -> int:
    """Start the runtime in a session of its own, tied to this process's life."""
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        # Before setsid: from then on a SIGTERM to the group has to find it effective. And Python ignores the last two, which
        # would stay so after exec.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    # As the shell and Lambda's bootstrap tell it: 127 for what isn't there, 126 for what can't be run.
    os._exit(126 if Path(command[0]).exists() else 127)


def reap(runtime: int, control: socket.socket | None) -> bool:
    """Collect the children that have ended; whether any are left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == runtime and control is not None:
            tell(control, f"ended {os.waitstatus_to_exitcode(status)}\n")


def tell(control: socket.socket, line: str) -> None:
    """Send a line to the runner. If it is gone, the next look at the socket says so."""
    with suppress(OSError):
        control.sendall(line.encode())


def children() -> list[int]:
    """The processes whose parent this one is."""
    me = os.getpid()
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and parent_of(entry) == me]


def parent_of(process: Path) -> int:
    """The parent of a process by its folder in /proc; 0 if it has ended."""
    try:
        stat = (process / "stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])  # the name in parentheses may hold anything


def watch(runtime: int, control: socket.socket, signals: int) -> bool:
    """Serve until the end is wanted; whether with grace."""
    while True:
        sources: list[socket.socket | int] = [control, signals]
        readable, _, _ = select.select(sources, [], [])
        if signals in readable:
            numbers = set(os.read(signals, 512)) - {int(signal.SIGCHLD)}
            reap(runtime, control)
            if numbers:
                return signal.SIGUSR1 not in numbers
        if control in readable:
            return True


def end_gracefully(runtime: int, signals: int, grace_seconds: float) -> None:
    """SIGTERM to the runtime's group; wait until it has ended, the grace is over or the runner loses patience."""
    until = time.monotonic() + grace_seconds
    signal_group(runtime, signal.SIGTERM)
    while reap(runtime, None) and signal_group(runtime, 0):
        readable, _, _ = select.select([signals], [], [], max(0.0, until - time.monotonic()))
        if not readable or signal.SIGUSR1 in os.read(signals, 512):
            return


def signal_group(runtime: int, number: int) -> bool:
    """Signal the runtime's process group; whether it had any member."""
    try:
        os.killpg(runtime, number)
    except OSError:
        return False
    return True


def kill_all(runtime: int) -> None:
    """Kill the group, then whatever was re-parented to us, until nothing is left."""
    until = time.monotonic() + KILL_SECONDS
    signal_group(runtime, signal.SIGKILL)
    while reap(runtime, None) and time.monotonic() < until:
        for pid in children():
            with suppress(ProcessLookupError):  # reaped since the list was made
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def main(arguments: list[str]) -> None:
    """Start the runtime, wait, end everything."""
    control_fd, folder, grace_seconds, *command = arguments
    os.set_inheritable(int(control_fd), False)  # noqa: FBT003 - the stdlib takes it by position
    control = socket.socket(fileno=int(control_fd))
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # only the wake-up counts; a C-level default would end us
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    runtime = start(command)
    tell(control, f"started {runtime}\n")
    try:
        if watch(runtime, control, signals):
            end_gracefully(runtime, signals, float(grace_seconds))
    finally:
        kill_all(runtime)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
