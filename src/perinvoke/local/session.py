"""One run from the command line: an environment that serves until it is stopped, or until a load is through."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perinvoke.local.environment import LocalEnvironment
from perinvoke.local.load import drive
from perinvoke.local.logs import Stream
from perinvoke.local.printing import Printer, stderr, stdout
from perinvoke.local.report import log_text, print_report, progress_bar, serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.local.config import LocalConfig
    from perinvoke.local.load import LoadReport
    from perinvoke.local.logs import LogLine

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it


@dataclass(frozen=True)
class Load:
    """What to send, how often and how many at a time."""

    events: tuple[bytes, ...]
    requests: int
    concurrency: int


class HeldLog:
    """Keeps log lines back until the environment is ready: a failed init is told once, not once by each worker."""

    def __init__(self, write: Callable[[LogLine], None]) -> None:
        self._write = write
        self._held: list[LogLine] | None = []

    def __call__(self, line: LogLine) -> None:
        """Write the line, or hold it."""
        if self._held is None:
            self._write(line)
        else:
            self._held.append(line)

    def release(self) -> None:
        """Write what was held, and from now on everything. Idempotent."""
        held, self._held = self._held, None
        for line in held or ():
            self._write(line)


@dataclass(frozen=True)
class _End:
    """What a session came to."""

    code: int
    report: LoadReport | None = None
    gone: str | None = None


def run_session(config: LocalConfig, load: Load | None, *, logs: bool) -> int:
    """Run until done or stopped, and print what it came to; the exit code.

    Nothing that is printed in between waits for a reader, see ``printing``. What is printed at the end may: the loop and its
    signal handlers are gone by then, so Ctrl-C ends that too.

    Raises:
        OSError: where it serves couldn't be written to stdout.
    """
    log = Printer(stderr) if logs else None
    try:
        on_log = HeldLog(lambda line: log.put(log_text(line)) if log is not None else warn(line))
        end = asyncio.run(_run(config, load, on_log))
    finally:
        if log is not None:
            log.close()
    if end.gone is not None:
        print(f"perinvoke: {end.gone}; nothing is left to serve", file=sys.stderr)  # noqa: T201
    if end.report is not None:
        print_report(end.report, config.handler)
    return end.code


def warn(line: LogLine) -> None:
    """Without the log: what the runtime's parent, or an extension, warns of, such as a preload that was refused. Few lines."""
    if line.stream in (Stream.RUNTIME, Stream.EXTENSION) and '"level": "WARN"' in line.text:
        with suppress(ValueError, OSError):
            print(f"perinvoke: {json.loads(line.text)['message']}", file=sys.stderr)  # noqa: T201


async def _run(config: LocalConfig, load: Load | None, log: HeldLog) -> _End:
    """Run until done or stopped.

    The first SIGINT or SIGTERM stops in order: the runtime gets SIGTERM and a moment. A second one kills everything at once. Both
    hold from the start of init on.
    """
    environment = LocalEnvironment(replace(config, on_log=log))
    work = asyncio.ensure_future(_serve(environment, log.release) if load is None else _drive(environment, load, log.release))
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if stopped:
            environment.kill()
        else:
            stopped = True
            work.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not stopped:
            raise
        return _End(EXIT_OK if load is None else EXIT_INTERRUPTED)


async def _serve(environment: LocalEnvironment, on_ready: Callable[[], None]) -> _End:
    config = environment.config
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[OSError] = loop.create_future()

    def fail(error: OSError) -> None:
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(failed.set_result, error)

    output = Printer(stdout, on_error=fail)
    async with environment:
        output.put(serving(environment.endpoint_url, config.handler, config.function_name, config.workers))
        on_ready()
        gone = asyncio.ensure_future(environment.wait_gone())
        await asyncio.wait((gone, failed), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        output.close(0)
    if failed.done():
        raise failed.result()
    return _End(EXIT_FAILED, gone=environment.gone)


async def _drive(environment: LocalEnvironment, load: Load, on_ready: Callable[[], None]) -> _End:
    async with environment:
        on_ready()
        with progress_bar(load.requests) as advance:
            report = await drive(
                environment,
                load.events,
                requests=load.requests,
                concurrency=load.concurrency,
                on_progress=advance,
            )
    return _End(EXIT_FAILED if report.failed or report.gone else EXIT_OK, report)
