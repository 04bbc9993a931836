"""What importing perinvoke adds to a worker's init: rows of ``overhead.py``.

Each figure is one import in a fresh interpreter that has loaded what the runtime client loads before it imports the handler.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

from measure import interleaved
from results import Row, Target, Unit

_PROBE = """\
import time
import awslambdaric.__main__, awslambdaric.bootstrap
began = time.perf_counter()
{statement}
print(time.perf_counter() - began)
"""

_OURS = "from perinvoke import isolated"
_PEERS = ("import filelock", "import contextvars_extras", "import boto3")
_TARGET = Target(5e-3, Unit.MILLISECONDS)


def import_rows(*, rounds: int) -> list[Row]:
    """Imports in fresh processes; the rounds that don't count leave all byte code compiled."""
    statements = ("import perinvoke", _OURS, *_PEERS)
    found = interleaved({statement: functools.partial(_seconds_of, statement) for statement in statements}, rounds=rounds)
    rows = [
        Row(f"`{_OURS}`", Unit.MILLISECONDS, found[_OURS], f"`{peer}`", found[peer], _TARGET if peer == _PEERS[0] else None)
        for peer in _PEERS
    ]
    first = "import perinvoke"
    return [*rows, Row(f"`{first}`", Unit.MILLISECONDS, found[first], f"`{_PEERS[0]}`", found[_PEERS[0]], _TARGET)]


def _seconds_of(statement: str) -> list[float]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _PROBE.format(statement=statement)]
    return [float(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)]
