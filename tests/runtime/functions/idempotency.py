"""A queue's consumer: its effect is a line in a ledger, once for each message. Who is about to have it can be told by a lock."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

from perinvoke import boto3_client, isolated
from perinvoke.fleet.dynamodb import idempotent, process_records

TABLE = os.environ["TABLE"]
LEDGER = os.environ["LEDGER"]
WINDOWS = os.environ["WINDOWS"]  # a folder; who holds the lock on a worker's file there keeps it from having its effect

boto3_client("dynamodb")  # at init: with preload before the fork, without a connection


class Window:
    """From just before the effect to after its completion; lives as long as one message is processed."""

    def __init__(self) -> None:
        self._fd: int | None = None

    def enter(self) -> None:
        self._fd = os.open(f"{WINDOWS}/{os.getpid()}", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def leave(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


@idempotent(TABLE, "messageId", max_clock_skew_seconds=0.1, timeout=0.2)
def pay(record: dict[str, Any], request_id: str, window: Window) -> dict[str, Any]:
    """The effect is one write, which is there as a whole or not at all."""
    window.enter()
    line = f"{record['messageId']} {request_id} {os.getpid()}\n".encode()
    fd = os.open(LEDGER, os.O_WRONLY | os.O_APPEND)
    try:
        assert os.write(fd, line) == len(line)
    finally:
        os.close(fd)
    time.sleep(float(record["body"]))
    return {"run": request_id}


@isolated
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Pay, or learn who has; what is still being paid elsewhere is reported, to be delivered again."""
    runs = {}

    def process(record: dict[str, Any]) -> None:
        window = Window()
        try:
            runs[record["messageId"]] = pay(record, context.aws_request_id, window)["run"]
        finally:
            window.leave()

    return {**process_records(event, process), "runs": runs}
