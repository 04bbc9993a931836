"""A function that writes, reads back and lists files whose names are the same in every invocation."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from perinvoke import InvocationState, current, isolated, scratch

SIZE = 20_000


class Seen(InvocationState):
    """What an earlier invocation must not leave here."""

    by: str = ""


seen = Seen()


@isolated
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Report every foreign byte, name and value this invocation came upon."""
    own = f"{event['number']:08d}" * (SIZE // 8)
    directory = Path(tempfile.gettempdir())
    names_before = sorted(os.listdir(directory))
    for name in ("test.txt", "sub/test.txt"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(own)
    time.sleep(event.get("pause_seconds", 0))
    read_back = [(directory / name).read_text() for name in ("test.txt", "sub/test.txt")]
    leaked_state, leaked_variable = seen.by, os.environ.get("LEAK", "")
    seen.by = os.environ["LEAK"] = str(event["number"])
    return {
        "foreign_names": names_before + sorted(set(os.listdir(directory)) - {"test.txt", "sub"}),
        "foreign_bytes": sum(a != b for text in read_back for a, b in zip(text, own, strict=True)),
        "leaked_state": leaked_state,
        "leaked_variable": leaked_variable,
        "same_directory": str(scratch()) == str(directory),
        "exported": os.environ.get("TMPDIR") == str(directory),
        "request_id_matches": current().request_id == context.aws_request_id,
        "pid": os.getpid(),
        "directory": str(directory),
    }
