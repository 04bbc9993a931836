"""What is told of a call that is to happen once: the errors of duplicates, and log records of what nobody else tells."""

from __future__ import annotations

import logging

from perinvoke.fleet.caller import request_id_of_caller
from perinvoke.fleet.errors import AlreadyDone, AlreadyInProgress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from perinvoke.fleet.dynamodb.idempotency_protocol import Found, Run

logger = logging.getLogger("perinvoke")


def in_progress(run: Run, found: Found) -> AlreadyInProgress:
    """The error of a call whose first one still runs, or has died."""
    if not found.record:
        why = "this very call was made from that run, which it can't wait for. Call the function that idempotent wraps"
    else:
        left = (int(found.record["deadline_ms"]) - run.clock.epoch_ms()) / 1000 + run.max_skew_seconds
        why = f"it counts as running for another {max(0.0, left):.1f} s at most. Try again then, or wait longer"
    return AlreadyInProgress(f"{run.name} is in progress for key {run.key!r}: {why}.", key=run.key)


def already_done(run: Run) -> AlreadyDone:
    """The error of a call whose first one has succeeded, where duplicates are refused."""
    return AlreadyDone(f"{run.name} has succeeded for key {run.key!r}, and on_duplicate is 'raise'.", key=run.key)


def skipped(run: Run, *, done: bool) -> None:
    """A duplicate got ``skip_value``. A warning where the first one still runs: if that fails now, nobody may repeat it."""
    state = "done" if done else "in progress"
    logger.log(
        logging.INFO if done else logging.WARNING,
        "%s was skipped for key %r, which is %s; request %s",
        run.name,
        run.key,
        state,
        request_id_of_caller(),
        extra=_fields(run, state=state),
    )


def completed(run: Run, *, is_ours: bool) -> None:
    """The result was written; or wasn't, because the run was late."""
    if not is_ours:
        logger.warning(
            "%s came late with key %r: its record was taken over or removed meanwhile, and stays as it is. It may have run "
            "twice; let it do less, or give it more time",
            run.name,
            run.key,
            extra=_fields(run, state="late"),
        )


def not_noted(run: Run, error: BaseException) -> None:
    """The function has succeeded, and its record may not say so."""
    logger.error(
        "%s has succeeded for key %r, and that could not be noted: a duplicate that comes after this run's deadline runs again "
        "(%s: %s)",
        run.name,
        run.key,
        type(error).__name__,
        error,
        extra=_fields(run, state="not noted"),
    )


def not_forgotten(run: Run, error: BaseException) -> None:
    """The function has failed, and its record may still say that it runs."""
    logger.warning(
        "%s has failed for key %r, and its record could not be removed: a retry runs after this run's deadline (%s: %s)",
        run.name,
        run.key,
        type(error).__name__,
        error,
        extra=_fields(run, state="not forgotten"),
    )


def _fields(run: Run, **more: Any) -> dict[str, Any]:
    told = {"key": run.key, "name": run.name, "table": run.table, "request_id": request_id_of_caller(), **more}
    return {"perinvoke": told}
