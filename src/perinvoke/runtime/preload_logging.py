"""Lets code that is imported before the fork do with logging what it would do in a worker.

In a worker the runtime puts its handler on the root logger first and imports the function then: ``basicConfig`` does nothing, and
a library such as Powertools adds filters to that handler. Before the fork there is none. So a stand-in takes its place during the
import; and when a worker's runtime has made the real one, what was done to the stand-in is done to that.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from perinvoke.runtime.records import Level

if TYPE_CHECKING:
    from perinvoke.runtime.records import Records

# The levels of records.Level, by those of logging.
_LEVELS = ((logging.ERROR, Level.ERROR), (logging.WARNING, Level.WARN), (0, Level.INFO))


class _StandIn(logging.Handler):
    """In the place of the runtime's handler, as long as modules are imported."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        level = next(level for least, level in _LEVELS if record.levelno >= least)
        self._records.write(level, record.getMessage(), logger=record.name)


class PreloadLogging:
    """What preloaded code did to the root logger; lives as long as the parent, and its copies as long as a worker."""

    def __init__(self, records: Records) -> None:
        self._root = logging.getLogger()
        self._stand_in = _StandIn(records)
        self._before = list(self._root.handlers)
        level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper()
        if level in logging.getLevelNamesMapping():
            self._root.setLevel(level)  # as the runtime does
        self._level_before = self._root.level
        self._root.addHandler(self._stand_in)
        self._formatter = self._stand_in.formatter

    def close(self) -> None:
        """The import is through: note what it did, and leave the root logger as the runtime expects it."""
        self._left = [handler for handler in self._root.handlers if handler not in self._before]
        self._level_left = self._root.level
        self._root.handlers[:] = self._before

    def apply(self) -> None:
        """In a worker, when the runtime has put its handler on the root logger: do to that what was done to the stand-in."""
        of_runtime = [handler for handler in self._root.handlers if handler not in self._left]
        if self._stand_in not in self._left:
            of_runtime = []  # the code has removed it
        for handler in of_runtime:
            handler.filters += self._stand_in.filters
            if self._stand_in.formatter is not self._formatter:
                handler.setFormatter(self._stand_in.formatter)
            if self._stand_in.level:
                handler.setLevel(self._stand_in.level)
        others = [handler for handler in self._left if handler is not self._stand_in]
        self._root.handlers[:] = [*of_runtime, *others]
        if self._level_left != self._level_before:
            self._root.setLevel(self._level_left)
