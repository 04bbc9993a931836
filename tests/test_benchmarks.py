from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("awslambdaric")

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"
HEADINGS = 2  # the headings' line and the one below it
PROGRAMS = 2 if importlib.util.find_spec("pandas") else 1  # boto3 and, where it is installed, pandas

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
}


pytestmark = pytest.mark.slow  # the benchmarks run, if in brief


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
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
