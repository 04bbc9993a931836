"""The handlers of the demo, written as for ordinary Lambda: one invocation at a time, and nobody else in the temp directory.

With and without perinvoke it is this same file; what differs is only how the function is set up. The exception is ``shop``:
perinvoke can't know which module variables are meant for one invocation, so ``shop_declared`` declares them.
"""

# ruff: noqa: ARG001  # Lambda hands every handler an event and a context, used or not

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import field
from pathlib import Path
from typing import Any

from perinvoke import InvocationState


def journal(event: Any, context: Any) -> list[str]:
    """Note the request in a file, and for some seconds read again and again what the file says."""
    path = Path(tempfile.gettempdir()) / "journal.txt"
    with path.open("a", encoding="ascii") as file:
        file.write(f"{context.aws_request_id}\n")
    seen = set(path.read_text(encoding="ascii").split())
    end = time.monotonic() + event["seconds"]
    while time.monotonic() < end:
        time.sleep(0.05)
        seen.update(path.read_text(encoding="ascii").split())
    return sorted(seen)


def convert(event: Any, context: Any) -> int:
    """Write the payload to a file and read it back, several times; count how often another one was read."""
    path = Path(tempfile.gettempdir()) / "payload.txt"
    payload = f"{context.aws_request_id}\n" * event["lines"]
    corrupt = 0
    for _ in range(event["times"]):
        path.write_text(payload, encoding="ascii")
        time.sleep(0.002)  # whatever is done with the file
        corrupt += path.read_text(encoding="ascii") != payload
    return corrupt


def export(event: Any, context: Any) -> str:
    """Write a result that is read nowhere else, and forget to remove it."""
    path = Path(tempfile.gettempdir()) / f"export-{context.aws_request_id}.csv"
    path.write_text("a,b,c\n" * 100, encoding="ascii")
    return path.name


_basket: list[str] = []


def shop(event: Any, context: Any) -> list[str]:
    """Put something into a basket that should have been empty; tell what was in it before."""
    before = list(_basket)
    _basket.append(event["item"])
    return before


class Basket(InvocationState):
    """The same basket, declared: every invocation starts with an empty one."""

    items: list[str] = field(default_factory=list)


_declared = Basket()


def shop_declared(event: Any, context: Any) -> list[str]:
    """``shop``, with its basket in the invocation's state."""
    before = list(_declared.items)
    _declared.items.append(event["item"])
    return before


def log_in(event: Any, context: Any) -> str | None:
    """Hand the customer's name to libraries in an environment variable; tell which one was there before."""
    before = os.environ.get("CUSTOMER")
    os.environ["CUSTOMER"] = event["customer"]
    return before


def unpack(event: Any, context: Any) -> str:
    """Go where the files are to be unpacked; tell the directory that the invocation began in."""
    before = str(Path.cwd())
    os.chdir(tempfile.gettempdir())
    return before


def charge(event: Any, context: Any) -> None:
    """Work for a while, then charge the customer: a line in the books."""
    end = time.monotonic() + event["seconds"]
    while time.monotonic() < end:
        time.sleep(0.02)
    with Path(event["books"]).open("a", encoding="ascii") as books:
        books.write(f"{context.aws_request_id}\n")


def die(event: Any, context: Any) -> None:
    """Take too much memory; the kernel then does this."""
    os.kill(os.getpid(), signal.SIGKILL)
