"""Whether the kernel killed a worker for want of memory."""

from __future__ import annotations

import signal
from pathlib import Path

_KILLED = -signal.SIGKILL


class OutOfMemory:
    """The kernel's counters of processes it killed for want of memory. Lives as long as the parent.

    Two counters: that of the parent's own memory cgroup (cgroups(7): ``memory.events``, or ``memory.oom_control`` of version 1)
    and the machine's (``/proc/vmstat``), which also counts for a cgroup below or beside it. Another process's end may so be taken
    for a worker's, if within two seconds somebody kills that worker by SIGKILL.
    """

    def __init__(self, files: list[Path] | None = None) -> None:
        self._files = [Path("/proc/vmstat"), *_cgroup_files()] if files is None else files
        self._seen = self._latest = self._counts()

    def killed(self, code: int) -> bool:
        """Whether a process that ended with ``code`` was among those that the kernel killed lately. Each counts once."""
        if code != _KILLED:
            return False
        counts = self._counts()
        more = [count > seen for count, seen in zip(counts, self._seen, strict=True)]
        self._seen = [seen + one for seen, one in zip(self._seen, more, strict=True)]
        return any(more)

    def tick(self) -> None:
        """Once a second: what was counted before the last tick, and was no worker, is not to be taken for one."""
        self._seen = [max(seen, latest) for seen, latest in zip(self._seen, self._latest, strict=True)]
        self._latest = self._counts()

    def _counts(self) -> list[int]:
        return [_count(file) for file in self._files]


def _count(file: Path) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:  # not on this machine
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _cgroup_files() -> list[Path]:
    """Where this process's memory cgroup counts. In a container its path may be the host's, and its folder the root."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        folders = dict.fromkeys((path.rstrip("/"), ""))
        if "memory" in controllers.split(","):
            files += [Path(f"/sys/fs/cgroup/memory{folder}/memory.oom_control") for folder in folders]
        elif number == "0":
            files += [Path(f"/sys/fs/cgroup{folder}/memory.events") for folder in folders]
    return files
