"""What ``isolated`` adds to an invocation, in this process: rows of ``overhead.py``.

The peer is the wrapper that people write by hand: it makes a ``TemporaryDirectory``, calls the handler and removes it. It sets
neither ``TMPDIR`` nor anything else, so it does less than half of the job.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awslambdaric.lambda_context import LambdaContext

from measure import Measured, interleaved, timed
from perinvoke import isolated, scratch
from results import Row, Target, Unit

if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[Any, Any], Any]
    Work = Callable[[str], None]  # what a handler does in the directory that is its own

_TEXT = "0123456789abcdef" * 16  # 256 bytes: the price of a file is its name, not its bytes
_FILES = 10_000
_GONE_SECONDS = 60.0  # far more than removing the files takes, so that a removal that hangs ends the benchmark


def context() -> LambdaContext:
    """What the real runtime client hands to a handler, with a deadline far away."""
    deadline_ms = int(time.time() * 1000) + 900_000
    arn = "arn:aws:lambda:us-east-1:123456789012:function:benchmark"
    return LambdaContext("8f5c0d3e-9a52-4d1c-b0a7-3f1f0e2c6d71", None, None, deadline_ms, arn)


def by_hand(work: Work, folder: Path) -> Handler:
    """The hand-written wrapper, around a handler that does its work in the directory."""

    def handler(event: Any, context: Any) -> Any:
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            work(directory)
            return event

    return handler


def untouched_rows(folder: Path, *, rounds: int, calls: int) -> list[Row]:
    """A handler that never looks at its directory."""

    def bare(event: Any, context: Any) -> Any:
        return event

    found = _measure(
        {"bare": bare, "isolated": isolated(bare), "by hand": by_hand(lambda _: None, folder)}, rounds=rounds, calls=calls
    )
    return [
        Row(
            "overhead of `isolated` over the bare handler, scratch never touched",
            Unit.MICROSECONDS,
            found["isolated"].above(found["bare"]),
            peer="overhead of the hand-written `TemporaryDirectory` wrapper",
            peer_measured=found["by hand"].above(found["bare"]),
            target=Target(15e-6, Unit.MICROSECONDS),
        )
    ]


def watch_rows(*, rounds: int, calls: int) -> list[Row]:
    """What the watch over the deadline costs: armed against ``on_timeout="off"``."""

    def bare(event: Any, context: Any) -> Any:
        return event

    found = _measure({"bare": bare, "armed": isolated(bare), "off": isolated(on_timeout="off")(bare)}, rounds=rounds, calls=calls)
    return [
        Row(
            "the watch over the deadline, armed and disarmed",
            Unit.MICROSECONDS,
            found["armed"].above(found["off"]),
            peer='all of `isolated(on_timeout="off")` over the bare handler',
            peer_measured=found["off"].above(found["bare"]),
            target=Target(3e-6, Unit.MICROSECONDS),
        )
    ]


def one_file_rows(folder: Path, *, rounds: int, calls: int) -> list[Row]:
    """A handler that writes one file, under a fixed name."""
    found = _measure(
        {
            "gettempdir": isolated(lambda event, context: _write(tempfile.gettempdir())),
            "by hand": by_hand(_write, folder),
            "scratch": isolated(lambda event, context: _write_below(scratch())),
            "by hand, Path": by_hand(lambda directory: _write_below(Path(directory)), folder),
        },
        rounds=rounds,
        calls=calls,
    )
    return [
        Row(
            f"`isolated`, one file written below {asked}",
            Unit.MICROSECONDS,
            found[ours],
            peer=f"hand-written `TemporaryDirectory` wrapper, {same}",
            peer_measured=found[theirs],
            target=Target(0.7),
        )
        for ours, asked, theirs, same in (
            ("gettempdir", "`tempfile.gettempdir()`", "by hand", "same file"),
            ("scratch", "`scratch()`", "by hand, Path", "same file by `pathlib`"),
        )
    ]


def _write(directory: str) -> None:
    with open(os.path.join(directory, "work.txt"), "w", encoding="ascii") as file:  # noqa: PTH118, PTH123  # pathlib is the other row
        file.write(_TEXT)


def _write_below(directory: Path) -> None:
    (directory / "work.txt").write_text(_TEXT, encoding="ascii")


def _measure(handlers: dict[str, Handler], *, rounds: int, calls: int) -> dict[str, Measured]:
    one_context = context()
    blocks = {
        name: functools.partial(timed, functools.partial(handler, {}, one_context), calls) for name, handler in handlers.items()
    }
    return interleaved(blocks, rounds=rounds, warm_up=3)


def cleaning_rows(folder: Path, root: Path, *, rounds: int, files: int = _FILES) -> list[Row]:
    """A handler that leaves many files: how long its answer waits for their removal, and when they are gone.

    Args:
        folder: where the hand-written wrapper makes its directories.
        root: ``PERINVOKE_ROOT``.
        rounds: that count.
        files: how many the handler leaves.
    """
    finished = 0.0
    gone: list[float] = []

    def work(directory: str) -> None:
        nonlocal finished
        for number in range(files):
            os.close(os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY))
        finished = time.perf_counter()

    def answered(handler: Handler) -> list[float]:
        handler({}, one_context)
        return [time.perf_counter() - finished]

    def answered_and_gone(handler: Handler) -> list[float]:
        seconds = answered(handler)
        _wait_gone(root)
        gone.append(time.perf_counter() - finished)
        return seconds

    one_context = context()
    ours = isolated(lambda event, context: work(tempfile.gettempdir()))
    theirs = by_hand(work, folder)
    blocks = {
        "isolated": functools.partial(answered_and_gone, ours),
        "by hand": functools.partial(answered, theirs),
    }
    found = interleaved(blocks, rounds=rounds)
    removal = tuple(gone[-rounds:])
    what = f"`isolated`, {files:,} files left in scratch"
    peer = f"hand-written `TemporaryDirectory` wrapper, {files:,} files"
    target = Target(2e-3, Unit.MILLISECONDS)
    return [
        Row(f"{what}: answer delayed", Unit.MILLISECONDS, found["isolated"], peer, found["by hand"], target),
        Row(f"{what}: until all are removed", Unit.MILLISECONDS, Measured(removal, removal), peer, found["by hand"]),
    ]


def _wait_gone(root: Path) -> None:
    """Wait until the trash of every worker below ``root`` is empty."""
    end = time.monotonic() + _GONE_SECONDS
    while any(next(trash.iterdir(), None) for trash in root.glob("worker-*/trash")):
        if time.monotonic() > end:
            raise TimeoutError(f"after {_GONE_SECONDS:g} seconds there are still files below {root}")
        time.sleep(0.001)
