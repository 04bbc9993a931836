"""``perinvoke demo``: runs the experiment and shows one table."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from perinvoke.demo.experiment import HAZARDS, WORKERS, find
from perinvoke.demo.figures import Count
from perinvoke.demo.stop import Stop
from perinvoke.demo.verdict import memory_share, problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from perinvoke.demo.experiment import Finding
    from perinvoke.demo.figures import Figure

_PLAIN_WIDTH = 140  # for pipes and files: wide enough that no line is folded
_LEGEND = (
    "Both columns run the same handlers, perinvoke/demo/*.py; on the right the function's handler is perinvoke.handler.handler.",
    "* which module variables are one invocation's can't be guessed: on the right they are declared in an InvocationState class.",
    "+ on the right the function also has the exec wrapper, perinvoke-exec, with PERINVOKE_PRELOAD=handler.",
)


def main(*, colour: bool | None = None) -> int:
    """Run the demo and print its table; the exit code: 1 if any hazard hit with perinvoke, or nothing was proven.

    Takes about 25 seconds. All files are made in a directory of its own, which is removed at the end, also after Ctrl-C,
    SIGTERM and SIGHUP; then the exit code is 128 and the signal's number.

    Args:
        colour: None for colour on a terminal, unless NO_COLOR is set.

    Raises:
        LocalError: the runtime can't be started, or an invocation failed.
    """
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    with Stop() as stop:
        findings = _experiment(stop)
    if stop.signal_number is not None:
        return 128 + stop.signal_number  # as shells say it
    print_findings(findings, console(colour=colour))
    return 1 if problems(findings) else 0


def _experiment(stop: Stop) -> list[Finding]:
    """All findings; none when it was stopped. Returns when every file is gone again."""
    with (
        tempfile.TemporaryDirectory(prefix="perinvoke-demo-", ignore_cleanup_errors=True) as folder,
        _progress(2 * len(HAZARDS)) as on_step,
    ):
        return asyncio.run(stop.bound(find(HAZARDS, Path(folder), on_step=on_step))) or []


def console(*, colour: bool) -> Console:
    """A console on stdout; without colour it writes nothing but characters."""
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(force_terminal=colour, no_color=not colour, width=width, highlight=False)


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """The table, what it means, and the verdict."""
    plain = not console.is_terminal
    table = Table(
        title=f"{WORKERS} workers of the real runtime over one temp directory",
        title_justify="left",
        box=box.MARKDOWN if plain else box.ROUNDED,
    )
    table.add_column("hazard: what should never happen; at the end, what should be small")
    table.add_column("bare", justify="right", no_wrap=True)
    table.add_column("with perinvoke", justify="right", no_wrap=True)
    for finding in findings:
        mark = (" *" if finding.hazard.declared_handler else "") + (" +" if finding.hazard.supervise else "")
        table.add_row(finding.hazard.what + mark, _cell(finding.bare, finding), _cell(finding.protected, finding))
    console.print(table)
    for line in _LEGEND:
        console.print(line, style="dim", markup=False)
    wrong = problems(findings)
    for line in wrong:
        console.print(line, style="bold red", markup=False)
    if not wrong:
        console.print(f"Every hazard hit the bare handlers; none hit one with perinvoke.{_saving(findings)}", style="bold green")


def _saving(findings: Sequence[Finding]) -> str:
    shares = [share for finding in findings if (share := memory_share(finding)) is not None]
    return "".join(f" Its workers take {share:.0%} of the memory." for share in shares)


def _cell(figure: Figure, finding: Finding) -> Text:
    is_promised = figure is finding.protected and not problems([finding])
    is_good = figure.count == 0 if isinstance(figure, Count) else is_promised
    return Text(str(figure), style="bold green" if is_good else "bold red")


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str], None]]:
    """A line on stderr that tells what is being tried; nothing where that isn't a terminal."""
    to_user = Console(stderr=True)
    if not to_user.is_terminal:
        yield lambda _: None
        return
    columns = (BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=to_user, transient=True) as progress:
        task = progress.add_task("starting", total=steps)
        begun = 0

        def on_step(what: str) -> None:
            nonlocal begun
            progress.update(task, description=what, completed=begun)
            begun += 1

        yield on_step
