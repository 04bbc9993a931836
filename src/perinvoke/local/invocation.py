"""What passes through the dispatcher: requests, answers, invocations, workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from perinvoke.local.stages import TRANSITIONS, Stage, WorkerStage

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from perinvoke.local.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller sends: the event and what travels beside it. The contexts are JSON text."""

    event: bytes
    client_context: str | None = None
    cognito_identity: str | None = None
    tenant_id: str | None = None
    trace_id: str | None = None
    invoked_function_arn: str | None = None
    request_id: str = field(default_factory=lambda: str(uuid4()))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker sends back; ``size_bytes`` is what it sent, ``payload`` is empty when that was over the limit."""

    payload: bytes
    size_bytes: int
    failed: bool = False
    error_type: str | None = None
    content_type: str = "application/json"


@dataclass(slots=True, eq=False)
class Worker:
    """One worker, as long as its connection lives.

    Attributes:
        pid: of the process that holds the connection's other end; None where that can't be told.
        port: of the connection's other end.
        is_connected: whether anybody holds the other end.
        is_orphan: its process has ended, and no other one is known to have taken its connection over.
        stage: where it stands.
        invocation: what it has, BUSY.
    """

    pid: int | None = None
    port: int | None = None
    is_connected: Callable[[], bool] = lambda: True
    is_orphan: bool = False
    stage: WorkerStage = WorkerStage.RETURNING
    invocation: Invocation | None = None


@dataclass(slots=True, eq=False)
class Invocation:
    """One invocation, from its arrival until its worker is free again."""

    request: Request
    answer: asyncio.Future[Outcome]
    arrived: float
    patient: bool
    id: str = field(default_factory=lambda: uuid4().hex)
    stage: Stage = Stage.QUEUED
    worker: Worker | None = None
    worker_pid: int | None = None
    started: float = 0.0
    deadline_epoch_ms: int = 0
    timer: asyncio.TimerHandle | None = None
    log_tail: str = ""

    @property
    def request_id(self) -> str:
        """The caller's name for it."""
        return self.request.request_id

    def move(self, stage: Stage) -> None:
        """Enter a stage; an impossible transition is a bug of the dispatcher."""
        assert stage in TRANSITIONS[self.stage], f"{self.stage} -> {stage}"
        self.stage = stage
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
