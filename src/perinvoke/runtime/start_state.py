"""What a process keeps when it executes a program, and an import may have changed: to begin anew it has to be put back."""

from __future__ import annotations

import os
import signal

from perinvoke.stdlib_resource import resource


class StartState:
    """The state of this process when it was made; lives until the first fork. For the main thread."""

    def __init__(self) -> None:
        self.environ = dict(os.environ)
        self._directory = os.getcwd()  # noqa: PTH109  # given back to chdir as it is
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._ignored = _ignored()
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)

    def restore(self) -> None:
        """Put everything back but the environment variables, which ``environ`` holds; file descriptors close by themselves."""
        os.chdir(self._directory)
        os.umask(self._umask)
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for number in _ignored() - self._ignored:
            signal.signal(number, signal.SIG_DFL)
        self.restore_descriptors()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)  # last: what was blocked may come now

    def restore_descriptors(self) -> None:
        """Allow as many file descriptors as at the start."""
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files)


def allow_descriptors(count: int) -> bool:
    """Raise the limit of this process, if need be; whether that may be done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return True
    if hard != resource.RLIM_INFINITY and hard < count:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return True


def _ignored() -> set[signal.Signals]:
    return {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
