"""What is done about an invocation whose time is up, once that is decided; all but raising, which who has looked does."""

from __future__ import annotations

from perinvoke.invocation.stacks import log_stacks, stacks_of_all_threads
from perinvoke.invocation.watched import Look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from perinvoke.invocation.watched import Watched


def act(watched: Watched, look: Look, frame: FrameType, now: float, *, directly: bool = False) -> None:
    """Do what ``look`` says, but for raising. Blocks no longer than ``logging`` does."""
    thread_id = watched.invocation.thread_id
    if look in (Look.CANCEL, Look.INTERRUPT):
        watched.tell(now, frame)
    if look is Look.CANCEL:
        watched.cancelled = True
        _cancel_soon(watched)
    elif look is Look.INTERRUPT:
        watched.struck = True
    elif look is Look.REPORT:
        watched.over = True
        log_stacks(watched, stacks_of_all_threads(thread_id, frame), "is still running though its time is up", directly=directly)
    elif look is Look.GIVE_UP:
        watched.logged = True
        watched.over = watched.struck or watched.cancelled  # else it stands where it can't be told yet
        log_stacks(watched, stacks_of_all_threads(thread_id, frame), _given_up(watched), directly=directly)


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
        return f'{what}; on_timeout="replace" needs a supervisor that ends its worker, and there is none'
    return what
