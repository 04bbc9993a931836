"""For tests in which two moments lie close together: a machine that stands still in between mixes them up."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec

    P = ParamSpec("P")

TRIES = 5
begun_anew: list[str] = []  # what conftest tells at the end, so that a test which fails now and then is seen all the same
MOST_SECONDS = 50.0  # no try begins later: what hangs is no stall, and pytest's own time-out has to be the end


def repeated_after_a_stall(test: Callable[P, None]) -> Callable[P, None]:
    """Begin the test anew where it fails, four times at most: what it says holds unless the machine stood still at some moment.

    Only for what no other means makes safe: that something comes before a deadline, or within the time that a lease lasts. The
    test must be able to begin anew with the fixtures it has; caplog is emptied.
    """

    @functools.wraps(test)
    def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        until = time.monotonic() + MOST_SECONDS
        for left in reversed(range(TRIES)):
            try:
                return test(*args, **kwargs)
            except (Exception, pytest.fail.Exception) as error:
                if not left or time.monotonic() > until:
                    raise
                first_line = f"{type(error).__name__}: {error}".partition("\n")[0]
                begun_anew.append(f"{test.__module__}.{test.__qualname__}: {first_line}")
            caplog = kwargs.get("caplog")
            if isinstance(caplog, pytest.LogCaptureFixture):
                caplog.clear()
        return None

    return tried
