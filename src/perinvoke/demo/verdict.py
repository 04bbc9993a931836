"""What the figures say: whether perinvoke held what it promises, and whether the experiment could have shown that it didn't."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perinvoke.demo.figures import MAX_SHARE, Count, Memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perinvoke.demo.experiment import Finding


def problems(findings: Sequence[Finding]) -> list[str]:
    """Why the experiment failed, in sentences; empty when every hazard showed itself bare and none did with perinvoke."""
    leaks = [
        f"perinvoke failed: {finding.hazard.what}: {finding.protected} with perinvoke, where 0 is promised."
        for finding in findings
        if isinstance(finding.protected, Count) and finding.protected.count != 0
    ]
    unproven = [
        f"Nothing proven: {finding.hazard.what}: it did not happen to the bare handler either ({finding.bare}). Try again."
        for finding in findings
        if isinstance(finding.bare, Count) and finding.bare.count == 0
    ]
    too_large = [
        f"perinvoke failed: {finding.hazard.what}: {finding.protected}, more than {MAX_SHARE:.0%} of {finding.bare}."
        for finding in findings
        if (share := memory_share(finding)) is not None and share > MAX_SHARE
    ]
    return leaks + unproven + too_large


def memory_share(finding: Finding) -> float | None:
    """What the workers take with perinvoke, as a share of what they take bare; None where the finding is about something else."""
    if not (isinstance(finding.bare, Memory) and isinstance(finding.protected, Memory)):
        return None
    return finding.protected.byte_count / finding.bare.byte_count
