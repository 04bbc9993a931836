"""``isolated``: the one place that joins the scopes; and ``handler``, the entry point that needs no change to anybody's code.

One invocation, in order: its context (a copy, so that nothing set in it leaks), its place in the process, the handler, and at the
end, always, ``worker.leave``. What the handler raises reaches the caller unchanged, with three exceptions. What came of the
interrupt at its deadline is an ``InvocationTimeout``. A ``BaseException``: the runtime catches only ``Exception``, so
``SystemExit`` would end a worker that the platform doesn't replace. And the system's "no space left": all workers share the disk,
so the error tells who fills it.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import sys

from perinvoke import worker
from perinvoke.errors import DeadlineReached, FixConfiguration, HandlerError, HandlerExited
from perinvoke.full_disk import raise_if_disk_is_full
from perinvoke.invocation import carry
from perinvoke.invocation.watches import timed_out
from perinvoke.settings import read_settings, warn_of_unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar, overload

    from perinvoke.invocation.context import Invocation
    from perinvoke.settings import Settings

    Handler = TypeVar("Handler", bound=Callable[..., Any])
else:

    def overload(function: Any) -> Any:
        """Stands in for typing.overload, whose import costs a worker 3 ms."""
        return function


# Of inspect, whose import costs a worker 8 ms: CO_COROUTINE, and CO_GENERATOR or CO_ASYNC_GENERATOR.
_CO_COROUTINE = 0x80
_CO_GENERATORS = 0x20 | 0x200


@overload
def isolated(handler: Handler, /, *, on_timeout: str | None = None) -> Handler: ...  # noqa: D103  # ruff knows overload by its import only
@overload
def isolated(*, on_timeout: str | None = None) -> Callable[[Handler], Handler]: ...  # noqa: D103, F811  # the same
def isolated(handler: Any = None, /, *, on_timeout: str | None = None) -> Any:  # noqa: F811  # the same
    """Wrap a Lambda handler so that each invocation has its own scratch directory, state and deferred cleanups.

    Works as ``@isolated`` and ``@isolated()``, for a function, a method or any callable; keeps name, signature and
    ``__wrapped__``. What the handler returns or raises reaches the caller unchanged, except ``SystemExit``,
    ``KeyboardInterrupt`` and every other ``BaseException``: the caller gets ``HandlerExited`` and the worker lives on. An error
    that says that the disk below perinvoke's root is full becomes ``ScratchFull``.

    A handler that is still running when its deadline is ``PERINVOKE_TIMEOUT_MARGIN_MS`` away is interrupted: ``DeadlineReached``
    is raised where it stands (an async handler is cancelled), its ``finally`` blocks run, and the caller gets
    ``InvocationTimeout``. In the main thread that also interrupts what waits; in another thread, a wait is interrupted when it
    returns. Whatever else the handler raises while it is on its way out, the caller learns of the time-out. A handler that
    swallows the interrupt is interrupted again every 50 ms, for a second; then the stacks of all threads are logged.

    An ``async def`` handler runs in an event loop that the worker keeps, and the wrapper returns its result: the runtime calls
    it so. Called where a loop is running (a test, another async handler) it returns an awaitable, as its type says.

    Without a Lambda context (``context=None``, a mock) it works the same, with a made-up request id and no deadline. May be
    called from several threads at once: what the process has only once is then left alone. A child that the handler forks cleans
    up nothing of its parent's, and is not interrupted.

    Args:
        handler: the handler.
        on_timeout: what happens to it at its deadline; None: what ``PERINVOKE_ON_TIMEOUT`` says, and ``"raise"`` without that.
            ``"raise"``: it is interrupted. ``"replace"``: the same, and where a supervisor runs, its worker is ended and replaced
            when it doesn't give way. ``"report"``: the stacks of all threads are logged and it goes on. ``"off"``: nothing.

    Raises:
        SettingError: a ``PERINVOKE_*`` variable or an argument has a value that isn't allowed; here, at init.
        HandlerError: ``handler`` can't be called.
        RootError: from a call: the folder below which perinvoke keeps its files can't be used or trusted.
    """
    if handler is None:
        return functools.partial(isolated, on_timeout=on_timeout)
    if not callable(handler):
        raise HandlerError(f"isolated() wraps a handler, a callable; got {handler!r}", handler=repr(handler))
    if getattr(handler, "__perinvoke_isolated__", None) is True:  # some objects answer to any name
        return handler  # decorated, and named by PERINVOKE_HANDLER as well
    warn_of_unknown()
    carry.install()
    return _wrapped(handler, read_settings(on_timeout=on_timeout))


def _wrapped(handler: Callable[..., Any], settings: Settings) -> Callable[..., Any]:
    code = _code(handler)
    if code is not None and code.co_flags & _CO_GENERATORS:
        raise HandlerError(f"{handler!r} is a generator: it would run after its invocation has ended", handler=repr(handler))
    is_async = code is not None and bool(code.co_flags & _CO_COROUTINE)
    # handler(event, context), or a method of a class being defined: (self, event, context).
    context_position = 2 if code is not None and code.co_varnames[:1] in {("self",), ("cls",)} and _is_function(handler) else 1

    def isolated_handler(*args: Any, **kwargs: Any) -> Any:
        context = args[context_position] if len(args) > context_position else kwargs.get("context")
        event = args[context_position - 1] if len(args) >= context_position else kwargs.get("event")
        own_context = contextvars.copy_context()
        if is_async and _in_running_loop():
            return _awaited(settings, event, context, functools.partial(handler, *args, **kwargs), own_context)
        return own_context.run(_invoked, settings, event, context, handler, args, kwargs)

    try:
        functools.update_wrapper(isolated_handler, handler)
    except TypeError:  # the same: with what is no name
        isolated_handler.__wrapped__ = handler  # type: ignore[attr-defined]
    isolated_handler.__perinvoke_isolated__ = True  # type: ignore[attr-defined]
    return isolated_handler


def _invoked(settings: Settings, event: object, context: object, handler: Callable[..., Any], args: Any, kwargs: Any) -> Any:  # noqa: PLR0917  # no tuple made for every invocation
    """The invocation of a sync handler, or of an async one where no loop runs."""
    invocation = worker.begin(settings, event, context)
    try:
        try:
            worker.enter(invocation, settings)
            result = handler(*args, **kwargs)
            if hasattr(type(result), "__await__"):
                result = _run(invocation, result)
            return result  # noqa: TRY300  # an else would be one more line in every traceback of a handler
        except Exception as error:
            raise_if_disk_is_full(invocation, error, worker.space_of(invocation))
            raise
        finally:
            try:  # here and not in a function of its own, at whose entry a signal handler could raise before its try
                worker.leave(invocation)
            except BaseException:
                worker.leave_all_the_same(invocation)
                raise
    except BaseException as error:
        _raise_in_its_place(invocation, error)
        raise
    finally:
        invocation.watched = None  # else both would wait for the garbage collector


async def _awaited(settings: Settings, event: object, context: object, call: Callable[[], Any], own: contextvars.Context) -> Any:
    """The invocation of an async handler in a loop that is already running: a task of its own, for its own context."""
    import asyncio  # noqa: PLC0415  # cold start: a loop is running, so it is loaded

    return await asyncio.get_running_loop().create_task(_invoked_in_loop(settings, event, context, call), context=own)


async def _invoked_in_loop(settings: Settings, event: object, context: object, call: Callable[[], Any]) -> Any:
    from asyncio import CancelledError, current_task  # noqa: PLC0415  # the same

    from perinvoke.invocation.event_loop import cleaned_up, tasks_cancelled  # noqa: PLC0415  # the same

    invocation = worker.begin(settings, event, context)
    invocation.in_loop = True
    invocation.task = current_task()
    try:
        try:
            worker.enter(invocation, settings)
            return await cleaned_up(invocation, call())
        except Exception as error:
            raise_if_disk_is_full(invocation, error, worker.space_of(invocation))
            raise
        finally:
            try:
                await tasks_cancelled(invocation)
            finally:
                try:  # the same
                    worker.leave(invocation)
                except BaseException:
                    worker.leave_all_the_same(invocation)
                    raise
    except BaseException as error:
        if not isinstance(error, CancelledError) or timed_out(invocation, error) is not None:
            _raise_in_its_place(invocation, error)
        raise  # who cancels this task, wants it cancelled
    finally:
        invocation.task = invocation.watched = None  # else they would wait for the garbage collector


def _run(invocation: Invocation, result: Any) -> Any:
    if _in_running_loop():
        if hasattr(result, "close"):
            result.close()  # a coroutine that never runs would only warn
        raise FixConfiguration(
            "the handler returned an awaitable, and this thread runs an event loop: wrap the async function itself with isolated"
        )
    return worker.process.event_loops().run(invocation, result)


def _raise_in_its_place(invocation: Invocation, error: BaseException) -> None:
    """Raise what the caller gets instead of ``error``; return where that is ``error`` itself."""
    timeout = timed_out(invocation, error)
    if timeout is not None:
        try:
            raise timeout from error
        finally:
            del timeout, error  # else they and this frame would wait for the garbage collector
    if not isinstance(error, Exception | DeadlineReached):  # of an outer invocation, whose own wrapper translates it
        raise _exited(invocation, error) from error


def _exited(invocation: Invocation, error: BaseException) -> HandlerExited:
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return HandlerExited(
        f"the handler raised {told} in invocation {invocation.request_id}; the worker lives on", exception=type(error).__name__
    ).with_traceback(error.__traceback__)


def _in_running_loop() -> bool:
    if "asyncio" not in sys.modules:
        return False
    from perinvoke.invocation.event_loop import in_running_loop  # noqa: PLC0415  # cold start: not before asyncio is there

    return in_running_loop()


def _code(handler: Any) -> Any:
    """The code object behind a function, method, partial or callable object; None for what is written in C."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__") and not isinstance(handler, type):
        function = type(handler).__call__
    code = getattr(function, "__code__", None)
    return code if isinstance(code, type(_code.__code__)) else None  # the same


def _is_function(handler: Any) -> bool:
    return hasattr(handler, "__code__") and not hasattr(handler, "__self__")


def load_handler(name: str) -> Callable[..., Any]:
    """Import the handler named as Lambda names it: ``module.function``, ``folder/module.function``.

    Raises:
        HandlerError: the name is malformed, or there is no such module or function; the error says which. What the module itself
            raises on import comes through unchanged.
    """
    module_path, _, function = name.rpartition(".")
    module_name = module_path.replace("/", ".")
    if not function or not all(module_name.split(".")):
        raise _not_found(name, "it must look like module.function, for example app.handler")
    if module_name == __name__:
        raise _not_found(name, "that is perinvoke itself; name the function's own handler")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # found, and it misses a module of its own
        raise _not_found(name, f"module {module_name!r} can't be imported: {error}") from error
    found = getattr(module, function, None)
    if found is None:
        raise _not_found(name, f"module {module_name!r} has no {function!r}")
    if not callable(found):
        raise _not_found(name, f"{function!r} in module {module_name!r} is of type {type(found).__name__}, which can't be called")
    return found  # type: ignore[no-any-return]


def _not_found(name: str, reason: str) -> HandlerError:
    return HandlerError(f"PERINVOKE_HANDLER is {name!r}: {reason}", handler=name)


def __getattr__(name: str) -> Any:
    """``perinvoke.handler.handler``: the handler that ``PERINVOKE_HANDLER`` names, isolated; loaded when the runtime asks."""
    if name != "handler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    named = read_settings().handler
    if named is None:
        raise HandlerError(
            "perinvoke.handler.handler needs PERINVOKE_HANDLER, the name of the function's own handler, for example app.handler",
            handler="",
        )
    try:
        globals()["handler"] = found = isolated(load_handler(named))
    except AttributeError as error:
        # Whoever asks for an attribute would take it for "there is none", and the function's own error would be lost.
        from traceback import extract_tb  # noqa: PLC0415  # cold start: it can't go on anyway

        where = extract_tb(error.__traceback__)[-1]
        raise _not_found(named, f"its module raised AttributeError: {error}, at {where.filename}:{where.lineno}") from error
    return found
