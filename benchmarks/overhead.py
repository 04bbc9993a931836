"""What perinvoke costs: a worker's init, an invocation, its cleanup, and the throughput of a whole environment.

``python benchmarks/overhead.py`` prints it; ``make bench`` runs it with the others and writes ``RESULTS.md``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from imports import import_rows
from invocations import cleaning_rows, one_file_rows, untouched_rows, watch_rows
from results import Findings, page, show
from throughput import throughput_rows


@dataclass(frozen=True)
class _Effort:
    """How often everything is repeated."""

    untouched: int
    one_file: int
    cleaning: int
    files: int
    imports: int
    throughput: int
    requests: int
    untouched_calls: int = 100  # of each contender in a round: a few milliseconds, so that a round sees one state of the machine
    one_file_calls: int = 20  # the same


_FULL = _Effort(untouched=250, one_file=300, cleaning=7, files=10_000, imports=20, throughput=120, requests=120)
_QUICK = _Effort(untouched=5, one_file=3, cleaning=2, files=1_000, imports=2, throughput=2, requests=40)

_METHOD = (
    "Every contender takes its turn in every round. Median: of the rounds' means. Ratio: the median of the ratios in each round.",
    "p95: what 95 of 100 calls didn't exceed; of a rate, what 95 of 100 rounds reached.",
    "The invocation rows run in one process with awslambdaric's own LambdaContext, in a tight loop.",
    "The import rows are fresh processes that had loaded awslambdaric.__main__ and awslambdaric.bootstrap before.",
    "The throughput rows run awslambdaric's workers below `perinvoke.local`, both environments alive, in turns.",
)
_UNPROVEN = (
    "That it is as fast on AWS: nothing here ran there, and the file system of an execution environment is another one.",
    "What an invocation costs in a worker that was waiting: in a tight loop the caches are warm. Throughput includes that.",
    "Throughput on a machine of its own: the local runner and the load take about half of the processor time here.",
    "What removing a large tree takes from the invocations that follow: the removal runs beside them.",
)


def findings(*, quick: bool, folder: Path) -> Findings:
    """All rows, measured in one run; everything is written below ``folder``."""
    effort = _QUICK if quick else _FULL
    by_hand, root = folder / "by-hand", folder / "root"
    by_hand.mkdir()
    os.environ["PERINVOKE_ROOT"] = str(root)
    rows = []
    show("an invocation that touches no file ...")
    rows += untouched_rows(by_hand, rounds=effort.untouched, calls=effort.untouched_calls)
    show("the watch over the deadline ...")
    rows += watch_rows(rounds=effort.untouched, calls=effort.untouched_calls)
    show("one file ...")
    rows += one_file_rows(by_hand, rounds=effort.one_file, calls=effort.one_file_calls)
    show(f"cleaning {effort.files:,} files ...")
    rows += cleaning_rows(by_hand, root, rounds=effort.cleaning, files=effort.files)
    show("imports ...")
    rows += import_rows(rounds=effort.imports)
    show("throughput of the real runtime ...")
    rows += throughput_rows(folder, rounds=effort.throughput, requests=effort.requests)
    return Findings("Overhead", tuple(rows), _METHOD, _UNPROVEN)


def main() -> None:
    """Measure and print."""
    quick = "--quick" in sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="perinvoke-bench-", ignore_cleanup_errors=True) as folder:
        show(page([findings(quick=quick, folder=Path(folder))], root=Path(folder), quick=quick))


if __name__ == "__main__":
    main()
