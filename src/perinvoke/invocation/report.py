"""The one log record of an invocation that ended abnormally. What perinvoke could put right by itself goes to DEBUG."""

from __future__ import annotations

import logging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from perinvoke.invocation.context import Invocation

logger = logging.getLogger("perinvoke")


def report(
    invocation: Invocation,
    *,
    left_running: list[str],
    left_changed: list[str],
    put_back: list[str],
    trouble: list[str],
    connections: Sequence[dict[str, object]] = (),
) -> None:
    """Log what was found at the end of ``invocation``, if anything was. Raises nothing.

    ``connections`` are the figures of the pools that lent it some. The record's fields stand in ``record.perinvoke`` as well,
    which the platform's JSON log shows as an object.
    """
    failed = [f"{type(error).__name__}: {error}" for error in invocation.failed_cleanups]
    cancelled = [f"task {name}" for name in invocation.cancelled_tasks]
    parts = [
        (failed, "deferred cleanup failed: "),
        (left_running, "left running: "),
        (cancelled, "cancelled: "),
        (left_changed, "left changed, because other invocations share the process: "),
        (trouble, ""),
    ]
    told = "; ".join(label + ", ".join(items) for items, label in parts if items)
    if told:
        fields = {
            "request_id": invocation.request_id,
            "failed_cleanups": failed,
            "left_running": left_running,
            "cancelled": cancelled,
            "left_changed": left_changed,
            "trouble": trouble,
            "connections": list(connections),
        }
        cause = invocation.failed_cleanups[0] if failed else None
        logger.warning(
            "invocation %s ended abnormally: %s", invocation.request_id, told, extra={"perinvoke": fields}, exc_info=cause
        )
    if put_back and logger.isEnabledFor(logging.DEBUG):
        logger.debug("invocation %s changed and perinvoke put back: %s", invocation.request_id, ", ".join(put_back))
