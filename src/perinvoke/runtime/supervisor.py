"""The runtime's parent: starts workers, replaces those that die, answers for them, and ends them all.

Guarantees:

* An invocation that was handed to a worker is answered exactly once, whenever that worker is killed: by the worker, by its
  replacement, or by this process. Which one, is decided by the worker's last stage; see ``mailbox`` and ``seat``.
* A worker that dies is replaced at once. One that dies before it asked for its first invocation would only die again: its
  replacement waits, each time longer, and after too many such deaths in a row this process ends, so that the platform replaces
  the environment.
* No worker outlives this process: the kernel kills it (``PR_SET_PDEATHSIG``).

One thread, no locks. Signals are taken between two rounds of the loop and blocked around every fork.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from perinvoke.exit_code import describe_exit
from perinvoke.runtime.early_deaths import EarlyDeaths
from perinvoke.runtime.forked import Inherited, become_worker, run_worker
from perinvoke.runtime.mailbox import REPLACES
from perinvoke.runtime.out_of_memory import OutOfMemory
from perinvoke.runtime.process_tree import adopt_orphans, die_with, kill_children, reap_all_but
from perinvoke.runtime.records import Level
from perinvoke.runtime.runtime_api import RuntimeApi, drained
from perinvoke.runtime.seat import Estate, Seat
from perinvoke.runtime.stop_plan import StopPlan, StopStage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from perinvoke.runtime.records import Records

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FOREVER = float("inf")

_FORK_AGAIN_SECONDS = 5.0  # after a fork that failed: what is short then is not there again at once

_TICK_SECONDS = 1.0  # how often it looks after what no event tells: counters, orphans
_PRECISE_TICK_SECONDS = 0.05  # once some worker may have to be replaced at a certain moment


class _Answer(NamedTuple):
    """What the caller of an invocation that has lost its worker is told."""

    request_id: str
    invocation_id: str
    error_type: str
    message: str


class _Loss:
    """A worker that has ended, and what is done about it."""

    def __init__(self, seat: Seat, *, pid: int, code: int, how: str, delay_seconds: float, answer: _Answer | None) -> None:
        self.seat = seat
        self.pid = pid
        self.code = code
        self.how = how
        self.delay_seconds = delay_seconds
        self.answer = answer
        self.told = ""


class CrashLoop(SystemExit):
    """Too many workers died before they asked for an invocation; ends the parent with exit code 1."""

    def __init__(self) -> None:
        super().__init__(1)


class Supervisor:
    """Lives as long as the runtime's parent process, in its main thread.

    Args:
        runtime: awslambdaric's module whose ``runtime_client`` asks and answers.
        address: of the runtime API.
        records: where it tells what it did.
        stop_seconds: what the platform gives between SIGTERM and SIGKILL.
        on_ready: called in each worker before it asks for its first invocation.
    """

    def __init__(
        self, runtime: ModuleType, address: str, records: Records, *, stop_seconds: float, on_ready: Callable[[], None]
    ) -> None:
        self._runtime = runtime
        self._address = address
        self._records = records
        self._end = StopPlan(stop_seconds)
        self._on_ready = on_ready
        self._api = RuntimeApi(address)
        self._out_of_memory = OutOfMemory()
        self._seats: list[Seat] = []
        self._selector = selectors.DefaultSelector()
        self._signals, self._wakeup = socket.socketpair()
        self._pid = os.getpid()
        self._users_mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._users_handlers = {number: signal.getsignal(number) for number in (*_STOP_SIGNALS, signal.SIGCHLD)}
        self._given_up: list[socket.socket] = []
        self._early_deaths = EarlyDeaths()
        self._has_given_up = False
        self._tick_seconds = _TICK_SECONDS
        self._tick_monotonic = 0.0

    # --- what the runtime's own parent code calls in place of multiprocessing --------------------------------------------

    def start(self, run: Callable[[], object]) -> None:
        """Start a worker, and from now on keep one in its place. In the worker this doesn't return."""
        if not self._seats:
            self._listen()
        seat = Seat(run)
        self._seats.append(seat)
        self._fork(seat)

    def wait(self) -> None:
        """Supervise until no worker is left, and none will be. Only SIGTERM, or a crash loop, brings that about.

        Raises:
            CrashLoop: this process should end, so that the platform replaces the environment.
        """
        try:
            self._supervise()
        except BaseException:
            if os.getpid() == self._pid:  # and not a worker on its way out
                self._abandon()
            raise
        self._drain()
        kill_children()  # what dead workers left, and what was forked too late to be told
        if self._has_given_up:
            raise CrashLoop

    # --- a round -------------------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        while self._is_needed():
            events = self._selector.select(self._seconds_to_next())
            self._take_signals()
            # Decided before anyone is buried: whoever takes a seat may get a descriptor that was closed a moment ago.
            heard = [key.data for key, _ in events if key.data is not None and key.fd != key.data.pidfd]
            dead = [key.data for key, _ in events if key.data is not None and key.fd == key.data.pidfd]
            for seat in heard:
                self._hear(seat)
            self._bury(dead)
            self._keep_time()

    def _is_needed(self) -> bool:
        if self._end.is_stopping:
            return any(seat.pid for seat in self._seats)
        return bool(self._seats)

    def _seconds_to_next(self) -> float:
        due = _FOREVER if self._end.is_stopping else min((seat.due_monotonic for seat in self._seats), default=_FOREVER)
        return max(0.0, min(self._tick_seconds, due - time.monotonic(), self._end.next_at - time.monotonic()))

    def _listen(self) -> None:
        self._signals.setblocking(False)  # noqa: FBT003  # the stdlib's signature
        self._wakeup.setblocking(False)  # noqa: FBT003  # the same
        adopt_orphans()
        self._selector.register(self._signals, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda *_: None)  # the wake-up tells
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would have the kernel forget how workers ended
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

    def _take_signals(self) -> None:
        try:
            numbers = self._signals.recv(512)
        except BlockingIOError:
            return
        if any(number in numbers for number in _STOP_SIGNALS):
            self._stop(f"{signal.Signals(numbers[-1]).name} was received")

    def _hear(self, seat: Seat) -> None:
        was_ready = seat.is_ready
        for message in seat.hear():
            if message == REPLACES:
                self._tick_seconds = _PRECISE_TICK_SECONDS
            elif not message and seat.control is not None:  # it has executed another program, or closed all it had
                self._selector.unregister(seat.control)
                seat.control.close()
                seat.control = None
        if seat.is_ready and not was_ready:
            if not self._early_deaths.was_ready:
                self._replace_now()
            self._early_deaths.worker_ready()

    def _keep_time(self) -> None:
        now = time.monotonic()
        if now >= self._tick_monotonic:
            self._tick_monotonic = now + _TICK_SECONDS
            self._out_of_memory.tick()
            reap_all_but({seat.pid for seat in self._seats})
        self._stop_further(self._end.advance(now))
        for seat in self._seats:
            seat.kill_if_overdue()
            if now >= seat.due_monotonic and not self._end.is_stopping:
                self._fork(seat)

    def _replace_now(self) -> None:
        """A worker is ready, so workers can start: what died during init may have its replacement."""
        for seat in self._seats:
            if not seat.pid:
                seat.due_monotonic = 0.0

    # --- deaths --------------------------------------------------------------------------------------------------------

    def _bury(self, seats: list[Seat]) -> None:
        """Workers have ended: answer for them, and replace them."""
        losses = [self._reaped(seat) for seat in seats]
        # Callers first, for theirs may be a matter of milliseconds; but not where the platform takes its time.
        steps = (self._answer, self._replace) if self._api.is_quick else (self._replace, self._answer)
        for step in steps:
            for loss in losses:
                step(loss)
        for loss in losses:
            self._tell(loss)

    def _reaped(self, seat: Seat) -> _Loss:
        """What a worker that has ended leaves to be done."""
        pid = seat.pid
        self._selector.unregister(seat.pidfd)
        if seat.control is not None:
            self._selector.unregister(seat.control)
        code = seat.reap()
        how = f"worker {pid} {describe_exit(code)}{', out of memory' if self._out_of_memory.killed(code) else ''}"
        self._early_deaths.worker_died(ready=seat.is_ready)
        living = sum(bool(other.pid) for other in self._seats)
        is_over = self._end.is_stopping or self._early_deaths.is_crash_loop(workers=len(self._seats), living=living)
        delay = _FOREVER if is_over else self._early_deaths.delay_seconds(ready=seat.is_ready)
        return _Loss(
            seat, pid=pid, code=code, how=how, delay_seconds=delay, answer=self._settle(seat, how, is_replaced=not delay)
        )

    def _answer(self, loss: _Loss) -> None:
        if loss.answer is not None:
            loss.told += f"; {self._give(loss.answer)}"

    def _replace(self, loss: _Loss) -> None:
        """Replace the worker that has died, at once or later or never."""
        loss.seat.due_monotonic = time.monotonic() + loss.delay_seconds
        if not loss.delay_seconds:
            self._fork(loss.seat)
            loss.told += f"; worker {loss.seat.pid} takes its place" if loss.seat.pid else ""
        elif loss.delay_seconds < _FOREVER:
            loss.told += f"; in {loss.delay_seconds:g} s it is replaced"

    def _tell(self, loss: _Loss) -> None:
        is_over = loss.delay_seconds == _FOREVER
        request_id = loss.answer.request_id if loss.answer else None
        if loss.answer or not is_over:
            fields = {"requestId": request_id, "workerPid": loss.pid, "exitCode": loss.code}
            self._records.write(Level.ERROR, f"{loss.how}{loss.told}", event="worker_died", **fields)
        if is_over:
            self._give_up(loss.how)

    def _settle(self, seat: Seat, how: str, *, is_replaced: bool) -> _Answer | None:
        """Leave the connection to the next one or to nobody; what is to be answered for the worker that has died."""
        estate = seat.estate()
        if estate is Estate.IN_CONNECTION:
            if not is_replaced:
                self._give_up_connection(seat)
            return None
        seat.hang_up()
        if estate is Estate.NOTHING:
            return None
        request_id, invocation_id = seat.record.served
        if seat.timed_out_seconds is None:
            return _Answer(request_id, invocation_id, "WorkerDied", f"{how} while it ran invocation {request_id}")
        message = (
            f"invocation {request_id} had {seat.timed_out_seconds:.3g} seconds and didn't give way when they were over: "
            f"its worker was ended and replaced. Where its code stood is in the log"
        )
        return _Answer(request_id, invocation_id, "InvocationTimeout", message)

    def _give_up_connection(self, seat: Seat) -> None:
        """Nobody will look into it for a while; when all ends it is looked into once more, together with the others."""
        assert seat.connection is not None
        self._given_up.append(seat.connection)
        seat.connection = None
        if not self._end.is_stopping:
            self._drain()

    def _drain(self) -> None:
        for request_id, invocation_id in drained(self._given_up):
            message = f"the worker died that was to run invocation {request_id}, before it had begun it"
            told = self._give(_Answer(request_id, invocation_id, "WorkerDied", message))
            self._records.write(Level.ERROR, f"{message}; {told}", event="worker_died", requestId=request_id)
        self._given_up = []

    def _give(self, answer: _Answer) -> str:
        """Answer the caller of an invocation that has lost its worker; what came of it."""
        is_taken = self._api.fail_invocation(answer.request_id, answer.invocation_id, answer.error_type, answer.message)
        answered = f"was answered with {answer.error_type}" if is_taken else "had its answer, or the platform took none any more"
        return f"its invocation {answer.request_id} {answered}"

    def _give_up(self, last: str) -> None:
        """Unless it ends anyway."""
        if self._end.is_stopping:
            return
        self._records.write(
            Level.ERROR,
            f"{self._early_deaths.count} workers in a row ended before they asked for an invocation, at last {last}; "
            "the environment ends, so that the platform replaces it",
            event="crash_loop",
        )
        self._has_given_up = True
        self._stop("workers can't start")

    # --- forks ---------------------------------------------------------------------------------------------------------

    def _fork(self, seat: Seat) -> None:
        """Put a worker into the seat; if that can't be, try again later. In the worker this doesn't return."""
        try:
            theirs = seat.prepare()
            with theirs, _blocked(_STOP_SIGNALS):
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    with _no_way_back():
                        self._become(seat, theirs.detach(), parent)
            if pid == 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, self._users_mask)
                run_worker(seat.run)
            seat.fill(pid)
            self._watch(seat)
        except OSError as error:  # out of processes, memory or descriptors
            seat.give_up()
            seat.due_monotonic = time.monotonic() + _FORK_AGAIN_SECONDS
            if seat.connection is not None:
                self._give_up_connection(seat)
            told = f"a worker could not be started: {error}; in {_FORK_AGAIN_SECONDS:g} s it is tried again"
            self._records.write(Level.ERROR, told, event="fork_failed")

    def _watch(self, seat: Seat) -> None:
        self._selector.register(seat.pidfd, selectors.EVENT_READ, seat)
        assert seat.control is not None
        self._selector.register(seat.control, selectors.EVENT_READ, seat)

    def _become(self, seat: Seat, control: int, parent: int) -> None:
        """In a forked worker, with the stop signals blocked."""
        die_with(parent)
        self._selector.close()
        self._signals.close()
        self._wakeup.close()
        for other in self._seats:
            other.forget(mine=other is seat)
        inherited = Inherited(
            runtime=self._runtime,
            address=self._address,
            record=seat.record,
            control=socket.socket(fileno=control),
            connection=seat.connection,
            users_handlers=self._users_handlers,
            on_ready=self._on_ready,
        )
        become_worker(inherited)

    def _abandon(self) -> None:
        """This process can't go on: kill every worker, and answer for each that had an invocation."""
        self._end.begin(time.monotonic())
        for seat in self._seats:
            if seat.pid:
                os.kill(seat.pid, signal.SIGKILL)
                seat.reap()
            answer = self._settle(seat, "the supervisor of the workers failed", is_replaced=False)
            if answer:
                self._give(answer)
        self._drain()

    # --- the end -------------------------------------------------------------------------------------------------------

    def _stop(self, why: str) -> None:
        """End all workers, each after its invocation. Idempotent: a second SIGTERM changes nothing."""
        if self._end.begin(time.monotonic()):
            self._signal_all(signal.SIGTERM)
            self._records.write(Level.INFO, f"{why}: workers end after their invocation, or in {self._end.seconds:g} s")

    def _stop_further(self, stage: StopStage | None) -> None:
        """Time is running out: interrupt handlers, then kill them."""
        if stage is StopStage.INTERRUPTED:
            for seat in self._seats:
                seat.record.interrupt()
            self._signal_all(signal.SIGTERM)
        elif stage is StopStage.KILLED:
            self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        for seat in self._seats:
            if seat.pid:
                os.kill(seat.pid, number)


@contextmanager
def _no_way_back() -> Iterator[None]:
    """In a forked worker: what fails here ends it, for above is the parent's code."""
    try:
        yield
    except BaseException:  # noqa: BLE001  # the same
        traceback.print_exc()
        os._exit(1)


@contextmanager
def _blocked(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """A signal that came between the fork and the child's own set-up would be told to the parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
