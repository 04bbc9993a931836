"""A server of a test's own: a child process with a directory, a port and perhaps a user of its own, of which nothing survives.

Not even when pytest is killed: a watcher, a process of its own, waits for the end of the one that it was started by, then ends
what works in the directory, and removes it. A parent-death signal wouldn't do: it comes when the thread ends that started the
child.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_SECONDS = 30.0  # hundreds of times what a start takes
STOP_SECONDS = 10.0
_QUIT_SECONDS = 2.0
_LOOK_SECONDS = 0.005


class ServerProcess(ABC):
    """Lives from ``start()`` to ``close()``, with stops and starts in between; a context manager.

    A subclass says which command to start and when it answers. All files lie below ``directory``, and every process works there.
    """

    name = "server"

    def __init__(self, user: str) -> None:
        """``user`` is whom the server runs as when the tests run as root, which database servers refuse."""
        self._user = pwd.getpwnam(user) if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path(tempfile.mkdtemp(prefix=f"perinvoke-{self.name}-"))
        self.directory.chmod(0o755)
        self._own(self.directory)
        watcher = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(self.directory)]
        self._watcher = subprocess.Popen(watcher, cwd="/", start_new_session=True)
        self.port = free_port()

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What to start, in the foreground."""

    @abstractmethod
    def is_ready(self, pid: int) -> bool:
        """Whether the process ``pid`` takes connections."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        assert self._process is None, f"{self.name} runs already"
        with (self.directory / "log").open("ab") as log:
            self._process = self._popen(self.command(), stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while not self.is_ready(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.name} didn't start: {self.log()}")
            time.sleep(_LOOK_SECONDS)

    def stop(self, number: int = signal.SIGINT) -> None:
        """Tell the server to stop, and wait for its end; nothing where it doesn't run."""
        process, self._process = self._process, None
        if process is None:
            return
        self.resume()
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            kill_processes_in(self.directory)
            process.wait()

    def close(self) -> None:
        """Stop the server and remove its files."""
        try:
            self.stop()
        finally:
            kill_processes_in(self.directory)
            self._watcher.kill()
            self._watcher.wait()
            shutil.rmtree(self.directory, ignore_errors=True)

    def pause(self) -> None:
        """Stop the clocks of all its processes: the kernel still takes connections for it, but nothing answers."""
        signal_processes_in(self.directory, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        signal_processes_in(self.directory, signal.SIGCONT)

    @property
    def pid(self) -> int:
        """The server's first process."""
        assert self._process is not None, f"{self.name} doesn't run"
        return self._process.pid

    def log(self) -> str:
        """The end of what the server has printed."""
        return (self.directory / "log").read_text(errors="replace")[-4000:]

    def can_run(self, command: Sequence[str]) -> bool:
        """Whether the server's user may start this program, and it succeeds."""
        try:
            self._run(command)
        except (PermissionError, RuntimeError):
            return False
        return True

    def _run(self, command: Sequence[str]) -> None:
        with self._popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            output, _ = process.communicate(timeout=START_SECONDS)
        if process.returncode:
            raise RuntimeError(f"{command[0]} failed with {process.returncode}: {output.decode(errors='replace')}")

    def _popen(self, command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        if self._user is not None:
            options |= {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.directory)}
        # A session of its own: Ctrl-C is for pytest alone, which then stops the server in order.
        return subprocess.Popen(command, cwd=self.directory, env=env, start_new_session=True, **options)  # type: ignore[call-overload,no-any-return]

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)


def free_port() -> int:
    """A TCP port on which nobody listens, below those that the kernel gives to clients: free again after a restart too."""
    first_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    for _ in range(1_000):
        port = random.randrange(max(1_024, first_of_clients - 16_000), max(1_025, first_of_clients))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no TCP port is free on 127.0.0.1")


def processes_in(directory: Path) -> Iterator[int]:
    """The processes that work in the directory or below it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # ended, or another user's
            if Path(os.readlink(entry / "cwd")).is_relative_to(directory):
                yield int(entry.name)


def signal_processes_in(directory: Path, number: int) -> bool:
    """Send the signal to all of them; whether there were any."""
    pids = list(processes_in(directory))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return bool(pids)


def kill_processes_in(directory: Path) -> None:
    """SIGKILL until none is left, or for some seconds."""
    until = time.monotonic() + STOP_SECONDS
    while signal_processes_in(directory, signal.SIGKILL) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)


def _watch(pid: int, directory: Path) -> None:
    """Wait for the end of the process, then end all in the directory, and remove it."""
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        select.select([os.pidfd_open(pid)], [], [])
    signal_processes_in(directory, signal.SIGCONT)
    signal_processes_in(directory, signal.SIGQUIT)  # PostgreSQL then removes its shared memory
    until = time.monotonic() + _QUIT_SECONDS
    while any(processes_in(directory)) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    kill_processes_in(directory)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), Path(sys.argv[2]))
