"""Starts the runtime, or an extension, below its keeper and speaks with the keeper."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from perinvoke.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

KEEPER = Path(__file__).with_name("keeper.py")
GRACE_SECONDS = 1.0  # between SIGTERM and SIGKILL: enough for a handler's own SIGTERM handler, short enough for Ctrl-C
END_SECONDS = GRACE_SECONDS + 15.0  # the keeper's own bounds and some more; only a keeper that hangs exceeds it


class RuntimeProcess:
    """The runtime's parent process, or an extension, and everything below it. Lives as long as its execution environment.

    ``on_exit`` is called once, in the event loop, with the exit code, or None when only the keeper's end is known. ``output`` is
    a file descriptor for what it writes; the workers have log sockets of their own.
    """

    def __init__(self, keeper: subprocess.Popen[bytes], control: socket.socket, on_exit: Callable[[int | None], None]) -> None:
        self._keeper = keeper
        self._control = control
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._heard = b""
        self._ended = False
        self.pid: asyncio.Future[int] = self._loop.create_future()
        control.settimeout(0)
        self._loop.add_reader(control, self._hear)

    def __repr__(self) -> str:
        return f"<RuntimeProcess keeper={self._keeper.pid} pid={self.pid!r}>"

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        directory: Path,
        env: Mapping[str, str],
        folder: Path,
        output: int,
        on_exit: Callable[[int | None], None],
    ) -> Self:
        """Start ``command`` in ``directory``; ``folder`` is removed when all is over."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                keeper = subprocess.Popen(  # noqa: S603 - the command is what the user asked to run
                    [
                        # Without site-packages and the user's variables: nothing of the function's may run in the keeper.
                        *(sys.executable, "-I", "-S", str(KEEPER)),
                        *(str(theirs.fileno()), str(folder), str(GRACE_SECONDS)),
                        *command,
                    ],
                    cwd=directory,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # a Ctrl-C in the terminal must not reach it
                )
        except OSError as error:
            ours.close()
            raise LocalError(f"can't start a process in {directory}: {error.strerror or error}") from error
        except BaseException:
            ours.close()
            raise
        return cls(keeper, ours, on_exit)

    def kill(self) -> None:
        """End everything without grace; returns at once. ``stop`` still has to be called."""
        self._keeper.send_signal(signal.SIGUSR1)

    async def stop(self) -> None:
        """End everything; returns when no process is left. SIGTERM first, SIGKILL after a second. Idempotent."""
        if self._keeper.returncode is not None:
            return
        self._ended = True
        self._loop.remove_reader(self._control)
        try:
            self._control.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the keeper is gone
        try:
            await self._keeper_end()
        except asyncio.CancelledError:
            self.kill_and_wait()
            raise
        finally:
            self._close()

    async def _keeper_end(self) -> None:
        ended = asyncio.Event()
        pidfd = os.pidfd_open(self._keeper.pid)
        self._loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(END_SECONDS):
                await ended.wait()
        except TimeoutError:
            self._keeper.kill()
        finally:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def kill_and_wait(self) -> None:
        """End everything without grace and wait for it, blocking the loop: the second Ctrl-C."""
        self.kill()
        try:
            self._keeper.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()

    def _close(self) -> None:
        self._control.close()
        code = self._keeper.wait()
        if code != 0 and self.pid.done() and not self.pid.cancelled():
            self._kill_group(self.pid.result())
        self.pid.cancel()

    @staticmethod
    def _kill_group(pid: int) -> None:
        """The keeper was killed: the group is all that can still be reached."""
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass

    def _hear(self) -> None:
        try:
            data = self._control.recv(256)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._obey(line.decode())
        if not data:
            self._loop.remove_reader(self._control)
            self._report_exit(None)

    def _obey(self, line: str) -> None:
        word, _, number = line.partition(" ")
        if word == "started":
            self.pid.set_result(int(number))
        else:
            self._report_exit(int(number))

    def _report_exit(self, code: int | None) -> None:
        if not self._ended:
            self._ended = True
            self._on_exit(code)
