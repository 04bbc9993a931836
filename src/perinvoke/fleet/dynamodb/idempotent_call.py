"""One call of a function that is to happen once: begin, run, complete; or answer as a duplicate. Sync, and beside an event loop.

The record is touched only by the run that owns it. What the function raises is what its caller gets, whatever becomes of that.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os

from perinvoke.fleet.caller import patience_of, runs_at_most_seconds
from perinvoke.fleet.dynamodb import idempotency_reports as reports
from perinvoke.fleet.dynamodb.called import refuse_awaitable
from perinvoke.fleet.dynamodb.caller import client_of
from perinvoke.fleet.dynamodb.idempotency_key import digest_of, key_of
from perinvoke.fleet.dynamodb.idempotency_protocol import Found, Run, begin, complete, forget
from perinvoke.fleet.dynamodb.idempotency_result import kept, raise_problem, result_of
from perinvoke.fleet.dynamodb.states import Idempotency
from perinvoke.fleet.dynamodb.steps import run as driven
from perinvoke.fleet.dynamodb.steps import run_beside_loop
from perinvoke.fleet.errors import TableUnavailable
from perinvoke.fleet.patience import REAL_CLOCK, Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from perinvoke.fleet.dynamodb.idempotency_key import Source
    from perinvoke.fleet.dynamodb.idempotency_protocol import Steps
    from perinvoke.fleet.dynamodb.idempotency_result import Kept

# Seconds. How long the error of a function may wait for its record to be removed from a table that throttles. Arbitrary: where it
# fails, the retry begins after the deadline.
_FORGETS_SECONDS = 5.0
_BELOW = "put idempotent on the async function, below other decorators"

# What is running here, outermost first. A thread that outlives its run goes on to see it, and that it is over.
_runs: contextvars.ContextVar[tuple[Run, ...]] = contextvars.ContextVar("perinvoke.idempotent", default=())


class Plan:
    """What was asked for; lives as long as the function."""

    def __init__(self, table: str, name: str, key: Source, payload: Source | None, **options: Any) -> None:
        self.table, self.name, self.key, self.payload = table, name, key, payload
        self.on_duplicate: str = options["on_duplicate"]
        self.expires_after_seconds: float = options["expires_after_seconds"]
        self.skip_value = options["skip_value"]
        self.timeout: float | None = options["timeout"]
        self.max_clock_skew_seconds: float = options["max_clock_skew_seconds"]
        self.client = options["client"]

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        """What this call is to be."""
        key, payload = key_of(self.key, args, kwargs), digest_of(self.payload, args, kwargs)
        return Run(self.table, self.name, key, payload=payload, max_skew_seconds=self.max_clock_skew_seconds, clock=REAL_CLOCK)

    def begin(self, run: Run) -> Steps[Found]:
        """The first write, and the wait if there is one."""
        return begin(run, runs_at_most_seconds, patience_of(self.timeout), waits=self.on_duplicate == "wait")

    def keep(self, run: Run, result: Any) -> Kept:
        """What the second write is to write."""
        return kept(run, result, self.expires_after_seconds)

    def complete(self, run: Run, keeps: Kept, patience: Patience | None = None) -> Steps[bool]:
        """The second write."""
        return complete(run, keeps.result, keeps.problem, self.expires_after_seconds, patience or patience_of())

    def answer(self, run: Run, found: Found) -> Any:
        """What a duplicate gets."""
        done = found.state is Idempotency.DONE
        if self.on_duplicate == "skip":
            reports.skipped(run, done=done)
            return self.skip_value
        if not done:
            raise reports.in_progress(run, found)
        if self.on_duplicate == "raise":
            raise reports.already_done(run)
        return result_of(run, found.record)


def wrapper(function: Callable[..., Any], plan: Plan) -> Callable[..., Any]:
    """The function, once for each key."""

    @functools.wraps(function)
    def idempotent_function(*args: Any, **kwargs: Any) -> Any:
        run = plan.run(args, kwargs)
        outer = _runs.get()
        client = client_of(plan.client)
        found = _own_running(run, outer) or _begun(plan, run, client)
        if found.state is not Idempotency.OURS:
            return plan.answer(run, found)
        _runs.set((*outer, run))
        try:
            result = function(*args, **kwargs)
            refuse_awaitable(result, f"{plan.name} returned an awaitable, and doesn't look async: {_BELOW}")
        except BaseException:
            if _is_own(run):
                _forget(run, client)
            raise
        finally:
            run.over = True
            _runs.set(outer)
        if _is_own(run):
            keeps = plan.keep(run, result)
            _complete(plan, run, keeps, client)
            raise_problem(run, keeps.problem)
        return result

    return idempotent_function


def _begun(plan: Plan, run: Run, client: Any) -> Found:
    try:
        return driven(plan.begin(run), client)
    except BaseException as error:
        if _may_have_begun(run, error):
            with contextlib.suppress(Exception):  # the error says already that it may have begun
                driven(forget(run, _one_attempt()), client)
        raise


def _complete(plan: Plan, run: Run, keeps: Kept, client: Any) -> None:
    """Raises nothing but an interrupt: the effect has happened, and an error would have it repeated."""
    try:
        reports.completed(run, is_ours=driven(plan.complete(run, keeps), client))
    except Exception as error:  # noqa: BLE001  # whatever it is
        reports.not_noted(run, error)
    except BaseException as interrupt:
        try:  # it is worth what is left of the time
            reports.completed(run, is_ours=driven(plan.complete(run, keeps, _one_attempt()), client))
        except Exception:  # noqa: BLE001  # the interrupt counts
            reports.not_noted(run, interrupt)
        raise


def _forget(run: Run, client: Any) -> None:
    """Before an error goes on its way, which nothing here may replace."""
    try:
        driven(forget(run, patience_of(_FORGETS_SECONDS)), client)
    except Exception as error:  # noqa: BLE001  # whatever it is
        reports.not_forgotten(run, error)


def async_wrapper(function: Callable[..., Any], plan: Plan) -> Callable[..., Any]:
    """The coroutine function, once for each key: the same steps beside an event loop.

    ``GeneratorExit`` says that nobody drives the coroutine any more: then there can be no waiting for answers.
    """

    @functools.wraps(function)
    async def idempotent_coroutine(*args: Any, **kwargs: Any) -> Any:
        run = plan.run(args, kwargs)
        outer = _runs.get()
        client = client_of(plan.client)
        found = _own_running(run, outer) or await _begun_beside_loop(plan, run, client)
        if found.state is not Idempotency.OURS:
            return plan.answer(run, found)
        _runs.set((*outer, run))
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            if _is_own(run) and not isinstance(error, GeneratorExit):
                await _forget_beside_loop(run, client)
            raise
        finally:
            run.over = True
            _runs.set(outer)
        if _is_own(run):
            keeps = plan.keep(run, result)
            await _complete_beside_loop(plan, run, keeps, client)
            raise_problem(run, keeps.problem)
        return result

    return idempotent_coroutine


async def _begun_beside_loop(plan: Plan, run: Run, client: Any) -> Found:
    try:
        return await run_beside_loop(plan.begin(run), client)
    except BaseException as error:
        if _may_have_begun(run, error) and not isinstance(error, GeneratorExit):
            with contextlib.suppress(Exception):  # the same
                await run_beside_loop(forget(run, _one_attempt()), client)
        raise


async def _complete_beside_loop(plan: Plan, run: Run, keeps: Kept, client: Any) -> None:
    try:
        reports.completed(run, is_ours=await run_beside_loop(plan.complete(run, keeps), client))
    except Exception as error:  # noqa: BLE001  # the same
        reports.not_noted(run, error)
    except GeneratorExit as ended:
        reports.not_noted(run, ended)
        raise
    except BaseException as interrupt:
        try:
            reports.completed(run, is_ours=await run_beside_loop(plan.complete(run, keeps, _one_attempt()), client))
        except Exception:  # noqa: BLE001  # the same
            reports.not_noted(run, interrupt)
        raise


async def _forget_beside_loop(run: Run, client: Any) -> None:
    try:
        await run_beside_loop(forget(run, patience_of(_FORGETS_SECONDS)), client)
    except Exception as error:  # noqa: BLE001  # the same
        reports.not_forgotten(run, error)


def _one_attempt() -> Patience:
    return Patience(0.0, REAL_CLOCK)


def _own_running(run: Run, outer: tuple[Run, ...]) -> Found | None:
    """Where the call is made from a run with the same record that has not ended: it would wait for itself."""
    inside = any(other.record_key == run.record_key and other.table == run.table and not other.over for other in outer)
    return Found(Idempotency.RUNNING, {}) if inside else None


def _is_own(run: Run) -> bool:
    """Whether this is the process that has begun it."""
    return run.pid == os.getpid()


def _may_have_begun(run: Run, error: BaseException) -> bool:
    """Whether a record of a run that won't be may be there."""
    if not run.in_doubt:
        return False
    if isinstance(error, TableUnavailable):
        return error.carried_out is None
    return not isinstance(error, Exception)  # an interrupt; any other error says that the request was not carried out
