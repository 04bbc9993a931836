"""What a process does to become a worker, right after the fork: it forgets what is the parent's and takes what is its own."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from perinvoke.environment import supervised
from perinvoke.runtime.mailbox import REPLACES, Mailbox, RuntimeClient
from perinvoke.runtime.process_tree import die_before_parent

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import FrameType, ModuleType

    from perinvoke.runtime.worker_record import WorkerRecord

_INTERRUPTED = 128 + signal.SIGTERM  # as shells tell it


class Supervision:
    """What the rest of perinvoke sees of the parent, in ``perinvoke.environment.supervised``; lives as long as the worker."""

    def __init__(self, record: WorkerRecord, control: socket.socket) -> None:
        self._record = record
        self._control = control
        self._is_announced = False

    def replace_at(self, at_monotonic: float, timeout_seconds: float) -> None:
        """Have this worker ended and replaced at that second of CLOCK_MONOTONIC, and its caller answered; 0.0 takes it back."""
        if not self._is_announced:
            self._is_announced = True
            try:
                self._control.send(REPLACES)
            except OSError:  # the handler has closed it; the parent still looks once a second
                pass
        self._record.replace_at(at_monotonic, timeout_seconds)


class Inherited(NamedTuple):
    """What a worker has from its parent.

    Attributes:
        runtime: awslambdaric's module whose ``runtime_client`` asks and answers.
        address: of the runtime API.
        record: shared with the parent.
        control: to the parent.
        connection: a predecessor's, with a request waiting on it.
        users_handlers: of the signals that the parent handles, as they were before.
        on_ready: called once the runtime has set the worker up, before it asks for its first invocation.
    """

    runtime: ModuleType
    address: str
    record: WorkerRecord
    control: socket.socket
    connection: socket.socket | None
    users_handlers: dict[signal.Signals, Any]
    on_ready: Callable[[], None]


def become_worker(inherited: Inherited) -> None:
    """Set up this process, forked a moment ago with SIGTERM blocked, as a worker."""
    die_before_parent()
    atexit._clear()  # noqa: SLF001  # as multiprocessing does: what was registered before the fork is the parent's to undo
    _own_randomness()
    record, runtime, control = inherited.record, inherited.runtime, inherited.control
    mailbox = Mailbox(inherited.address, record, control, inherited.connection, _user_agent())
    runtime.runtime_client = RuntimeClient(runtime.runtime_client, mailbox, inherited.on_ready)  # type: ignore[attr-defined]
    supervised.supervisor = Supervision(record, control)
    os.register_at_fork(after_in_child=functools.partial(_forget, mailbox, control))
    signal.set_wakeup_fd(-1)
    for number, handler in inherited.users_handlers.items():
        signal.signal(number, handler)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # what the function's own code did about it when preloaded, stays
        signal.signal(signal.SIGTERM, _leaver(record, mailbox))


def run_worker(run: Callable[[], object]) -> NoReturn:
    """Run what the runtime wants its process to run, and end: this never returns into the parent's code.

    Raises:
        SystemExit: always, up to the interpreter, so that exit functions run and threads are waited for.
    """
    try:
        run()
    except SystemExit:
        raise
    except BaseException:  # noqa: BLE001  # whatever it is, it must not get into the parent's code
        traceback.print_exc()
        raise SystemExit(1) from None
    raise SystemExit(0)


def _leaver(record: WorkerRecord, mailbox: Mailbox) -> Callable[[int, FrameType | None], None]:
    """SIGTERM: the worker ends after its invocation. Once the parent has no more time for that, the handler is interrupted."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        mailbox.leave()
        if record.is_interrupted:
            raise SystemExit(_INTERRUPTED)

    return leave


def _forget(mailbox: Mailbox, control: socket.socket) -> None:
    """A process that a handler forks is no worker, even if it comes back from the handler: it asks for nothing, notes nothing."""
    supervised.supervisor = None
    mailbox.forget()
    control.close()


def _own_randomness() -> None:
    """Python's ``random`` seeds itself anew after a fork; numpy's global generator doesn't."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _user_agent() -> str:
    """As awslambdaric names itself to the platform."""
    import awslambdaric  # noqa: PLC0415  # there by now: the runtime runs

    version = sys.version_info
    return f"aws-lambda-python/{version.major}.{version.minor}.{version.micro}-{awslambdaric.__version__}"
