"""Hands invocations to workers and answers to callers: state and futures, no HTTP, no processes.

Rules:

* A worker has at most one invocation. One that has answered counts as free before it polls again: otherwise a caller that calls
  again at once would be rejected for a gap that no caller can see on Lambda.
* A caller is answered exactly once: by the worker, at the deadline, by rejection, or because the environment has ended.
* The deadline counts from the hand-over to a worker. At the deadline only the caller is answered; the worker stays occupied
  until it answers, as on Managed Instances. One that has died never does.
* Where the runtime's parent supervises its workers, a worker is its connection and not its process: the parent hands the
  connection of one that died while it polled to another process. So a poll outlives its process (``disown``), until another one
  has it (``adopt``) or the connection ends (``remove``).

Everything runs in one event loop's thread, so each method is a critical section.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from perinvoke.local.invocation import Invocation, Request, Worker
from perinvoke.local.outcome import (
    MAX_RESPONSE_BYTES,
    Outcome,
    Status,
    error_fields,
    error_payload,
    timed_out_payload,
    too_large_payload,
)
from perinvoke.local.stages import Stage, Verdict, WorkerStage

if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.local.invocation import Answer

# A queued invocation that no worker takes for this long is rejected, so that workers stuck for ever don't hold callers for ever.
# Lambda's longest time-out, so that one invocation of any length may run before it.
MAX_QUEUE_SECONDS = 900.0
_EXIT_ERROR = "Runtime.ExitError"


@dataclass(frozen=True, slots=True)
class Ending:
    """What a caller is answered."""

    status: Status
    payload: bytes
    error_type: str | None = None
    content_type: str = "application/json"


class Recorder(Protocol):
    """Writes down what happens to invocations. Called in the event loop; ``ended`` before the caller is answered."""

    def started(self, invocation: Invocation) -> None:
        """A worker takes the invocation."""

    def ended(self, invocation: Invocation, ending: Ending, duration_seconds: float) -> None:
        """Its caller is about to be answered."""

    def moved(self, invocation: Invocation, pid: int | None) -> None:
        """Its worker is another process than was thought: the one that it names now, and not ``pid``."""

    def released(self, invocation: Invocation) -> None:
        """Its worker is through with it, in time or late; not heard of a worker that dies after the deadline."""


class Dispatcher:
    """Lives as long as its execution environment.

    ``refresh`` is called before a worker is given an invocation, and before its answer is taken: it brings the worker's process
    up to date by ``disown`` and ``adopt``, where what tells of it hasn't been read yet.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        timeout_seconds: float,
        queue: bool = False,
        on_poll: Callable[[], None] = lambda: None,
        refresh: Callable[[Worker], None] = lambda _: None,
    ) -> None:
        self._recorder = recorder
        self._timeout_seconds = timeout_seconds
        self._queue = queue
        self._on_poll = on_poll
        self._refresh = refresh
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Invocation] = deque()
        self._open: dict[str, Invocation] = {}  # what a worker may still answer: RUNNING and TIMED_OUT
        self._workers: set[Worker] = set()
        self._free: set[Worker] = set()  # POLLING and RETURNING
        self._polling: dict[Worker, asyncio.Future[Invocation]] = {}  # in the order of their polls
        self._ended: str | None = None  # why, once the environment has ended

    def __repr__(self) -> str:
        counts = f"workers={len(self._workers)} free={len(self._free)} waiting={len(self._waiting)} open={len(self._open)}"
        return f"<Dispatcher {counts}{' ended' if self._ended else ''}>"

    @property
    def workers(self) -> frozenset[Worker]:
        """The workers that have polled and are still there."""
        return frozenset(self._workers)

    # --- callers -----------------------------------------------------------------------------------------------------

    def submit(self, request: Request, *, patient: bool = False) -> asyncio.Future[Outcome]:
        """Take an invocation; the future always gets an outcome. A patient one may wait in line when all workers are busy."""
        patient = patient or self._queue
        invocation = Invocation(request, self._loop.create_future(), self._loop.time(), patient)
        if self._ended is not None:
            self._unavailable(invocation)
        elif not patient and len(self._free) <= len(self._waiting):
            self._reject(invocation, "all workers are busy")
        else:
            self._waiting.append(invocation)
            self._match()
            if invocation.stage is Stage.QUEUED:
                invocation.timer = self._loop.call_later(MAX_QUEUE_SECONDS, self._give_up_waiting, invocation)
        return invocation.answer

    def end(self, reason: str) -> None:
        """Answer every caller that still waits, and every later one, with ``reason``. Idempotent.

        As on Lambda the end of the runtime is a function error for what it was running, which a caller mustn't simply repeat; for
        what never reached a worker the service is unavailable.
        """
        if self._ended is not None:
            return
        self._ended = reason
        waiting, self._waiting = self._waiting, deque()
        opened, self._open = self._open, {}
        for invocation in waiting:
            self._unavailable(invocation)
        for invocation in opened.values():
            if invocation.stage is Stage.RUNNING:
                ending = Ending(Status.FUNCTION_ERROR, self._exit_payload(invocation), _EXIT_ERROR)
                self._deliver(invocation, Stage.FAILED, ending)

    # --- workers -----------------------------------------------------------------------------------------------------

    async def next(self, worker: Worker) -> Invocation:
        """Wait for an invocation for this worker; without a bound, as the worker's long poll asks."""
        if worker.invocation is not None:
            # It polls without having answered: its answer got lost on the way. Its caller waits for the deadline.
            worker.invocation.worker = None
            worker.invocation = None
        waiter: asyncio.Future[Invocation] = self._loop.create_future()
        worker.stage = WorkerStage.POLLING
        self._workers.add(worker)
        self._free.add(worker)
        self._polling[worker] = waiter
        self._on_poll()
        self._match()
        try:
            invocation = await waiter
        except asyncio.CancelledError:
            self._take_back(waiter)
            self.remove(worker)
            raise
        self._recorder.started(invocation)
        return invocation

    def answer(self, request_id: str, answer: Answer, *, invocation_id: str | None = None) -> Verdict:
        """Take a worker's answer and pass it to the caller, if one still waits."""
        invocation = self._open.get(request_id)
        if invocation is None:
            return Verdict.UNKNOWN
        if invocation.worker is not None:
            self._refresh(invocation.worker)
        if invocation_id and invocation_id != invocation.id:
            return Verdict.TOO_LATE  # meant for an earlier attempt of the same request
        del self._open[request_id]
        self._release(invocation)
        if invocation.stage is Stage.TIMED_OUT:
            invocation.move(Stage.LATE)
            self._recorder.released(invocation)
            return Verdict.TOO_LATE
        if answer.size_bytes > MAX_RESPONSE_BYTES:
            payload = too_large_payload(answer.size_bytes)
            too_large = Ending(Status.FUNCTION_ERROR, payload, "Function.ResponseSizeTooLarge")
            self._deliver(invocation, Stage.FAILED, too_large)
            return Verdict.TOO_LARGE
        if answer.failed:
            error_type = error_fields(answer.payload)[0] or answer.error_type or "Unhandled"
            self._deliver(invocation, Stage.FAILED, Ending(Status.FUNCTION_ERROR, answer.payload, error_type))
        else:
            self._deliver(invocation, Stage.ANSWERED, Ending(Status.OK, answer.payload, None, answer.content_type))
        return Verdict.ACCEPTED

    def remove(self, worker: Worker) -> None:
        """The worker's connection or process has ended. Its invocation, if any, runs into its deadline. Idempotent."""
        worker.stage = WorkerStage.GONE
        self._workers.discard(worker)
        self._free.discard(worker)
        waiter = self._polling.pop(worker, None)
        if waiter is not None:
            waiter.cancel()
        self._reject_surplus()

    def disown(self, worker: Worker) -> None:
        """The worker's process has ended, its connection has not: another process may take that over, or have done so.

        A poll goes on waiting, and an invocation may yet be answered by whoever reads it. One that has answered is not counted
        any more; if it was about to poll, and another process does, ``next`` brings it back.
        """
        worker.pid, worker.is_orphan = None, True
        if worker.stage is WorkerStage.RETURNING:
            self.remove(worker)

    def adopt(self, worker: Worker, pid: int) -> None:
        """A process holds the worker's connection, and so has its invocation, if any."""
        worker.pid, worker.is_orphan = pid, False
        invocation = worker.invocation
        if invocation is not None:
            before, invocation.worker_pid = invocation.worker_pid, pid
            self._recorder.moved(invocation, before)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _match(self) -> None:
        """Hand waiting invocations to polling workers, both in the order of their coming."""
        while self._waiting and self._polling:
            worker = next(iter(self._polling))
            self._refresh(worker)  # may remove other workers, and reject what waited for those
            if (
                worker.stage is WorkerStage.GONE or not worker.is_connected()
            ):  # dead, and its end of the connection hasn't been read yet
                self.remove(worker)
                continue
            if not self._waiting:
                return
            invocation = self._waiting.popleft()
            if invocation.answer.cancelled():  # its caller has left before it began
                invocation.move(Stage.GONE)
                continue
            waiter = self._polling.pop(worker)
            self._start(invocation, worker)
            waiter.set_result(invocation)

    def _start(self, invocation: Invocation, worker: Worker) -> None:
        invocation.move(Stage.RUNNING)
        invocation.worker, invocation.worker_pid = worker, worker.pid
        invocation.started = self._loop.time()
        invocation.deadline_epoch_ms = int((time.time() + self._timeout_seconds) * 1000)
        invocation.timer = self._loop.call_later(self._timeout_seconds, self._time_out, invocation)
        worker.stage, worker.invocation = WorkerStage.BUSY, invocation
        self._free.discard(worker)
        self._open[invocation.request_id] = invocation

    def _take_back(self, waiter: asyncio.Future[Invocation]) -> None:
        """The poll was cancelled: what was handed over in that moment has not been sent, so it goes back to the head."""
        if not waiter.done() or waiter.cancelled():
            return
        invocation = waiter.result()
        if invocation.stage is not Stage.RUNNING:
            return
        self._open.pop(invocation.request_id, None)
        invocation.move(Stage.QUEUED)
        invocation.worker = invocation.worker_pid = None
        self._waiting.appendleft(invocation)
        self._match()

    def _release(self, invocation: Invocation) -> None:
        worker, invocation.worker = invocation.worker, None
        if worker is None or worker.invocation is not invocation:
            return
        worker.invocation = None
        if worker.is_orphan:  # its process died of it, and somebody else answered
            self.remove(worker)
        elif worker.stage is not WorkerStage.GONE:
            worker.stage = WorkerStage.RETURNING
            self._free.add(worker)

    def _time_out(self, invocation: Invocation) -> None:
        worker = invocation.worker
        if worker is None or worker.stage is WorkerStage.GONE:
            del self._open[invocation.request_id]  # nobody is left to answer late
        payload = timed_out_payload(invocation.request_id, self._timeout_seconds)
        self._deliver(invocation, Stage.TIMED_OUT, Ending(Status.TIMED_OUT, payload, "Sandbox.Timedout"))

    def _give_up_waiting(self, invocation: Invocation) -> None:
        self._waiting.remove(invocation)
        self._reject(invocation, f"no worker became free in {MAX_QUEUE_SECONDS:g} seconds")

    def _reject_surplus(self) -> None:
        """Fewer workers are free than invocations wait: those that may not wait in line are rejected, latest first."""
        surplus = len(self._waiting) - len(self._free)
        impatient = [invocation for invocation in reversed(self._waiting) if not invocation.patient]
        for invocation in impatient[: max(0, surplus)]:
            self._waiting.remove(invocation)
            self._reject(invocation, "all workers are busy")

    def _reject(self, invocation: Invocation, reason: str) -> None:
        payload = error_payload("TooManyRequestsException", f"Rate Exceeded: {reason}.")
        self._deliver(invocation, Stage.REJECTED, Ending(Status.REJECTED, payload, "TooManyRequestsException"))

    def _unavailable(self, invocation: Invocation) -> None:
        self._deliver(invocation, Stage.GONE, Ending(Status.UNAVAILABLE, self._exit_payload(invocation), _EXIT_ERROR))

    def _exit_payload(self, invocation: Invocation) -> bytes:
        return error_payload(_EXIT_ERROR, f"RequestId: {invocation.request_id} Error: {self._ended}")

    def _deliver(self, invocation: Invocation, stage: Stage, ending: Ending) -> None:
        now = self._loop.time()
        started = invocation.started or now
        handed_over = invocation.stage is Stage.RUNNING
        invocation.move(stage)
        if handed_over:
            self._recorder.ended(invocation, ending, now - started)
            if invocation.request_id not in self._open:
                self._recorder.released(invocation)
        if invocation.answer.done():  # its caller has left
            return
        invocation.answer.set_result(
            Outcome(
                request_id=invocation.request_id,
                status=ending.status,
                payload=ending.payload,
                error_type=ending.error_type,
                duration_seconds=now - started,
                waited_seconds=started - invocation.arrived,
                log_tail=invocation.log_tail,
                worker_pid=invocation.worker_pid,
                content_type=ending.content_type,
            )
        )
