"""What is done about an invocation whose time is up, once that is decided; raising and logging is left to who has looked."""

from __future__ import annotations

import threading

from perinvoke.invocation.watched import Look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from perinvoke.invocation.watched import Watched


def act(watched: Watched, look: Look, frame: FrameType, now: float) -> str | None:
    """Do what ``look`` says, but for raising; what is to be logged with the stacks, or None. Doesn't block."""
    if look in (Look.CANCEL, Look.INTERRUPT):
        watched.tell(now, frame)
    if look is Look.CANCEL:
        watched.cancelled = True
        _cancel_soon(watched)
    elif look is Look.INTERRUPT:
        watched.struck = True
    elif look is Look.REPORT:
        watched.over = True
        return "is still running though its time is up"
    elif look is Look.GIVE_UP:
        watched.logged = True
        watched.over = watched.struck or watched.cancelled  # else it stands where it can't be told yet
        return _given_up(watched)
    return None


def _cancel_soon(watched: Watched) -> None:
    task = watched.invocation.task
    if task is None:
        return

    def cancel() -> None:
        watched.delivered = True
        if not watched.over:  # it may have ended meanwhile
            task.cancel()

    try:
        task.get_loop().call_soon_threadsafe(cancel)
    except RuntimeError:
        watched.delivered = True  # the loop is closed: the task has nowhere to run


def _given_up(watched: Watched) -> str:
    what = "doesn't give way though its time is up"
    if watched.invocation.replaced_at:
        return f"{what}; its worker is ended and replaced"
    if watched.invocation.settings.on_timeout == "replace":
        if watched.invocation.thread_id != threading.main_thread().ident:
            return (
                f'{what}; on_timeout="replace" replaces a worker whose main thread runs the handler, and this is another thread'
            )
        return f'{what}; on_timeout="replace" needs a supervisor that ends its worker, and there is none'
    return what
