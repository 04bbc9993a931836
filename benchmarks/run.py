"""Run every benchmark and write one page, ``RESULTS.md``; what ``make bench`` does."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cold_start
import connections
import dynamodb
import file_locks
import overhead
import sql_conflicts
import workers
from results import page, show

# Each has findings(*, quick, folder) -> Findings, and writes only below the folder it is given.
BENCHMARKS = (overhead, file_locks, workers, cold_start, connections, dynamodb, sql_conflicts)

_RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    """Run all benchmarks. A missed target is written down; it isn't a failure of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RESULTS.md beside this file, with --quick nothing")
    options = parser.parse_args()
    output = options.output or (None if options.quick else _RESULTS)

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="perinvoke-bench-", ignore_cleanup_errors=True) as folder:
        found = []
        for benchmark in BENCHMARKS:
            own_folder = Path(folder, benchmark.__name__)
            own_folder.mkdir()
            found.append(benchmark.findings(quick=options.quick, folder=own_folder))
        text = page(found, root=Path(folder), quick=options.quick)
    show("\n" + text)
    show(f"took {time.monotonic() - began:.0f} s")
    if output is not None:
        output.write_text(text, encoding="utf-8")
        show(f"written to {output}")


if __name__ == "__main__":
    main()
