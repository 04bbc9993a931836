"""How a process ended that is not a child of this one, as far as the kernel tells."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

# pidfd_info of linux/pidfd.h, first version: mask, cgroup, eleven ids, exit code. Linux 6.15 and later tell the code, and only of
# a process that was reaped.
_INFO = struct.Struct("QQ11Ii")
_PIDFD_GET_INFO = 0xC000FF0B | _INFO.size << 16
_PIDFD_INFO_EXIT = 8
_STAT_STATE, _STAT_EXIT_CODE = 0, 49  # proc_pid_stat(5), counted after the name


def exit_code(pid: int, pidfd: int) -> int | None:
    """The exit code of a process that has ended, negative for a signal; None where that can't be told."""
    status = _of_zombie(pid)
    if status is None:
        status = _of_reaped(pidfd)
    return None if status is None else os.waitstatus_to_exitcode(status)


def _of_zombie(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[_STAT_EXIT_CODE]) if fields[_STAT_STATE] == b"Z" else None


def _of_reaped(pidfd: int) -> int | None:
    try:
        answer = fcntl.ioctl(pidfd, _PIDFD_GET_INFO, _INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    except OSError:
        return None
    mask, *_, status = _INFO.unpack(answer)
    return int(status) if mask & _PIDFD_INFO_EXIT else None
