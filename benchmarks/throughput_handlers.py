"""The handlers of the throughput benchmark, imported by the runtime's workers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

_TEXT = "0123456789abcdef" * 16


def trivial(event: Any, context: Any) -> Any:
    """Nothing but the way there and back."""
    return event


def one_file(event: Any, context: Any) -> int:
    """One file with a fixed name, as code for one invocation at a time is written; for the isolated environment."""
    path = Path(tempfile.gettempdir()) / "work.txt"
    path.write_text(_TEXT, encoding="ascii")
    return len(path.read_text(encoding="ascii"))


def one_unique_file(event: Any, context: Any) -> int:
    """The same made safe by hand, with a name of its own and a removal; for the bare environment."""
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(_TEXT)
        file.flush()
        return len(Path(file.name).read_text(encoding="ascii"))


def waiting(event: Any, context: Any) -> Any:
    """10 ms for a service to answer, which is what most handlers do most of the time."""
    time.sleep(0.01)
    return event
