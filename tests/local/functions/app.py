"""Handlers that the tests run on the real runtime."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

logging.getLogger().setLevel(logging.INFO)
not_callable = 42
importer = os.getpid()


def echo(event: Any, context: Any) -> dict[str, Any]:
    client_context = context.client_context
    return {
        "event": event,
        "pid": os.getpid(),
        "request_id": context.aws_request_id,
        "remaining_ms": context.get_remaining_time_in_millis(),
        "tenant_id": context.tenant_id,
        "custom": client_context.custom if client_context else None,
        "identity": context.identity.cognito_identity_id,
        "arn": context.invoked_function_arn,
        "trace_id": os.environ.get("_X_AMZN_TRACE_ID"),
    }


def variables(event: Any, context: Any) -> dict[str, Any]:
    return {"environ": dict(os.environ), "cwd": str(Path.cwd())}


def fail(event: Any, context: Any) -> None:
    raise ValueError(event.get("message", "as asked"))


def not_json(event: Any, context: Any) -> object:
    return object()


def large(event: Any, context: Any) -> str:
    size: int = event["bytes"]
    return "x" * (size - 2)  # two more are the quotes


def nap(event: Any, context: Any) -> str:
    """Tell by a file that it began, sleep, tell by another that it went on to the end."""
    folder = Path(event["folder"])
    (folder / f"{event.get('name', 'nap')}.began").touch()
    time.sleep(event["seconds"])
    (folder / f"{event.get('name', 'nap')}.done").touch()
    return "rested"


def talk(event: Any, context: Any) -> str:
    sys.stdout.write("printed\n")
    sys.stderr.write("to stderr\n")
    logging.getLogger().info("logged")
    sys.stdout.write("without a newline")
    return "said"


def die(event: Any, context: Any) -> None:
    os._exit(3)


def begin(event: Any, context: Any) -> int:
    """Write down which invocation began in which process, in one write; work for a moment; print; end the process if asked to."""
    with Path(event["path"]).open("a", buffering=1) as file:
        file.write(f"{context.aws_request_id} {os.getpid()}\n")
    time.sleep(event.get("seconds", 0))
    sys.stdout.write(f"in {os.getpid()}\n")
    if event.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def fork_and_die(event: Any, context: Any) -> int:
    """``begin``; but before it ends the process it leaves a forked child that has copies of the worker's connections."""
    if event.get("die") and os.fork() == 0:
        time.sleep(600)
    return begin(event, context)


def who_imported(event: Any, context: Any) -> int:
    return importer


def die_once(event: Any, context: Any) -> int:
    """End the process, if no other one of this environment has."""
    marker = Path(os.environ["_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET"]).with_name("died")
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def detach(event: Any, context: Any) -> int:
    """Leave a process behind that has a session of its own and doesn't mind SIGTERM."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process.pid


def ignore_sigterm(event: Any, context: Any) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return os.getpid()


def fork_holding_connections(event: Any, context: Any) -> int:
    """Leave a forked child that has copies of the worker's connections."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    return os.getpid()


def say_goodbye(event: Any, context: Any) -> None:
    """On SIGTERM think for a moment, then write a file."""

    def write(*_: object) -> None:
        time.sleep(0.1)
        Path(event["path"]).write_text("written after SIGTERM")
        os._exit(0)

    signal.signal(signal.SIGTERM, write)


def chatter(event: Any, context: Any) -> None:
    for number in range(1_000):
        sys.stdout.write(f"line {number}\n")


def flood(event: Any, context: Any) -> str:
    """Print more than a pipe holds, and take so long."""
    time.sleep(event.get("seconds", 0))
    for _ in range(1_000):
        sys.stdout.write("x" * 200 + "\n")
    return "printed"
