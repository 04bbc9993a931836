from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from itertools import permutations, product

import pytest

from environments import run
from perinvoke.local.dispatcher import Dispatcher, Ending
from perinvoke.local.invocation import Answer, Invocation, Request, Worker
from perinvoke.local.outcome import MAX_RESPONSE_BYTES, Outcome, Status
from perinvoke.local.runtime_api import RuntimeApi
from perinvoke.local.stages import TRANSITIONS, Stage, Verdict, WorkerStage
from stalls import repeated_after_a_stall


@dataclass
class Notes:
    """A recorder that remembers."""

    started_ids: list[str] = field(default_factory=list)
    endings: dict[str, Status] = field(default_factory=dict)
    released_ids: list[str] = field(default_factory=list)
    moves: list[tuple[str, int | None, int | None]] = field(default_factory=list)

    def started(self, invocation: Invocation) -> None:
        self.started_ids.append(invocation.request_id)

    def ended(self, invocation: Invocation, ending: Ending, duration_seconds: float) -> None:
        assert duration_seconds >= 0
        self.endings[invocation.request_id] = ending.status

    def moved(self, invocation: Invocation, pid: int | None) -> None:
        self.moves.append((invocation.request_id, pid, invocation.worker_pid))

    def released(self, invocation: Invocation) -> None:
        self.released_ids.append(invocation.request_id)


def dispatcher(*, timeout_seconds: float = 10.0, queue: bool = False, notes: Notes | None = None) -> Dispatcher:
    return Dispatcher(notes or Notes(), timeout_seconds=timeout_seconds, queue=queue)


async def poll(subject: Dispatcher, worker: Worker | None = None) -> asyncio.Task[Invocation]:
    task = asyncio.create_task(subject.next(worker or Worker()))
    await asyncio.sleep(0)
    return task


def ok(payload: bytes = b'"fine"') -> Answer:
    return Answer(payload, len(payload))


def status(future: asyncio.Future[Outcome]) -> Status:
    return future.result().status


def test_an_invocation_goes_to_the_polling_worker_and_its_answer_to_the_caller() -> None:
    async def scenario() -> None:
        notes = Notes()
        subject = dispatcher(notes=notes)
        polling = await poll(subject)
        caller = subject.submit(Request(b"{}"))
        invocation = await polling
        assert invocation.request.event == b"{}"
        assert subject.answer(invocation.request_id, ok(), invocation_id=invocation.id) is Verdict.ACCEPTED
        outcome = await caller
        assert (outcome.status, outcome.payload) == (Status.OK, b'"fine"')
        assert notes.started_ids == notes.released_ids == [invocation.request_id]
        assert notes.endings == {invocation.request_id: Status.OK}

    run(scenario())


def test_invocations_are_handed_out_in_order_to_the_workers_that_have_polled_longest() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        workers = [await poll(subject) for _ in range(3)]
        for number in range(3):
            subject.submit(Request(b"%d" % number))
        assert [(await worker).request.event for worker in workers] == [b"0", b"1", b"2"]

    run(scenario())


def test_a_caller_is_rejected_when_every_worker_is_busy() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        polling = await poll(subject)
        subject.submit(Request(b"{}"))
        await polling
        outcome = await subject.submit(Request(b"{}"))
        assert outcome.status is Status.REJECTED
        assert outcome.error_type == "TooManyRequestsException"

    run(scenario())


def test_a_caller_is_rejected_before_any_worker_has_polled() -> None:
    async def scenario() -> None:
        assert (await dispatcher().submit(Request(b"{}"))).status is Status.REJECTED

    run(scenario())


def test_a_worker_that_has_answered_and_not_polled_yet_counts_as_free() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        worker = Worker()
        polling = await poll(subject, worker)
        subject.submit(Request(b"{}"))
        subject.answer((await polling).request_id, ok())
        caller = subject.submit(Request(b"1"))
        assert not caller.done()
        assert (await subject.submit(Request(b"2"))).status is Status.REJECTED  # one gap, one invocation
        invocation = await (await poll(subject, worker))
        assert invocation.request.event == b"1"

    run(scenario())


def test_an_invocation_waiting_for_a_worker_that_dies_before_it_polls_again_is_rejected() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        worker = Worker()
        polling = await poll(subject, worker)
        subject.submit(Request(b"{}"))
        subject.answer((await polling).request_id, ok())
        caller = subject.submit(Request(b"{}"))
        subject.remove(worker)
        assert status(caller) is Status.REJECTED

    run(scenario())


def test_a_queue_keeps_the_order_of_arrival() -> None:
    async def scenario() -> None:
        subject = dispatcher(queue=True)
        for number in range(3):
            subject.submit(Request(b"%d" % number))
        worker = Worker()
        seen = []
        for _ in range(3):
            invocation = await subject.next(worker)
            seen.append(invocation.request.event)
            subject.answer(invocation.request_id, ok())
        assert seen == [b"0", b"1", b"2"]

    run(scenario())


def test_an_invocation_whose_caller_has_left_the_queue_is_not_started() -> None:
    async def scenario() -> None:
        subject = dispatcher(queue=True)
        subject.submit(Request(b"0")).cancel()
        subject.submit(Request(b"1"))
        assert (await subject.next(Worker())).request.event == b"1"

    run(scenario())


def test_the_caller_is_answered_at_the_deadline_and_the_worker_stays_occupied_until_it_answers() -> None:
    async def scenario() -> None:
        notes = Notes()
        subject = dispatcher(timeout_seconds=0.02, notes=notes)
        worker = Worker()
        polling = await poll(subject, worker)
        outcome = await subject.submit(Request(b"{}"))
        request_id = (await polling).request_id
        assert outcome.status is Status.TIMED_OUT
        assert json.loads(outcome.payload) == {
            "errorType": "Sandbox.Timedout",
            "errorMessage": f"RequestId: {request_id} Error: Task timed out after 0.02 seconds",
        }
        assert (worker.stage, notes.released_ids) == (WorkerStage.BUSY, [])
        assert (await subject.submit(Request(b"{}"))).status is Status.REJECTED
        assert subject.answer(request_id, ok()) is Verdict.TOO_LATE
        assert (worker.stage, notes.released_ids) == (WorkerStage.RETURNING, [request_id])

    run(scenario())


@repeated_after_a_stall
def test_the_deadline_counts_from_the_hand_over_not_from_the_arrival() -> None:
    async def scenario() -> None:
        subject = dispatcher(timeout_seconds=0.05, queue=True)
        caller = subject.submit(Request(b"{}"))
        await asyncio.sleep(0.1)
        invocation = await subject.next(Worker())
        subject.answer(invocation.request_id, ok())
        outcome = await caller
        assert outcome.ok
        assert outcome.waited_seconds >= 0.1 > outcome.duration_seconds

    run(scenario())


@repeated_after_a_stall
def test_a_worker_that_dies_with_an_invocation_leaves_its_caller_waiting_for_the_deadline() -> None:
    async def scenario() -> None:
        notes = Notes()
        subject = dispatcher(timeout_seconds=0.05, notes=notes)
        worker = Worker()
        polling = await poll(subject, worker)
        caller = subject.submit(Request(b"{}"))
        request_id = (await polling).request_id
        subject.remove(worker)
        assert not caller.done()
        assert (await caller).status is Status.TIMED_OUT
        assert notes.released_ids == [request_id]
        assert subject.answer(request_id, ok()) is Verdict.UNKNOWN

    run(scenario())


def test_an_idle_worker_whose_connection_has_dropped_gets_nothing() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        dead = await poll(subject, Worker(is_connected=lambda: False))
        alive = await poll(subject)
        subject.submit(Request(b"{}"))
        assert (await alive).request.event == b"{}"
        assert dead.cancelled() or dead.cancelling() or not dead.done()

    run(scenario())


def test_an_invocation_handed_to_a_poll_that_is_cancelled_goes_to_the_next_worker() -> None:
    async def scenario() -> None:
        notes = Notes()
        subject = dispatcher(notes=notes)
        dropped, other = await poll(subject), await poll(subject)
        caller = subject.submit(Request(b"{}"))
        dropped.cancel()  # handed over, but the poll has not run on yet
        invocation = await other
        subject.answer(invocation.request_id, ok())
        assert (await caller).ok
        assert notes.started_ids == [invocation.request_id]
        assert dropped.cancelled()

    run(scenario())


def test_a_cancelled_poll_without_another_worker_rejects_the_invocation() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        dropped = await poll(subject)
        caller = subject.submit(Request(b"{}"))
        dropped.cancel()
        assert (await caller).status is Status.REJECTED

    run(scenario())


def test_a_second_answer_and_an_unknown_id_are_refused() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        polling = await poll(subject)
        subject.submit(Request(b"{}"))
        request_id = (await polling).request_id
        assert subject.answer("nobody", ok()) is Verdict.UNKNOWN
        assert subject.answer(request_id, ok()) is Verdict.ACCEPTED
        assert subject.answer(request_id, ok()) is Verdict.UNKNOWN

    run(scenario())


def test_an_answer_for_another_attempt_is_too_late_and_harms_nothing() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        polling = await poll(subject)
        caller = subject.submit(Request(b"{}"))
        invocation = await polling
        assert subject.answer(invocation.request_id, ok(), invocation_id="another") is Verdict.TOO_LATE
        assert not caller.done()
        assert subject.answer(invocation.request_id, ok(), invocation_id=invocation.id) is Verdict.ACCEPTED

    run(scenario())


def test_a_response_over_the_limit_becomes_an_error_that_tells_both_sizes() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        polling = await poll(subject)
        caller = subject.submit(Request(b"{}"))
        answer = Answer(b"", MAX_RESPONSE_BYTES + 1)
        assert subject.answer((await polling).request_id, answer) is Verdict.TOO_LARGE
        outcome = await caller
        assert (outcome.status, outcome.error_type) == (Status.FUNCTION_ERROR, "Function.ResponseSizeTooLarge")
        assert "6291557 bytes" in outcome.error_message
        assert "6291556 bytes" in outcome.error_message

    run(scenario())


@pytest.mark.parametrize(
    ("payload", "header", "expected"),
    [
        (b'{"errorType": "ValueError"}', "Other", "ValueError"),
        (b"not json", "FromHeader", "FromHeader"),
        (b"[]", None, "Unhandled"),
    ],
)
def test_the_type_of_an_error_comes_from_its_payload_then_from_the_header(
    payload: bytes, header: str | None, expected: object
) -> None:
    async def scenario() -> None:
        subject = dispatcher()
        polling = await poll(subject)
        caller = subject.submit(Request(b"{}"))
        subject.answer((await polling).request_id, Answer(payload, len(payload), failed=True, error_type=header))
        assert (await caller).error_type == expected

    run(scenario())


def test_the_end_answers_everyone_who_waits_and_everyone_who_comes_later() -> None:
    async def scenario() -> None:
        subject = dispatcher(queue=True)
        polling = await poll(subject)
        begun = subject.submit(Request(b"0"))
        await polling
        first, second = subject.submit(Request(b"1")), subject.submit(Request(b"2"))
        subject.end("the runtime was killed")
        subject.end("again")
        late = subject.submit(Request(b"3"))
        for caller, expected in (
            (begun, Status.FUNCTION_ERROR),
            (first, Status.UNAVAILABLE),
            (second, Status.UNAVAILABLE),
            (late, Status.UNAVAILABLE),
        ):
            assert status(caller) is expected
            assert caller.result().error_type == "Runtime.ExitError"
            assert "the runtime was killed" in caller.result().error_message

    run(scenario())


@repeated_after_a_stall
def test_a_worker_that_polls_without_having_answered_is_free_again_and_its_caller_waits_for_the_deadline() -> None:
    async def scenario() -> None:
        subject = dispatcher(timeout_seconds=0.05)
        worker = Worker()
        polling = await poll(subject, worker)
        lost = subject.submit(Request(b"{}"))
        await polling
        again = await poll(subject, worker)
        other = subject.submit(Request(b"1"))
        subject.answer((await again).request_id, ok())
        assert (await other).ok
        assert (await lost).status is Status.TIMED_OUT

    run(scenario())


def runtime_api(subject: Dispatcher) -> RuntimeApi:
    return RuntimeApi(subject, identify=lambda _: None, on_init_error=lambda _: None, supervised=True)


@pytest.mark.parametrize("order", list(permutations(["process ended", "connection lost", "error posted"])), ids=", ".join)
def test_of_a_worker_that_died_at_work_nothing_is_left_in_whichever_order_it_is_heard(order: tuple[str, ...]) -> None:
    async def scenario() -> None:
        subject = dispatcher()
        api = runtime_api(subject)
        worker = Worker(pid=1, port=1)
        api._workers["connection"] = worker
        polling = await poll(subject, worker)
        caller = subject.submit(Request(b"{}"))
        invocation = await polling
        died = Answer(b'{"errorType": "WorkerDied"}', 1, failed=True)
        for what in order:
            if what == "process ended":
                api.process_ended(1)
            elif what == "connection lost":
                api.connection_lost("connection")
            else:
                assert subject.answer(invocation.request_id, died) is Verdict.ACCEPTED
        assert (await caller).error_type == "WorkerDied"
        assert subject.workers == frozenset()
        assert worker.stage is WorkerStage.GONE
        assert (await subject.submit(Request(b"{}"))).status is Status.REJECTED  # no ghost is free

    run(scenario())


def test_a_dead_worker_whose_connection_a_stranger_keeps_open_is_gone_when_its_invocation_is_answered() -> None:
    async def scenario() -> None:
        subject = dispatcher()
        api = runtime_api(subject)
        worker = Worker(pid=1, port=1)
        api._workers["connection"] = worker
        polling = await poll(subject, worker)
        caller = subject.submit(Request(b"{}"))
        request_id = (await polling).request_id
        api.process_ended(1)
        assert subject.workers == {worker}  # whoever has taken the connection over may answer
        subject.answer(request_id, ok())
        assert (await caller).ok
        assert subject.workers == frozenset()
        again = await poll(subject, worker)  # somebody had, after all
        subject.submit(Request(b"1"))
        assert (await again).request.event == b"1"

    run(scenario())


def test_a_poll_outlives_its_process_and_its_invocation_goes_to_whoever_has_the_connection_then() -> None:
    async def scenario() -> None:
        notes = Notes()
        subject = dispatcher(notes=notes)
        worker = Worker(pid=1)
        polling = await poll(subject, worker)
        subject.disown(worker)
        caller = subject.submit(Request(b"{}"))
        invocation = await polling
        assert invocation.worker_pid is None
        subject.adopt(worker, 2)
        assert notes.moves == [(invocation.request_id, None, 2)]
        subject.answer(invocation.request_id, ok())
        assert (await caller).worker_pid == 2
        assert worker.stage is WorkerStage.RETURNING

    run(scenario())


def test_an_answer_is_taken_after_the_worker_has_been_brought_up_to_date() -> None:
    async def scenario() -> None:
        def refresh(worker: Worker) -> None:
            subject.disown(worker)
            subject.adopt(worker, (worker.pid or 1) + 1)

        subject = Dispatcher(Notes(), timeout_seconds=10, refresh=refresh)
        polling = await poll(subject, Worker(pid=1))
        caller = subject.submit(Request(b"{}"))
        invocation = await polling
        handed_to = invocation.worker_pid
        subject.answer(invocation.request_id, ok())
        assert (handed_to, (await caller).worker_pid) == (2, 2)

    run(scenario())


@pytest.mark.parametrize(("before", "after"), list(product(Stage, Stage)), ids=lambda stage: stage.name)
def test_an_invocation_moves_only_as_the_table_allows(before: Stage, after: Stage) -> None:
    async def scenario() -> None:
        invocation = Invocation(Request(b"{}"), asyncio.get_running_loop().create_future(), 0.0, patient=False)
        invocation.stage = before
        if after in TRANSITIONS[before]:
            invocation.move(after)
            assert invocation.stage is after
        else:
            with pytest.raises(AssertionError):
                invocation.move(after)

    run(scenario())
