"""Threads that Python doesn't know, as a library in C starts them."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)


def start(count: int) -> None:
    for _ in range(count):
        thread = ctypes.c_ulong()
        assert _libc.pthread_create(ctypes.byref(thread), None, _libc.sleep, ctypes.c_void_p(600)) == 0
