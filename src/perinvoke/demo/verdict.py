"""What the figures say: whether isolation held, and whether the experiment could have shown that it didn't."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perinvoke.demo.experiment import Finding


def problems(findings: Sequence[Finding]) -> list[str]:
    """Why the experiment failed, in sentences; empty when every hazard showed itself bare and none did isolated."""
    leaks = [
        f"Isolation failed: {finding.hazard.what}: {finding.isolated} when isolated, where 0 is promised."
        for finding in findings
        if finding.isolated.count != 0
    ]
    unproven = [
        f"Nothing proven: {finding.hazard.what}: it did not happen to the bare handler either ({finding.bare}). Try again."
        for finding in findings
        if finding.bare.count == 0
    ]
    return leaks + unproven
