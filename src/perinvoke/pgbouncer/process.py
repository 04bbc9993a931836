"""One PgBouncer process: started as a child that can't outlive the extension, signalled, reaped."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from perinvoke.environment.connections.pgbouncer import SOCKET
from perinvoke.pgbouncer.binary import child_variables
from perinvoke.pgbouncer.ini import INI

if TYPE_CHECKING:
    from perinvoke.pgbouncer.binary import Binary
    from perinvoke.pgbouncer.directory import Directory
    from perinvoke.pgbouncer.identity import Identity

_PR_SET_PDEATHSIG = 1
_NOT_STARTED = 126  # as shells say it
# What Python ignores or the extension handles; a program that is executed inherits what is ignored.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)


class Process:
    """Lives as long as the process that it started; ``output`` is the descriptor to read its log from, which doesn't block.

    Its end is told by SIGCHLD; ``reap`` then says how.
    """

    def __init__(self, binary: Binary, directory: Directory, identity: Identity) -> None:
        self._directory = directory
        self.exit_code: int | None = None
        self.output, writing = os.pipe()
        os.set_blocking(self.output, False)
        parent = os.getpid()
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(binary, directory, identity, output=writing, parent=parent)
        except OSError:
            os.close(self.output)
            raise
        finally:
            os.close(writing)

    def __repr__(self) -> str:
        return f"<Process pid={self.pid} exit_code={self.exit_code}>"

    def reap(self) -> bool:
        """Whether it has ended; ``exit_code`` then says how, negative for a signal. Doesn't block."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if not self.reap():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, and wait for that. Idempotent."""
        if not self.reap():
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self.exit_code = os.waitstatus_to_exitcode(status)

    def accepts(self) -> bool:
        """Whether its socket takes connections. Doesn't block."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(0)
            try:
                client.connect(f"{self._directory.path}/{SOCKET}")
            except OSError:
                return False
        return True

    def close(self) -> None:
        """Give up the descriptor of its log. Idempotent."""
        if self.output >= 0:
            os.close(self.output)
            self.output = -1


def _become(binary: Binary, directory: Directory, identity: Identity, *, output: int, parent: int) -> NoReturn:
    """In the child: become PgBouncer, or end with what was in the way as its log."""
    try:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # A group of its own: what ends the extension's group, or a terminal's Ctrl-C, must not cut off what could be drained.
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.set_inheritable(directory.lock_fd, True)  # noqa: FBT003 - the stdlib takes it by position
        os.fchdir(directory.fd)
        _allow_descriptors()
        identity.take()
        die_with(parent)  # after the change of the user, which would undo it
        # The first word is only a name: it tells who looks at the list of processes which PgBouncer this is.
        words = [f"{directory.path}/pgbouncer", INI]
        os.execve(binary.path, words, child_variables(os.environ))  # noqa: S606 - no shell is wanted
    except BaseException as error:  # noqa: BLE001 - the extension's code must not go on in its child
        with suppress(OSError):
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            os.write(2, f"FATAL {binary.path} can't be started: {reason}\n".encode())
    os._exit(_NOT_STARTED)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends, also by SIGKILL; and end now if it has. It must have one thread."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(_NOT_STARTED)


def _allow_descriptors() -> None:
    """As many as the system lets it have; PgBouncer tells in its log when they are too few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
