"""Tells which process is at the other end of a loopback connection."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_ESTABLISHED = "01"
_NEWEST = 16  # descriptors that a handler's module may have opened after the connection, and some more
# Fields of a line of /proc/net/tcp, proc_pid_net(5): local address, remote address, state, ..., inode.
_LOCAL, _REMOTE, _STATE, _INODE = 1, 2, 3, 9


def owner_of(port: int, server_port: int, *, likely: Iterable[int], possible: Iterable[int]) -> int | None:
    """The process that connected from ``port`` to ``server_port``; None where that can't be told.

    A worker inherits a descriptor for each of its elder siblings, so with hundreds of workers a search through everything takes
    seconds. A connection that was just made is among the highest descriptors: those of the likely processes are looked at first.
    """
    inode = socket_inode(port, server_port)
    if inode is None:
        return None
    quick = (pid for pid in likely if holds_socket(pid, inode, newest=_NEWEST))
    thorough = (pid for pid in possible if holds_socket(pid, inode))
    return next(itertools.chain(quick, thorough), None)


def socket_inode(port: int, server_port: int) -> str | None:
    """The inode of the connecting end."""
    try:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return None
    ends = (f":{port:04X}", f":{server_port:04X}")
    for fields in map(str.split, lines):
        if fields[_LOCAL].endswith(ends[0]) and fields[_REMOTE].endswith(ends[1]) and fields[_STATE] == _ESTABLISHED:
            return fields[_INODE]
    return None


def holds_socket(pid: int, inode: str, *, newest: int | None = None) -> bool:
    """Whether the process has the socket open, among its ``newest`` highest descriptors if given."""
    wanted = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    try:
        numbers = sorted(map(int, os.listdir(folder)), reverse=True)  # noqa: PTH208 - names are enough
    except OSError:  # gone, or another user's
        return False
    return any(_target(f"{folder}/{number}") == wanted for number in numbers[:newest])


def _target(link: str) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - not a path
    except OSError:  # closed in the meantime
        return ""
