"""How far it is, on stderr, and what came of it, as a table on stdout that can be piped."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from perinvoke.layer.publish.results import Outcome, Result
from perinvoke.layer.publish.run import GRACE_SECONDS, Begun
from perinvoke.layer.zips import DEFAULT_LAYER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Event = Begun | Result | None

_HEADER = ("region", "layer", "result", "version")
_STYLES = {Outcome.PUBLISHED: "green", Outcome.THERE: "green", Outcome.FAILED: "bold red", Outcome.NOT_KNOWN: "bold red"}
_INTERRUPTED = f"interrupted: nothing more is begun; waiting up to {GRACE_SECONDS:.0f} s for answers. Ctrl-C again: at once."


def tell(line: str) -> None:
    """A line to stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def progress(targets: int) -> Iterator[Callable[[Event], object]]:
    """What is to hear of the events: a bar on a terminal, elsewhere a line for each result."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _in_lines
        return
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=targets)

        def on_event(event: Event) -> None:
            if event is None:
                bar.console.print(_INTERRUPTED, markup=False, highlight=False)
            elif isinstance(event, Begun):
                bar.update(task, description=f"{event.target}: {event.stage.value}")
            else:
                bar.update(task, advance=1, description=f"{event.target}: {event.outcome.value}")

        yield on_event


def _in_lines(event: Event) -> None:
    if event is None:
        tell(_INTERRUPTED)
    elif isinstance(event, Result):
        tell(f"{event.target}: {event.outcome.value}")


def print_table(results: Sequence[Result]) -> None:
    """A line for each target; no line is folded, however narrow the terminal: an ARN can be copied."""
    rows = [(each.target.region, each.target.layer, each.outcome.value, " ".join(each.told.split())) for each in results]
    widths = [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]
    is_terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=True, force_terminal=is_terminal)
    console.print(_line(_HEADER, widths, "bold"))
    for row, result in zip(rows, results, strict=True):
        console.print(_line(row, widths, "", _STYLES.get(result.outcome, "")))


def next_steps(results: Sequence[Result]) -> str:
    """How a function gets each layer, in the first region; attach finds the default one by itself."""
    region = results[0].target.region
    lines = []
    for each in results:
        if each.target.region == region:
            version = "" if each.target.layer == DEFAULT_LAYER else f" --version-arn {each.arn}"
            lines.append(f"next: perinvoke layer attach FUNCTION --region {region}{version}")
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int], style: str, result_style: str = "") -> Text:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
    line = Text("  ".join(cells[:2]) + "  ", style)
    line.append(cells[2], result_style or None)
    line.append(f"  {row[3]}")
    line.rstrip()
    return line
