"""The life of an invocation and of a worker, as tables."""

from __future__ import annotations

from enum import Enum, auto


class Stage(Enum):
    """Where an invocation stands."""

    QUEUED = auto()  # accepted; no worker has it yet
    RUNNING = auto()  # a worker has it, its caller waits
    TIMED_OUT = auto()  # its caller was answered at the deadline; the worker is still at it
    ANSWERED = auto()  # the handler returned in time
    FAILED = auto()  # the runtime reported an error in time or ended, or the response was too large
    LATE = auto()  # the worker answered after the deadline; nobody listened
    REJECTED = auto()  # all workers were busy
    GONE = auto()  # the environment ended before a worker had it


# QUEUED follows RUNNING when the connection dropped before the worker can have read the invocation.
TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.QUEUED: frozenset({Stage.RUNNING, Stage.REJECTED, Stage.GONE}),
    Stage.RUNNING: frozenset({Stage.ANSWERED, Stage.FAILED, Stage.TIMED_OUT, Stage.QUEUED}),
    Stage.TIMED_OUT: frozenset({Stage.LATE}),
    Stage.ANSWERED: frozenset(),
    Stage.FAILED: frozenset(),
    Stage.LATE: frozenset(),
    Stage.REJECTED: frozenset(),
    Stage.GONE: frozenset(),
}


class WorkerStage(Enum):
    """Where a worker stands, as far as its connection tells."""

    POLLING = auto()  # waits for an invocation
    BUSY = auto()  # has one
    RETURNING = auto()  # has answered and is about to poll again: free, though nothing can be handed to it yet
    GONE = auto()  # its connection or its process has ended


class ExtensionStage(Enum):
    """Where an extension stands."""

    STARTED = auto()  # its process runs
    REGISTERED = auto()  # it has told its name, and which events it wants
    READY = auto()  # it has asked for an event: its init is over
    SHUTTING_DOWN = auto()  # it has been told of the end
    FAILED = auto()  # it has reported an error
    ENDED = auto()  # its process has ended


# An internal extension, which lives in the runtime, begins with REGISTERED.
EXTENSION_TRANSITIONS: dict[ExtensionStage, frozenset[ExtensionStage]] = {
    ExtensionStage.STARTED: frozenset({ExtensionStage.REGISTERED, ExtensionStage.ENDED}),
    ExtensionStage.REGISTERED: frozenset({
        ExtensionStage.READY, ExtensionStage.SHUTTING_DOWN, ExtensionStage.FAILED, ExtensionStage.ENDED,
    }),
    ExtensionStage.READY: frozenset({ExtensionStage.SHUTTING_DOWN, ExtensionStage.FAILED, ExtensionStage.ENDED}),
    ExtensionStage.SHUTTING_DOWN: frozenset({ExtensionStage.FAILED, ExtensionStage.ENDED}),
    ExtensionStage.FAILED: frozenset({ExtensionStage.ENDED}),
    ExtensionStage.ENDED: frozenset(),
}  # fmt: skip


class Verdict(Enum):
    """What a worker is told about its answer."""

    ACCEPTED = auto()
    TOO_LARGE = auto()
    TOO_LATE = auto()
    UNKNOWN = auto()  # no such invocation, or it has been answered before
