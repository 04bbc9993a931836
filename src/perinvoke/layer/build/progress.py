"""How far a build is: a bar where stderr is a terminal, else a line for each stage."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stages:
    """Lives as long as one build. ``begin`` a stage, then say ``done`` for each of its parts."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("", total=1)

    def begin(self, text: str, parts: int) -> None:
        """The next stage."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(self._task, description=text, total=parts)
            return
        sys.stderr.write(f"{text} ...\n")
        sys.stderr.flush()

    def done(self) -> None:
        """One part more."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)


@contextlib.contextmanager
def stages() -> Iterator[Stages]:
    """Stages on stderr; nothing of the bar stays."""
    if not sys.stderr.isatty():
        yield Stages(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        yield Stages(progress)
