from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from processes import wait_until

pytest.importorskip("awslambdaric")

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"
HEADINGS = 2  # the headings' line and the one below it
PROGRAMS = 1  # boto3; a run in full has pandas too, where that is installed
BOUNDED = 2 if shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin") else 1  # a budget and, likewise, PgBouncer

ROWS = {
    "overhead of `isolated` over the bare handler, scratch never touched": 1,
    "the watch over the deadline, armed and disarmed": 1,
    "`isolated`, one file written below": 2,
    "files left in scratch: answer delayed": 1,
    "files left in scratch: until all are removed": 1,
    "`from perinvoke import isolated`": 3,
    "`import perinvoke`": 1,
    "throughput of 8 workers": 3,
    "file lock, no contention": 4,
    "file lock, 2 processes, p50 wait": 4,
    "file lock, 2 processes, p99 wait": 4,
    "file lock, 2 processes, turns of the unluckiest process": 4,
    "file lock, 2 processes, most ÷ fewest turns": 4,
    "memory of 16 idle workers and their parent": PROGRAMS,
    "memory of 16 used workers and their parent": PROGRAMS,
    "memory of 16 used workers alone": PROGRAMS,
    "start until all 16 workers have polled": PROGRAMS,
    "first invocation of a worker": PROGRAMS,
    "a worker is killed in its invocation: until its caller is answered": 1,
    "a worker is killed in its invocation: until its replacement has polled": 1,
    "throughput of 16 workers, a handler that only answers, supervised": 1,
    "cold start of 1 worker": 5,
    "cold start of 8 workers": 5,
    "first invocation, route": 3,
    "database, one short transaction, throughput of 16 workers": 2 * BOUNDED,
    "database, one short transaction, latency p50": 1 + BOUNDED,
    "database, one short transaction, latency p99": 1 + BOUNDED,
    "database, one short transaction, most connections at once": 1 + BOUNDED,
    "database, one short transaction and 10 ms for a service, throughput of 16 workers": 2 * BOUNDED,
    "database, one short transaction and 10 ms for a service, latency p50": 1 + BOUNDED,
    "database, one short transaction and 10 ms for a service, latency p99": 1 + BOUNDED,
    "database, one short transaction and 10 ms for a service, most connections at once": 1 + BOUNDED,
    "DynamoDB, a lease taken and given back, requests": 1,
    "DynamoDB, a lease taken and given back, time:": 2,
    "DynamoDB, a lease taken and given back, processor time": 2,
    "DynamoDB, the first call of a key, requests": 1,
    "DynamoDB, the first call of a key, time:": 1,
    "DynamoDB, the first call of a key, processor time": 1,
    "DynamoDB, the replay of a call, requests": 1,
    "DynamoDB, the replay of a call, time:": 1,
    "DynamoDB, the replay of a call, processor time": 1,
    "DynamoDB, a versioned update, requests": 1,
    "DynamoDB, a versioned update, time:": 1,
    "DynamoDB, a versioned update, processor time": 1,
    "DynamoDB, 16 waiters of one lease, asked for meanwhile": 1,
    "DynamoDB, 16 waiters of one lease, from its release until all have had it": 1,
    "SQL, 1 hot row, writes per second": 3,
    "SQL, 1 hot row, p99 of a write": 3,
    "SQL, 10 hot rows, writes per second": 3,
    "SQL, 10 hot rows, p99 of a write": 3,
    "SQL, 100 hot rows, writes per second": 3,
    "SQL, 100 hot rows, p99 of a write": 3,
}


pytestmark = pytest.mark.slow  # the benchmarks run, if in brief


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run in brief wrote; the one that CI has just made, if it tells where."""
    made = os.environ.get("BENCHMARKS_PAGE")
    if made is not None:
        wait_until(Path(made).read_text, 100)  # it is written side by side with these tests
        return Path(made).read_text(encoding="utf-8")
    output = tmp_path_factory.mktemp("benchmarks") / "page.md"
    command = [sys.executable, str(RUN), "--quick", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return output.read_text(encoding="utf-8")


def cells_of(page: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][HEADINGS:]


@pytest.mark.parametrize(("what", "count"), ROWS.items())
def test_the_page_has_every_row(page: str, what: str, count: int) -> None:
    assert sum(what in cells[0] for cells in cells_of(page)) == count


def test_every_row_has_figures_beside_a_peer(page: str) -> None:
    rows = cells_of(page)
    assert len(rows) == sum(ROWS.values())
    for row in rows:
        _, median, p95, peer, its_median, its_p95, ratio = row[:7]
        assert peer
        assert all(any(digit.isdigit() for digit in figure) for figure in (median, p95, its_median, its_p95, ratio))


def test_every_target_has_a_verdict_and_every_miss_is_told_again_below_the_table(page: str) -> None:
    held = [cells for cells in cells_of(page) if len(cells) > 7 and cells[7][:1] in {"≤", "≥"}]
    assert held
    for cells in held:
        verdict = cells[8].rstrip(" |")
        assert verdict == "met" or f"- {cells[0]}: {verdict}" in page


def test_the_page_tells_where_the_figures_come_from(page: str) -> None:
    for name in ("date", "machine", "kernel", "file system", "Python", "packages"):
        assert f"- {name}" in page
    assert "What this does not prove" in page
    assert "A smoke run" in page
