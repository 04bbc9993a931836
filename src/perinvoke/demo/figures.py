"""What the demo measures: counts of what should never happen, and memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SHARE = 0.5  # of the bare workers' memory: with more, preloading would not be worth its name. Seen: about a third


@dataclass(frozen=True)
class Count:
    """How often it happened, out of how many times it could have."""

    count: int
    out_of: int

    def __str__(self) -> str:
        return f"{self.count} of {self.out_of}"


@dataclass(frozen=True)
class Memory:
    """What processes take together: the sum of their proportional set sizes, in which a shared page counts once."""

    byte_count: int

    def __str__(self) -> str:
        return f"{self.byte_count / 2**20:.0f} MiB"

    @classmethod
    def of(cls, pids: Iterable[int]) -> Memory:
        """The memory of the processes with these ids.

        Raises:
            OSError: one of them has ended, or isn't ours.
        """
        return cls(sum(_pss_bytes(Path(f"/proc/{pid}")) for pid in pids))


Figure = Count | Memory


def _pss_bytes(process: Path) -> int:
    """The kernel's sum where it keeps one (Linux 4.14), else the sum over all mappings; proc(5)."""
    rollup = process / "smaps_rollup"
    lines = (rollup if os.access(rollup, os.R_OK) else process / "smaps").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
