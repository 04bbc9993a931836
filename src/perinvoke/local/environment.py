"""One local execution environment: joins the server, the dispatcher, the logs, the extensions and the runtime's processes."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import shutil
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from perinvoke.errors import InitFailed, LocalError
from perinvoke.exit_code import describe_exit
from perinvoke.local.dispatcher import Dispatcher
from perinvoke.local.exit_status import exit_code
from perinvoke.local.extensions import Extensions
from perinvoke.local.invocation import Request
from perinvoke.local.invoke_api import InvokeApi, function_arn
from perinvoke.local.logs import Logs, Stream
from perinvoke.local.outcome import MAX_REQUEST_BYTES, Outcome
from perinvoke.local.peers import owner_of
from perinvoke.local.process import RuntimeProcess
from perinvoke.local.runtime_api import InitError, RuntimeApi
from perinvoke.local.server import HOST, Server
from perinvoke.local.variables import DEFAULT_REGION, inherited_variables, runtime_handler, runtime_variables

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

    from perinvoke.local.config import LocalConfig
    from perinvoke.local.invocation import Worker

MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less its final NUL
_SOCKET = "log"
_SUPERVISOR = "perinvoke-exec"  # as an exec wrapper; it does what `python -m perinvoke.runtime` does
_DESCRIPTORS = 64  # the process itself, its sockets and some callers
_DESCRIPTORS_PER_WORKER = 5  # its API connection, two log sockets, a pidfd, one caller


class LocalEnvironment:
    """Lives from ``async with`` to its end; leaves no process and no file behind.

    Entering waits until every worker is ready. Raises ``InitFailed`` when the handler can't be imported, the runtime ends or init
    takes longer than Lambda allows; ``PortInUse``; ``LocalError``.
    """

    def __init__(self, config: LocalConfig) -> None:
        self.config = config
        self._stack = AsyncExitStack()
        self._port: int | None = None
        self._gone: str | None = None

    def __repr__(self) -> str:
        return f"<LocalEnvironment {self.config.handler} port={self._port}{' gone' if self._gone else ''}>"

    # --- what callers use --------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Of the Invoke API."""
        if self._port is None:
            raise LocalError("the environment has not been entered")
        return self._port

    @property
    def endpoint_url(self) -> str:
        """For ``boto3.client("lambda", endpoint_url=...)``."""
        return f"http://{HOST}:{self.port}"

    @property
    def runtime_pid(self) -> int:
        """The process id of the runtime's parent, which is its process group's too."""
        return self._process.pid.result()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The workers that are there now."""
        return tuple(sorted(self._worker_pids))

    @property
    def workers_left(self) -> int:
        """How many workers are there now; the platform doesn't replace one that has died, perinvoke's supervisor does."""
        return len(self._dispatcher.workers)

    @property
    def workers_replaced(self) -> int:
        """How many worker processes have come so far beyond those that the environment began with."""
        return max(0, self._workers_seen - self.config.workers)

    @property
    def gone(self) -> str | None:
        """Why the environment has ended by itself; None while it is alive."""
        return self._gone

    async def wait_gone(self) -> str:
        """Wait, without a bound, until the environment ends by itself; the reason."""
        await self._gone_event.wait()
        return self._gone or ""

    async def wait_complete(self, seconds: float) -> bool:
        """Wait until there are as many workers as there should be, but no longer than ``seconds``; whether there are."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._is_complete() and self._gone is None:
                    self._changed.clear()
                    await self._changed.wait()
        return self._is_complete()

    async def invoke(
        self,
        event: bytes,
        *,
        request_id: str | None = None,
        client_context: str | None = None,
        cognito_identity: str | None = None,
        tenant_id: str | None = None,
        trace_id: str | None = None,
    ) -> Outcome:
        """Invoke the function with a JSON event, as the Invoke API does but without HTTP in between.

        Never raises for what happens to the invocation. Waits at most for the time-out; with ``queue`` also for a free worker.
        """
        if len(event) > MAX_REQUEST_BYTES:
            raise LocalError(f"the event has {len(event)} bytes; Lambda allows {MAX_REQUEST_BYTES}")
        optional = {} if request_id is None else {"request_id": request_id}
        request = Request(
            event=event or b"{}",
            client_context=client_context,
            cognito_identity=cognito_identity,
            tenant_id=tenant_id,
            trace_id=trace_id,
            invoked_function_arn=self._arn,
            **optional,
        )
        return await self._dispatcher.submit(request)

    def kill(self) -> None:
        """End all processes at once, without grace. Leaving the ``async with`` is still needed; it gets quicker."""
        if hasattr(self, "_extensions"):
            self._extensions.kill()
        if hasattr(self, "_process"):
            self._process.kill()

    # --- start -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            await self._wait_ready()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        config = self.config
        loop = asyncio.get_running_loop()
        self._gone_event = asyncio.Event()
        self._changed = asyncio.Event()  # a worker has polled, or the environment has gone
        self._ready: asyncio.Future[None] = loop.create_future()
        self._init_until = loop.time() + config.init_seconds
        self._worker_pids: dict[int, int] = {}  # each with its pidfd
        self._workers_seen = 0
        self._stack.callback(self._unwatch_all)
        check_descriptors(config.workers)
        folder = socket_folder()
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)

        variables = inherited_variables()
        wanted = {**variables, **config.env}
        as_json = config.env.get("AWS_LAMBDA_LOG_FORMAT", "JSON").upper() == "JSON"
        region = wanted.get("AWS_REGION") or wanted.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
        self._arn = function_arn(config.function_name, None, region)

        self._logs = Logs(as_json=as_json, on_line=config.on_log, on_worker=self._worker_started)
        self._stack.callback(self._logs.close)
        self._logs.listen(str(folder / _SOCKET))
        self._dispatcher = Dispatcher(
            self._logs,
            timeout_seconds=config.timeout_seconds,
            queue=config.queue,
            on_poll=self._worker_polled,
            refresh=self._refresh if config.supervise else lambda _: None,
        )
        self._runtime_api = RuntimeApi(
            self._dispatcher, identify=self._identify, on_init_error=self._init_failed, supervised=config.supervise
        )
        self._extensions = Extensions(config, self._logs, self._extension_failed)
        server = Server(self._runtime_api, self._extensions.api, InvokeApi(self._dispatcher, region=region))
        self._stack.push_async_callback(server.close)
        self._port = await server.listen(config.port)
        env = runtime_variables(config, inherited=variables, api_address=f"{HOST}:{self._port}", log_socket=str(folder / _SOCKET))
        self._stack.push_async_callback(self._extensions.stop)
        self._extensions.start(env, folder, self._port)
        await self._in_time(self._extensions.wait_registered())  # as on Lambda: only then the runtime is started
        output = self._logs.read_output(Stream.RUNTIME)
        try:
            self._process = RuntimeProcess.start(
                runtime_command(config, env),
                directory=config.directory,
                env=env,
                folder=folder,
                output=output,
                on_exit=self._runtime_exited,
            )
        finally:
            os.close(output)
        self._stack.push_async_callback(self._process.stop)
        self._stack.callback(self._dispatcher.end, "the execution environment was shut down")

    async def _wait_ready(self) -> None:
        await self._in_time(self._extensions.wait_ready())
        await self._in_time(self._ready)

    async def _in_time(self, step: Awaitable[tuple[str, InitError] | None]) -> None:
        """Wait for a step of init; an extension that has failed meanwhile fails the whole."""
        try:
            async with asyncio.timeout_at(self._init_until):
                failed = await step
        except TimeoutError:
            missing = ", ".join(self._extensions.waiting_for())
            waiting = (
                f"extensions not ready: {missing}"
                if missing
                else f"{self.workers_left} of {self.config.workers} workers are ready"
            )
            raise self._init_error(
                "Sandbox.Timedout", f"init took longer than {self.config.init_seconds:g} s; {waiting}"
            ) from None
        if failed is not None:
            raise self._extension_error(*failed)

    # --- what happens ------------------------------------------------------------------------------------------------

    def _worker_polled(self) -> None:
        self._changed.set()
        if not self._ready.done() and self._is_complete():
            self._ready.set_result(None)

    def _is_complete(self) -> bool:
        return len(self._dispatcher.workers) >= self.config.workers

    def _worker_started(self, pid: int) -> None:
        self._workers_seen += 1
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # ended already
            self._worker_ended(pid)
            return
        self._worker_pids[pid] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._worker_ended, pid)
        self._runtime_api.process_started()

    def _worker_ended(self, pid: int) -> None:
        """A worker's process has ended; its connection may live on in a child that it forked."""
        pidfd = self._worker_pids.get(pid)
        code = None if pidfd is None else exit_code(pid, pidfd)
        self._unwatch(pid)
        self._runtime_api.process_ended(pid)
        if self.config.supervise:
            return  # it will be replaced; if it can't be, the runtime's parent ends
        how = "ended" if code is None else describe_exit(code)
        # Another worker may tell more: mostly all of them end, and not every kernel tells how one ended that was reaped at once.
        seconds = _LAST_WORDS_SECONDS * (2 if code is None else 1)
        asyncio.get_running_loop().call_later(seconds, self._fail_init, f"worker {pid} {how} during init", pid)

    def _unwatch(self, pid: int) -> None:
        pidfd = self._worker_pids.pop(pid, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _unwatch_all(self) -> None:
        for pid in tuple(self._worker_pids):
            self._unwatch(pid)

    def _refresh(self, worker: Worker) -> None:
        """Bring the worker's process up to date. What the kernel knows by now may not have been read yet."""
        if worker.pid is not None and (pidfd := self._worker_pids.get(worker.pid)) is not None and _has_ended(pidfd):
            self._worker_ended(worker.pid)
        if worker.pid is None:
            self._logs.accept()
        if worker.pid is None:
            self._runtime_api.find_owner(worker)

    def _identify(self, port: int) -> int | None:
        known = {worker.pid for worker in self._dispatcher.workers}
        unknown = [pid for pid in self._worker_pids if pid not in known]
        return owner_of(port, self.port, likely=unknown, possible=self._worker_pids)

    def _runtime_exited(self, code: int | None) -> None:
        """The runtime's parent ends when all its workers have, or was killed."""
        how = "was killed with its keeper" if code is None else describe_exit(code)
        if code == 0:
            how += ": all its workers have ended"
        self._go(f"the runtime {how}")
        asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self._fail_init, f"the runtime {how}")

    def _extension_failed(self, name: str, error: InitError) -> None:
        """An extension can't go on: as on Lambda that ends the environment."""
        if not self._ready.done():
            self._ready.set_exception(self._extension_error(name, error))
            self._ready.exception()  # seen: who waits for the extensions themselves tells it first
        else:
            self._go(f"the extension {name} has failed: {error.error_type}: {error.message}")

    def _go(self, why: str) -> None:
        """The environment has ended by itself."""
        if self._gone is not None:
            return
        self._gone = why
        self._gone_event.set()
        self._changed.set()
        self._dispatcher.end(why)

    def _init_failed(self, error: InitError) -> None:
        if not self._ready.done():
            self._ready.set_exception(self._init_error(error.error_type, error.message, error.stack_trace))

    def _fail_init(self, reason: str, pid: int | None = None) -> None:
        if not self._ready.done():
            message = f"{reason}, before all workers were ready"
            self._ready.set_exception(self._init_error("Runtime.ExitError", message, pid=pid))

    def _init_error(
        self, error_type: str, message: str, stack_trace: tuple[str, ...] = (), *, pid: int | None = None
    ) -> InitFailed:
        return InitFailed(
            f"{self.config.handler} could not be initialised in {self.config.directory}: {error_type}: {message}",
            error_type=error_type,
            error_message=message,
            stack_trace=stack_trace,
            log_lines=self._logs.startup(pid),
        )

    def _extension_error(self, name: str, error: InitError) -> InitFailed:
        return InitFailed(
            f"the extension {name} could not be initialised: {error.error_type}: {error.message}",
            error_type=error.error_type,
            error_message=error.message,
            stack_trace=error.stack_trace,
            log_lines=self._logs.startup(),
        )


# What a process wrote just before it ended is still on its way through other sockets; a moment lets it be read first.
_LAST_WORDS_SECONDS = 0.1


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def socket_folder() -> Path:
    """A new private folder whose path leaves room for a unix socket."""
    folder = tempfile.mkdtemp(prefix="perinvoke-local-")
    if len(os.fsencode(folder)) + len(_SOCKET) + 1 <= MAX_SOCKET_PATH_BYTES:
        return Path(folder)
    with suppress(OSError):
        Path(folder).rmdir()
    return Path(tempfile.mkdtemp(prefix="perinvoke-local-", dir="/tmp"))


def check_descriptors(workers: int) -> None:
    """Refuse more workers than this process has file descriptors for."""
    needed = _DESCRIPTORS + workers * _DESCRIPTORS_PER_WORKER
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise LocalError(f"{workers} workers need {needed} file descriptors; the limit is {limit}. Raise it: ulimit -n {needed}")


def runtime_command(config: LocalConfig, env: dict[str, str]) -> list[str]:
    """The runtime client, behind the function's exec wrapper if it names one, and behind perinvoke's if that is asked for."""
    command = [config.python, "-m", "awslambdaric", runtime_handler(config)]
    wrapper = env.get("AWS_LAMBDA_EXEC_WRAPPER")
    if config.supervise and not (wrapper and Path(wrapper).name == _SUPERVISOR):
        command = [config.python, "-m", "perinvoke.runtime", *command]
    return [wrapper, *command] if wrapper else command
