"""All targets at once, in threads; one thread, the caller's, hears of them. What Ctrl-C leaves behind is known of each.

The threads are daemons: at the end of the command one may hang in a request, and nothing but its end of patience ends that.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perinvoke.errors import PerinvokeError
from perinvoke.layer.limits import MIB
from perinvoke.layer.publish.publication import Interrupted, Stage
from perinvoke.layer.publish.results import Outcome, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from perinvoke.layer.publish.plan import Target

    Do = Callable[[Target, Callable[[Stage], object], threading.Event], Result]

MAX_THREADS = 8
# A zip of 50 MB is held three times while it is sent: as it is, as base64, as the request.
_MAX_BYTES_AT_ONCE = 100 * MIB
# After Ctrl-C: what is on its way may still be answered. Arbitrary.
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Begun:
    """A step of a target has begun."""

    target: Target
    stage: Stage


class _Signal:
    """Ctrl-C was pressed."""


def run(targets: Sequence[Target], do: Do, on_event: Callable[[Begun | Result | None], object]) -> tuple[list[Result], bool]:
    """Do it to all targets; blocks until all are done, or Ctrl-C and then ten seconds at most, or a second Ctrl-C.

    Args:
        targets: each once.
        do: takes a target, what to tell of its stages, and an event that is set when nothing more shall be begun.
        on_event: hears, in this thread, of each step and result; None: Ctrl-C was pressed.

    Returns:
        A result for each target, in order, and whether it was interrupted.
    """
    crew = _Crew(targets, do)
    stages: dict[Target, Stage] = {}
    results: dict[Target, Result] = {}
    until: float | None = None
    with _interruptions(crew):
        crew.start()
        while len(results) < len(targets):
            try:
                event = crew.events.get(timeout=None if until is None else max(until - time.monotonic(), 0))
            except queue.Empty:
                break
            if isinstance(event, _Signal):
                if until is not None:
                    break
                until = time.monotonic() + GRACE_SECONDS
                on_event(None)
                continue
            if isinstance(event, Begun):
                stages[event.target] = event.stage
            else:
                results[event.target] = event
            on_event(event)
    return [results.get(each) or _left(each, stages.get(each)) for each in targets], until is not None


def threads_for(targets: Sequence[Target]) -> int:
    """How many targets are worked on at once."""
    largest = max((each.zip.packed_bytes for each in targets if each.bucket is None), default=0)
    return max(1, min(MAX_THREADS, len(targets), _MAX_BYTES_AT_ONCE // (largest or 1)))


def _left(target: Target, stage: Stage | None) -> Result:
    """What is known of a target that was not brought to its end, by the step that may still go on."""
    if stage is Stage.PUBLISHING:
        return Result(target, Outcome.NOT_KNOWN, None, "interrupted before Lambda had answered: a version may have been made")
    if stage is Stage.OPENING:
        return Result(target, Outcome.NOT_KNOWN, None, f"interrupted while {stage.value}")
    return Result(target, Outcome.NOT_PUBLISHED, None, "interrupted")


class _Crew:
    """The threads; lives as long as the run."""

    def __init__(self, targets: Sequence[Target], do: Do) -> None:
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()  # its put may be called by a signal's handler
        self.stop = threading.Event()
        self._do = do
        self._waiting: queue.SimpleQueue[Target] = queue.SimpleQueue()
        for target in targets:
            self._waiting.put(target)
        self._count = threads_for(targets)

    def start(self) -> None:
        for number in range(self._count):
            threading.Thread(target=self._work, name=f"perinvoke-publish-{number}", daemon=True).start()

    def interrupt(self) -> None:
        """Begin nothing more."""
        self.stop.set()
        self.events.put(_Signal())

    def _work(self) -> None:
        while True:
            try:
                target = self._waiting.get_nowait()
            except queue.Empty:
                return
            self.events.put(self._result(target))

    def _result(self, target: Target) -> Result:
        def on_stage(stage: Stage) -> None:
            self.events.put(Begun(target, stage))

        try:
            return self._do(target, on_stage, self.stop)
        except Interrupted as interrupted:
            return _left(target, Stage.PUBLISHING if interrupted.in_doubt else None)
        except PerinvokeError as error:
            return Result(target, Outcome.FAILED, None, str(error), error)
        except Exception as error:  # noqa: BLE001 - a mistake in one region must not take away what is known of the others
            return Result(target, Outcome.FAILED, None, f"{type(error).__name__}: {error}", error)


@contextmanager
def _interruptions(crew: _Crew) -> Iterator[None]:
    """SIGINT is noted instead of raised anywhere; where it is ignored, as after nohup, it stays so."""
    is_ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if not is_ours:
        yield
        return

    def note(_: int, __: FrameType | None) -> None:
        crew.interrupt()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
