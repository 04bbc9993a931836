"""A POSIX timer that sends a real-time signal to one thread. Linux only.

Not ``setitimer``: a process has one of those, and one ``SIGALRM``, and both are the handler's. A process may have many POSIX
timers, and Python's ``signal`` module knows nothing of them, so they are made through ctypes. They are not inherited over a fork
or an exec.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# time.h and signal.h of Linux; the same for x86_64 and arm64, in glibc and musl.
_CLOCK_MONOTONIC = 1
_SIGEV_THREAD_ID = 4
_SIGEVENT_BYTES = 64
_LEAST_SECONDS = 1e-6  # 0 would stop the timer
# The highest real-time signals first: programs that use some begin at SIGRTMIN. The last few are left to debuggers and runtimes.
_BELOW_SIGRTMAX = range(3, 20)


class _Sigevent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal_number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread_id", ctypes.c_int),
        ("padding", ctypes.c_char * 44),
    )


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class TimerUnavailable(Exception):
    """There can be no such timer here."""


class ProcessTimer:
    """One timer; lives until ``close`` or as long as the process, and in no forked child. Used by the thread that made it.

    Args:
        signal_number: what it sends.
        again_seconds: sent again and again after that, until it is set anew or stopped; 0: sent once.

    Raises:
        TimerUnavailable: not on Linux, or the kernel has no timer left (RLIMIT_SIGPENDING).
    """

    def __init__(self, signal_number: int, again_seconds: float = 0.0) -> None:
        if not sys.platform.startswith("linux") or ctypes.sizeof(_Sigevent) != _SIGEVENT_BYTES:
            raise TimerUnavailable("POSIX timers need Linux on a 64-bit machine")
        library = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock, which costs more to give up than the call
        try:
            self._settime, self._delete, create = library.timer_settime, library.timer_delete, library.timer_create
        except AttributeError as error:  # glibc before 2.34 has them in librt
            raise TimerUnavailable("the C library has no timer_create") from error
        self._id = ctypes.c_void_p()  # may be a null pointer even when it is open
        self._open = False
        self._settime.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        event = _Sigevent(0, signal_number, _SIGEV_THREAD_ID, threading.get_native_id())
        if create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._id)):
            raise TimerUnavailable(f"timer_create failed with errno {ctypes.get_errno()}")
        self._open = True
        self._spec = _Itimerspec(0, int(again_seconds * 1e9), 0, 0)
        self._reference = ctypes.byref(self._spec)

    def set(self, seconds: float) -> None:
        """Send the signal so many seconds from now; what was set before is forgotten. Takes about 2 µs."""
        if not self._open:
            return
        seconds = max(_LEAST_SECONDS, seconds)
        self._spec.seconds = whole = int(seconds)
        self._spec.nanoseconds = int((seconds - whole) * 1e9)
        self._settime(self._id, 0, self._reference, None)

    def stop(self) -> None:
        """Send nothing."""
        if not self._open:
            return
        self._spec.seconds = self._spec.nanoseconds = 0
        self._settime(self._id, 0, self._reference, None)

    def close(self) -> None:
        """Give the timer back; idempotent."""
        if self._open:
            self._open = False
            self._delete(self._id)


def free_signal(taken: Callable[[Any], bool], but: int = 0) -> int:
    """A real-time signal ``but`` that one, which nobody in this process handles, or whose handler is ``taken`` for ours.

    Raises:
        TimerUnavailable: there is none.
    """
    if not sys.platform.startswith("linux"):
        raise TimerUnavailable("POSIX timers need Linux")
    for below in _BELOW_SIGRTMAX:
        number = int(signal.SIGRTMAX) - below
        handler = signal.getsignal(number)
        if number != but and (handler is signal.SIG_DFL or taken(handler)):
            return number
    raise TimerUnavailable("every real-time signal is in use")
