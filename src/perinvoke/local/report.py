"""What the terminal shows of a run: where it serves, its progress, its table."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from perinvoke.local.load import INVOCATION_TIMEOUT
from perinvoke.local.outcome import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from perinvoke.errors import InitFailed
    from perinvoke.local.load import LoadReport
    from perinvoke.local.logs import LogLine

_REFRESH_SECONDS = 0.05  # often enough to look alive, seldom enough not to slow the load down
_SAMPLE_CHARACTERS = 200
_PLAIN_WIDTH = 1_000  # for pipes and files: wide enough that no row is folded, which would break a Markdown table
# perinvoke's own errors about how it is set up (isolated, the runtime runs it): the message says all, the stack is perinvoke's.
_SELF_EXPLAINING = ("HandlerError", "SettingError")


def serving(endpoint_url: str, handler: str, function_name: str, workers: int) -> str:
    """What to call, ready to be copied."""
    return (
        f"Serving {handler} with {workers} worker{'' if workers == 1 else 's'} at {endpoint_url}; Ctrl-C stops\n"
        f"  aws lambda invoke --endpoint-url {endpoint_url} --region us-east-1 --no-sign-request \\\n"
        f"    --function-name {function_name} --cli-binary-format raw-in-base64-out --payload '{{}}' /dev/stdout\n"
        f'  boto3.client("lambda", endpoint_url="{endpoint_url}", region_name="us-east-1")'
        f'.invoke(FunctionName="{function_name}", Payload=b"{{}}")'
    )


def log_text(line: LogLine) -> str:
    """One line of the function's log, after the first letters of its request id."""
    return f"{(line.request_id or '-' * 8)[:8]} {line.text}"


def init_failure(error: InitFailed) -> str:
    """An init error as the runtime told it, with what the function had printed when it told nothing."""
    lines = [str(error)]
    if error.error_type not in _SELF_EXPLAINING:
        lines += error.stack_trace
    if error.error_type in ("Runtime.ExitError", "Extension.Crash", "Sandbox.Timedout"):
        lines += error.log_lines
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, nothing where that isn't a terminal; takes the number of answers so far."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("invoking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("invoking", total=total)
        shown = 0.0

        def advance(done: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= _REFRESH_SECONDS or done == total:
                shown = now
                progress.update(task, completed=done)

        yield advance


def print_report(report: LoadReport, handler: str) -> None:
    """The tables at the end of a load, on stdout; Markdown where that isn't a terminal."""
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    plain = not console.is_terminal
    console.print(_figures(report, plain=plain))
    if report.errors:
        console.print(_errors(report, plain=plain))
    if any("object is not callable" in message for message in report.samples.values()):
        console.print(f"Is {handler} a function? The runtime calls whatever it names.", markup=False, highlight=False)
    if report.gone is not None:
        console.print(f"The environment ended before the load did: {report.gone}.", markup=False)


def _table(title: str, *, plain: bool, show_header: bool = True) -> Table:
    box_style = box.MARKDOWN if plain else box.HEAVY_HEAD
    return Table(title=title, title_justify="left", box=box_style, show_header=show_header or plain)


def _figures(report: LoadReport, *, plain: bool) -> Table:
    table = _table("Load", plain=plain, show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_row("invocations", f"{report.requests:,} in {report.seconds:.2f} s")
    table.add_row("throughput", f"{report.per_second:,.0f}/s")
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        table.add_row(f"latency {name}", f"{report.latency(share) * 1000:,.1f} ms" if report.latencies else "-")
    for what, count, style in _ends(report):
        table.add_row(what, Text(f"{count:,}", style=style))
    style = "red" if report.workers_left < report.workers else ""
    table.add_row("workers at the end", Text(f"{report.workers_left} of {report.workers}", style=style))
    if report.supervised:
        table.add_row("workers replaced", f"{report.replaced:,}")
    return table


def _ends(report: LoadReport) -> Iterator[tuple[str, int, str]]:
    """How the invocations ended, each counted once: in words, how many, and the style."""
    yield Status.OK.value, report.outcomes.get(Status.OK, 0), ""
    other_errors = report.outcomes.get(Status.FUNCTION_ERROR, 0) - report.interrupted
    for what, count in (
        (Status.FUNCTION_ERROR.value, other_errors),
        (f"timed out, ended by perinvoke ({INVOCATION_TIMEOUT})", report.interrupted),
        ("timed out, cut by the platform (the handler may run on)", report.outcomes.get(Status.TIMED_OUT, 0)),
        (Status.REJECTED.value, report.outcomes.get(Status.REJECTED, 0)),
        (Status.UNAVAILABLE.value, report.outcomes.get(Status.UNAVAILABLE, 0)),
    ):
        if count:
            yield what, count, "red"


def _errors(report: LoadReport, *, plain: bool) -> Table:
    table = _table("Errors", plain=plain)
    table.add_column("type", overflow="fold")
    table.add_column("count", justify="right")
    table.add_column("one of the messages", overflow="fold")
    for error_type, count in report.errors.items():
        sample = report.samples.get(error_type, "")
        table.add_row(_cell(error_type, plain=plain), f"{count:,}", _cell(sample, plain=plain))
    return table


def _cell(text: str, *, plain: bool) -> Text:
    text = text[:_SAMPLE_CHARACTERS]
    return Text(" ".join(text.split()).replace("|", "\\|") if plain else text)
