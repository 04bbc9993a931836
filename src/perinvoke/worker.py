"""What a worker process keeps from one invocation to the next, and the ends of an invocation: ``begin``, ``enter``, ``leave``.

A module imported before the fork must own nothing, so all of it is made at the first invocation, and a forked child starts anew:
it forgets what it inherited and never releases it.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time

from perinvoke.environment import supervised
from perinvoke.environment.names import TRASH
from perinvoke.environment.space import LOOK_SECONDS, Space
from perinvoke.environment.worker_directory import WorkerDirectory, not_made
from perinvoke.errors import PerinvokeError
from perinvoke.invocation.context import Invocation, entered, running
from perinvoke.invocation.leftovers import ChildWatch, has_children, named_if_running, threads_left_running
from perinvoke.invocation.occupancy import Occupancy
from perinvoke.invocation.report import report
from perinvoke.invocation.scratch import Scratch, Shelf
from perinvoke.invocation.tempdir import forget_directories_below
from perinvoke.invocation.trash import Trash
from perinvoke.invocation.watches import Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.clock import Deadline
    from perinvoke.environment.shared_file import SharedFiles
    from perinvoke.invocation.event_loop import EventLoops
    from perinvoke.settings import Settings


# A look takes at most the 50th part of a worker's time, however much there is to look at. With 16 workers it takes about 0.3 ms.
_LOOK_SHARE = 50


class Worker:
    """One process's share of one root; lives as long as the process. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self.directory = WorkerDirectory(settings.root)
        self.trash = Trash(self._trash_directory)
        self.space = Space(
            settings.root,
            min_free_bytes=settings.min_free_bytes,
            shared_max_bytes=settings.shared_max_bytes,
            take=self.trash.adopt,
            remove_taken=self.trash.empty,
        )
        self.shelf = Shelf(self._home, self.trash, self.space)
        self._settings = settings
        self._path: str | None = None
        self._look_at_monotonic = 0.0

    def shared_files(self) -> SharedFiles:
        """The files that all workers share below the root."""
        from perinvoke.environment.shared_file import SharedFiles  # noqa: PLC0415  # cold start: only who shares files pays for it

        max_bytes = self._settings.shared_max_bytes
        return SharedFiles(self.directory.root, take=self.trash.adopt, space=self.space, max_bytes=max_bytes)

    def _home(self) -> str:
        """The worker's directory."""
        path = self.directory.ensure()
        if path != self._path:
            self._make_trash(path)  # now: when the disk is full it is too late
            self._path = path
            # TMPDIR, which the default depends on, changes with every invocation; child processes and later reads must agree.
            os.environ.setdefault("PERINVOKE_ROOT", self.directory.root)
        return path

    def look_after_space(self) -> None:
        """Between invocations: now and then, have the disk looked after, without the answer's waiting for it."""
        now = time.monotonic()
        if now >= self._look_at_monotonic and self._path is not None:
            at_start, self._look_at_monotonic = self._look_at_monotonic == 0.0, now + LOOK_SECONDS
            self.trash.do_later(functools.partial(self._look_after_space, at_start=at_start))

    def _look_after_space(self, *, at_start: bool) -> None:
        started = time.monotonic()
        self.space.look_after(at_once=at_start)
        ended = time.monotonic()
        self._look_at_monotonic = ended + max(LOOK_SECONDS, _LOOK_SHARE * (ended - started))

    def _trash_directory(self) -> str:
        return self._make_trash(self._home())

    def _make_trash(self, home: str) -> str:
        path = f"{home}/{TRASH}"
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise not_made(self.directory.root, error) from error
        return path

    def remove(self) -> None:
        """Remove the worker's directory, at the end of a process that ends in order.

        A child process may still use it: then it is left to the next worker, which finds it when the child has ended too.
        """
        if self._path is not None and not has_children():
            self.trash.remove_with(self._path)


class Process:
    """What this process runs and keeps; lives as long as the process. A forked child gets a new one."""

    def __init__(self) -> None:
        self.occupancy = Occupancy()
        self.child_watch = ChildWatch()
        self.watches = Watches()
        self._workers: dict[str, Worker] = {}
        self._event_loops: EventLoops | None = None
        self._lock = threading.Lock()  # two threads' first invocations make one Worker

    def worker(self, settings: Settings) -> Worker:
        """This process's share of the root; as the first one who asks is set up."""
        worker = self._workers.get(settings.root)
        if worker is None:
            with self._lock:
                worker = self._workers.setdefault(settings.root, Worker(settings))
            # Once for each process: a fork that goes on to run exit functions may have dropped those of its parent.
            atexit.unregister(_remove)
            atexit.register(_remove)
        return worker

    def event_loops(self) -> EventLoops:
        """The loops that async handlers run in."""
        from perinvoke.invocation.event_loop import EventLoops  # noqa: PLC0415  # cold start: asyncio takes 50 ms

        with self._lock:
            if self._event_loops is None:
                self._event_loops = EventLoops()
            return self._event_loops

    def remove(self) -> None:
        """Remove the files of all its workers."""
        for worker in self._workers.values():
            worker.remove()


process = Process()
_forgotten: list[Process] = []


def _forget() -> None:
    """In a forked child. What is forgotten is kept referenced: finalizers would act on what is the parent's."""
    global process  # noqa: PLW0603  # there is one process, and after a fork another one
    _forgotten.append(process)
    process = Process()


def _remove() -> None:
    process.remove()  # looked up late: after a fork it is another one


os.register_at_fork(after_in_child=_forget)


def begin(settings: Settings, event: object, context: object) -> Invocation:
    """An invocation that has not entered yet. Every one that is begun must be left."""
    return Invocation(event, context, running(), settings, Scratch(process.worker(settings).shelf))


def enter(invocation: Invocation, settings: Settings) -> None:
    """Enter in the current context, which must be the invocation's own, and watch over its deadline from then on.

    Raises:
        RootError: the root can't be used or trusted.
    """
    process.occupancy.enter(invocation, shared_process=settings.shared_process)
    entered.set(invocation)
    supervisor = supervised.supervisor
    process.watches.arm(invocation, None if supervisor is None else supervisor.replace_at)


def space_of(invocation: Invocation) -> Space:
    """The disk that the invocation's files lie on."""
    return process.worker(invocation.settings).space


class _Ending:
    """The end of one invocation, step by step. Interrupted, every step may be repeated."""

    __slots__ = ("changes", "clean", "invocation", "left_running", "trouble")

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        self.clean = False
        self.left_running: list[str] = []
        self.changes: tuple[list[str], list[str]] = ([], [])  # put back, and left changed
        self.trouble: list[str] = []

    def disarm(self) -> None:
        process.watches.disarm(self.invocation)

    def take_back_replacement(self) -> None:
        process.watches.take_back(self.invocation)

    def run_cleanups(self) -> None:
        self.invocation.failed_cleanups += self.invocation.scope.close()
        self.invocation.ended = True

    def give_back_connections(self) -> None:
        for pool in reversed(tuple(self.invocation.pools)):  # a thread may be asking for its first connection
            self.trouble += pool.take_back_all(self.invocation, seconds_for_cleaning(self.invocation.deadline))

    def give_back_locks(self) -> None:
        if self.invocation.held:
            self.trouble += _given_back(self.invocation)

    def find_leftovers(self) -> None:
        self.left_running, self.clean = _leftovers(self.invocation)

    def leave_process(self) -> None:
        self.changes = process.occupancy.leave(self.invocation)

    def clear_scratch(self) -> None:
        self.trouble += _clear(self.invocation.scratch_directory, clean=self.clean)

    def look_after_space(self) -> None:
        worker = process.worker(self.invocation.settings)
        if self.invocation.met_full_disk:
            worker.space.make_room()
        worker.look_after_space()

    def tell_metrics(self) -> None:
        settings = self.invocation.settings
        if settings.metrics == "emf":
            for pool in tuple(self.invocation.pools):
                pool.tell_metrics(settings.function_name)

    def report(self) -> None:
        invocation, (put_back, left_changed) = self.invocation, self.changes
        abnormal = self.left_running or left_changed or self.trouble or invocation.failed_cleanups or invocation.cancelled_tasks
        if not abnormal and not put_back:
            return
        try:
            report(
                invocation,
                left_running=self.left_running,
                left_changed=left_changed,
                put_back=put_back,
                trouble=self.trouble,
                connections=[pool.figures() for pool in tuple(invocation.pools)],
            )
        except Exception:  # noqa: BLE001, S110  # somebody's logging filter: what it can't take must not cost the answer
            pass


_STEPS = (
    _Ending.disarm,  # first: the deadline interrupts a handler, never its end
    _Ending.run_cleanups,
    _Ending.give_back_connections,  # before the locks: what isn't committed is rolled back under the lock that protects it
    _Ending.give_back_locks,
    _Ending.find_leftovers,
    _Ending.leave_process,
    _Ending.clear_scratch,
    _Ending.look_after_space,
    _Ending.tell_metrics,
    _Ending.report,
    _Ending.take_back_replacement,  # last: a cleanup that hangs is a reason to replace the worker too
)
# Seconds. Resetting a session takes a round trip; a server that takes longer than this is not waited for.
_MIN_CLEANING_SECONDS, _MAX_CLEANING_SECONDS = 0.05, 1.0
# How often a step is repeated that signal handlers interrupt; arbitrary, and more than one alarm needs.
_TRIES = 3


def leave(invocation: Invocation) -> None:
    """End an invocation: deferred cleanups, locks, leftovers, process state, scratch, one log record. In a forked child: nothing.

    A signal handler may raise between any two bytecodes of it. Then ``leave_all_the_same`` must be called.
    """
    if os.getpid() == invocation.pid:
        ending = _Ending(invocation)
        for step in _STEPS:
            step(ending)


def leave_all_the_same(invocation: Invocation) -> None:
    """Do every step of an interrupted ``leave`` again, each on its own."""
    if os.getpid() == invocation.pid:
        ending = _Ending(invocation)
        for step in _STEPS:
            _insist(step, ending)


def _insist(step: Callable[[_Ending], None], ending: _Ending) -> None:
    for _ in range(_TRIES):
        try:
            step(ending)
        except BaseException:  # noqa: BLE001, S112  # an interruption is on its way already, and the next step is due
            continue
        return


def seconds_for_cleaning(deadline: Deadline) -> float:
    """How long the end may wait for somebody else's server: half of what is left until the answer is due, and never long."""
    return min(_MAX_CLEANING_SECONDS, max(_MIN_CLEANING_SECONDS, deadline.remaining_seconds() / 2))


def _given_back(invocation: Invocation) -> list[str]:
    """Give back what is still held, in whatever thread it was taken. What is released in time leaves nothing to give back."""
    held = list(invocation.held.items())
    return [f"given back: {what}, still held at the end" for owner, give_back in held for what in give_back(owner)]


def _leftovers(invocation: Invocation) -> tuple[list[str], bool]:
    """What the invocation left running, and whether it is sure that nobody is left who could know its scratch directory."""
    threads = threads_left_running(invocation) if invocation.threads or invocation.work else []
    threads += invocation.uncancelled_tasks
    if not invocation.claims_process:
        return threads + named_if_running(invocation.processes), False
    children, accounted_for = process.child_watch.look(invocation)
    return threads + children, accounted_for and not threads


def _clear(scratch: Scratch, *, clean: bool) -> list[str]:
    try:
        if scratch.directory is not None:  # whoever asked for it: code that TMPDIR tells isn't seen
            forget_directories_below(scratch.directory)
        scratch.close(left_nobody=clean)
    except (OSError, PerinvokeError) as error:
        return [f"scratch directory {scratch.directory} not cleared: {error}"]
    return []
