"""What to do about a handler whose time is up: decided here, without doing anything, from what one look has found.

An interrupt may strike between any two bytecodes, so it matters where:

* In code that keeps locks for others (``threading``, ``logging``, ``queue``, perinvoke's own) it waits 2 ms and looks again. Only
  what stands at the very same instruction of the very same frame is blocked there, and is interrupted: a wait is meant to be.
* perinvoke's bookkeeping of an invocation is never interrupted: it doesn't block. Nor is a thread's start: before Python 3.12
  a thread that doesn't run yet has its starter's number, and what is raised for the one may strike the other, which nobody sees.
* An import is never cut in half: a package whose import failed half-way may fail in every later invocation of the worker.
* What is unwinding already is left alone: its ``finally`` blocks must run.
* An async handler's task is cancelled, again and again unless it is unwinding. Only a task that blocks its event loop is
  interrupted where it stands.

What doesn't give way for a second has the stacks of all threads logged, and is then left alone.
"""

from __future__ import annotations

import collections
import enum

from perinvoke.errors import DeadlineReached
from perinvoke.invocation.tasks import frames_of, is_handling, task_runs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from perinvoke.clock import Deadline
    from perinvoke.invocation.context import Invocation

# Seconds. How long an interrupted handler may take to end before its stacks are logged; arbitrary, longer than cleanup takes.
GRACE_SECONDS = 1.0
# Seconds until the next look. Code leaves a delicate place within microseconds; an exception that a finalizer has swallowed
# (Python prints it and goes on) must be raised again, and a handler's finally block shouldn't be looked at all the time.
_DELICATE_SECONDS = 0.002
_AGAIN_SECONDS = 0.05

_IMPORTING = frozenset(
    {"importlib._bootstrap", "importlib._bootstrap_external", "_frozen_importlib", "_frozen_importlib_external"}
)
_DELICATE = frozenset(
    {
        "_weakrefset",
        "concurrent.futures._base",
        "concurrent.futures.thread",
        "contextlib",
        "logging",
        "queue",
        "threading",
        "weakref",
    }
)
_DELICATE_PACKAGES = ("asyncio.", "logging.", "perinvoke.clock", "perinvoke.environment.", "perinvoke.sharing.")
# perinvoke's bookkeeping of an invocation.
_UNTOUCHABLE = ("perinvoke.handler", "perinvoke.worker", "perinvoke.full_disk", "perinvoke.invocation.")
# Seconds. What a supervisor needs to answer before the platform's own cut; what writing the stacks may take before it. Arbitrary.
_SPARE_SECONDS = 0.05
_STACK_FRAMES = 5  # arbitrary: what a message can hold
_START_FRAMES = 4  # from the innermost one to Thread.start; one to spare


class Look(enum.Enum):
    """What one look at an invocation comes to."""

    TOO_EARLY = "its time is not up"
    DELICATE = "it stands where an interrupt could break something: look again in a moment"
    CANCEL = "its task is cancelled"
    UNWINDING = "it has been told and is on its way out"
    INTERRUPT = "DeadlineReached is raised where it stands"
    REPORT = "its stack is logged, and nothing else happens"
    GIVE_UP = "it doesn't give way: the stacks of all threads are logged; what has been told is left alone from then on"


Standing = collections.namedtuple("Standing", "module place unwinding task_runs untouchable")  # noqa: PYI024  # typing costs a worker 3 ms
"""Where code stands: the innermost frame's module; that frame and its instruction; whether an error of this interrupt is being
handled there; whether a task of the handler's event loop is running, and not just waiting; whether it is never interrupted."""


class Watched:
    """How far the watch over one invocation has got; lives from the first look that finds it due to the invocation's end."""

    __slots__ = (
        "cancelled",
        "delivered",
        "error_type",
        "give_up_at",
        "invocation",
        "left_seconds",
        "logged",
        "over",
        "place",
        "stack",
        "struck",
    )

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        deadline = invocation.deadline
        self.give_up_at = (
            invocation.replaced_at - 2 * spare_seconds(deadline)
            if invocation.replaced_at
            else deadline.interrupt_at_monotonic + GRACE_SECONDS
        )
        # A class of its own: what is interrupted for an outer invocation is no error of an inner one.
        self.error_type: type[BaseException] = type(
            "DeadlineReached", (DeadlineReached,), {"__module__": DeadlineReached.__module__}
        )
        self.struck = False  # DeadlineReached was raised
        self.cancelled = False  # its task was told to cancel
        self.delivered = False  # the event loop has done so
        self.logged = False  # that it doesn't give way
        self.over = False  # nothing more is done
        self.place: tuple[FrameType, int] | None = None  # of the last look, where that was delicate
        self.left_seconds = 0.0  # of its time, when it was told that it is up
        self.stack: list[str] = []  # where it stood when its time was up, innermost first

    def tell(self, now: float, frame: FrameType) -> None:
        """Note where it stands, before it is told that its time is up for the first time."""
        if not self.struck and not self.cancelled:
            self.stack = told(frame, self.invocation)
            self.left_seconds = self.invocation.deadline.remaining_seconds()
            if not self.invocation.replaced_at:
                self.give_up_at = now + GRACE_SECONDS  # a call of C may have returned only now

    def end(self) -> None:
        """The invocation has come to its end: nothing more is done to it."""
        self.over = True
        self.place = None

    def caused(self, error: BaseException | None) -> bool:
        """Whether this interrupt is the error, its cause or context, or in a group of errors, however deep."""
        seen: set[int] = set()
        left = [error]
        while left:
            error = left.pop()
            if error is None or id(error) in seen:
                continue
            if isinstance(error, self.error_type) or (self.cancelled and type(error).__name__ == "CancelledError"):
                return True
            seen.add(id(error))
            left += (error.__cause__, error.__context__)
            if isinstance(error, BaseExceptionGroup):
                left += error.exceptions
        return False


def decide(watched: Watched, standing: Standing, now: float) -> Look:  # noqa: PLR0911  # rules, the first that holds counts
    """What to do about an invocation whose code stands there."""
    invocation, already_told = watched.invocation, watched.struck or watched.cancelled
    if now < invocation.deadline.interrupt_at_monotonic:
        return Look.TOO_EARLY
    if invocation.settings.on_timeout == "report":
        return Look.REPORT
    if now >= watched.give_up_at and already_told:
        return Look.GIVE_UP
    if standing.unwinding:
        return Look.UNWINDING
    if invocation.task is not None and not already_told:
        return Look.CANCEL  # wherever it stands: the event loop does it when it gets there
    if watched.delivered and not standing.task_runs:
        return Look.CANCEL  # it waits again: somebody has swallowed it
    if standing.untouchable or (_is_delicate(standing.module) and not _is_at(watched.place, standing.place)):
        return Look.GIVE_UP if now >= watched.give_up_at and not watched.logged else Look.DELICATE
    if watched.cancelled and (watched.delivered or not standing.task_runs):
        return Look.UNWINDING
    return Look.INTERRUPT


def replaced_at(deadline: Deadline) -> float:
    """When a supervisor is to end the worker, if the interrupt doesn't help: in time to answer before the platform does.

    A second after the interrupt, and half the margin before the platform's cut at the latest: the handler's own cleanup needs the
    one half, and the supervisor, which looks every 50 ms and waits for its turn on a busy machine, the other.
    """
    return min(deadline.interrupt_at_monotonic + GRACE_SECONDS, deadline.platform_at_monotonic - deadline.margin_seconds / 2)


def spare_seconds(deadline: Deadline) -> float:
    """How long before the worker's end its stacks are logged; a third of the time from the interrupt to it at most."""
    return min(_SPARE_SECONDS, (replaced_at(deadline) - deadline.interrupt_at_monotonic) / 3)


def next_look_at(watched: Watched, look: Look, now: float) -> float:
    """The second at which to look again, after ``look`` was acted on."""
    if look is Look.TOO_EARLY:
        return watched.invocation.deadline.interrupt_at_monotonic
    if watched.over:
        return float("inf")
    return now + (_DELICATE_SECONDS if look is Look.DELICATE and not watched.logged else _AGAIN_SECONDS)


def standing_of(watched: Watched, frame: FrameType, handling: BaseException | None) -> Standing:
    """Where the code in ``frame`` stands, while it is handling that error or none."""
    module = _name_of(frame)
    return Standing(
        module,
        (frame, frame.f_lasti),
        watched.caused(handling) or (watched.delivered and is_handling(watched.invocation.task, watched.caused)),
        task_runs(watched.invocation),
        module.startswith(_UNTOUCHABLE) or (module == "threading" and _starts_a_thread(frame)) or _imports(frame),
    )


def told(frame: FrameType | None, invocation: Invocation) -> list[str]:
    """The innermost frames as text, innermost first, without perinvoke's own; of a task that waits, the frames it waits in."""
    task = invocation.task
    frames = frames_of(task) if task is not None and not task_runs(invocation) else []
    if not frames:
        while frame is not None:
            frames.append((frame, frame.f_lineno))
            frame = frame.f_back
    texts = [_text(frame, line) for frame, line in frames if not _name_of(frame).startswith("perinvoke.")]
    return texts[:_STACK_FRAMES] or [_text(frame, line) for frame, line in frames[:_STACK_FRAMES]]


def _text(frame: FrameType, line: int | None) -> str:
    return f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"


def _name_of(frame: FrameType) -> str:
    return frame.f_globals.get("__name__") or ""


def _starts_a_thread(frame: FrameType | None) -> bool:
    """Whether this is, or waits for, ``Thread.start``: start, Event.wait, Condition.wait."""
    for _ in range(_START_FRAMES):
        if frame is None or _name_of(frame) != "threading":
            return False
        if frame.f_code.co_name == "start":
            return True
        frame = frame.f_back
    return False


def _imports(frame: FrameType | None) -> bool:
    """Whether the handler is importing something there, and not just called by code that is being imported."""
    while frame is not None:
        module = _name_of(frame)
        if module == "perinvoke.handler":
            return False
        if module in _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _is_delicate(module: str) -> bool:
    return module in _DELICATE or module.startswith(_DELICATE_PACKAGES)


def _is_at(last: tuple[FrameType, int] | None, place: tuple[FrameType, int]) -> bool:
    return last is not None and last[0] is place[0] and last[1] == place[1]
