"""The figures of a budget as CloudWatch embedded metrics: a line of JSON on stdout, about once a minute for all workers together.

Who ends an invocation looks whether a minute has passed since any worker told the figures. A lock file remembers when that was,
and what the counters stood at, so that each line tells what has happened since the last one. Without invocations there are no
lines. The format is CloudWatch's: Embedded metric format, in its user guide.
"""

from __future__ import annotations

import json
import os
import time

from perinvoke.environment.connections.board import percentile
from perinvoke.environment.kernel_lock import LOCK_FILE, try_lock
from perinvoke.environment.names import boot_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from perinvoke.environment.connections.figures import Stats

# Seconds. CloudWatch's own resolution, and few enough lines to cost nothing.
PERIOD_SECONDS = 60.0
METRICS = "metrics"  # the file's name in the budget's directory
NAMESPACE = "perinvoke"
_COUNTERS = ("waits", "connects", "reconnects", "resets", "leaks", "timeouts")
_GAUGES = ("max_connections", "open", "in_use", "waiting")
_MAX_BYTES = 65_536


def due_line(path: str, stats: Stats, function_name: str, *, period_seconds: float = PERIOD_SECONDS) -> str | None:
    """The line for the budget in the directory ``path``, if it is due and no other worker is just telling it. Doesn't block.

    Raises:
        OSError: the file can't be read or written.
    """
    fd = os.open(f"{path}/{METRICS}", LOCK_FILE | os.O_CREAT, 0o600)
    try:
        if not try_lock(fd):
            return None
        now = boot_ns() / 1e9
        before = _decoded(os.pread(fd, _MAX_BYTES, 0))
        if before is not None and 0 <= now - before["at"] < period_seconds:
            return None
        noted = {"at": now, "waited": list(stats.wait_counts), **{name: getattr(stats, name) for name in _COUNTERS}}
        data = json.dumps(noted).encode()
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)
    return emf_line(stats, before, function_name, time.time())


def emf_line(stats: Stats, before: dict[str, Any] | None, function_name: str, epoch: float) -> str:
    """The line: gauges as they are, counters and waits since ``before``, or since the beginning."""
    since = {name: _since(getattr(stats, name), 0 if before is None else before[name]) for name in _COUNTERS}
    earlier = [0] * len(stats.wait_counts) if before is None else before["waited"]
    waited = [_since(count, was) for count, was in zip(stats.wait_counts, earlier, strict=True)]
    values: dict[str, tuple[float, str]] = {
        **{_camel(name): (getattr(stats, name), "Count") for name in _GAUGES},
        **{_camel(name): (count, "Count") for name, count in since.items()},
        "WaitP50": (round(percentile(waited, 0.5) * 1000, 3), "Milliseconds"),
        "WaitP99": (round(percentile(waited, 0.99) * 1000, 3), "Milliseconds"),
    }
    directive = {
        "Namespace": NAMESPACE,
        "Dimensions": [["FunctionName", "Pool"]],
        "Metrics": [{"Name": name, "Unit": unit} for name, (_, unit) in values.items()],
    }
    return json.dumps(
        {
            "_aws": {"Timestamp": round(epoch * 1000), "CloudWatchMetrics": [directive]},
            "FunctionName": function_name,
            "Pool": stats.name,
            **{name: value for name, (value, _) in values.items()},
        }
    )


def _since(now: int, before: int) -> int:
    """How much was counted; a board that was begun anew counts from nought."""
    return now - before if now >= before else now


def _decoded(data: bytes) -> dict[str, Any] | None:
    """What an earlier worker noted; None where that isn't whole."""
    try:
        noted = json.loads(data)
        counts = [noted["at"], *(noted[name] for name in _COUNTERS), *noted["waited"]]
    except (ValueError, KeyError, TypeError):
        return None
    return noted if all(isinstance(count, int | float) for count in counts) else None


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
