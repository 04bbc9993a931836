"""A function written for one invocation at a time: it tells what it found of others, and leaves much behind itself."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import field
from pathlib import Path

from perinvoke import InvocationState


class Basket(InvocationState):
    items: list[str] = field(default_factory=list)


_basket = Basket()


def handler(event, context):
    if event.get("do") == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if event.get("do") == "stay":
        return stay(event)
    folder = Path(tempfile.gettempdir())
    found = {
        "files": sorted(path.name for path in folder.iterdir()),
        "variable": os.environ.get("CUSTOMER"),
        "folder": os.getcwd(),
        "items": list(_basket.items),
    }
    text = f"{context.aws_request_id}\n" * 1000
    (folder / "data.txt").write_text(text)
    _basket.items.append(event["item"])
    os.environ["CUSTOMER"] = event["item"]
    os.chdir(folder)
    time.sleep(0.02)
    return {**found, "own": (folder / "data.txt").read_text() == text, "temp": str(folder), "uid": os.getuid()}


def stay(event):
    end = time.monotonic() + event["seconds"]
    while time.monotonic() < end:
        time.sleep(0.02)
    Path(event["note"]).write_text("late")
