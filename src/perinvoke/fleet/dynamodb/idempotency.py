"""``idempotent``: a function whose effect happens once for each key, over all environments, however often it is called.

What is guaranteed, of a function that ends: it runs once for each key, until its result expires. Every other call gets that
result, or what ``on_duplicate`` says. What is not, and can't be: a run that is killed, or interrupted at its deadline, may have
had its effect; the retry that comes after it has it again. Whoever can't bear that must make the effect itself conditional.
"""

from __future__ import annotations

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.caller import name_of_function, patience_of
from perinvoke.fleet.dynamodb.called import FirstArgument, is_async, is_generator
from perinvoke.fleet.dynamodb.idempotency_key import Source, checked_name
from perinvoke.fleet.dynamodb.idempotent_call import Plan, async_wrapper, wrapper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Function = TypeVar("Function", bound=Callable[..., Any])

ON_DUPLICATE = ("wait", "return", "raise", "skip")
_LONGEST_EXPIRY_SECONDS = 3_155_760_000.0  # a hundred years; more is a mistake of units
_LONGEST_SKEW_SECONDS = 900.0  # Lambda's longest time-out; clocks that are further apart are broken
# The attribute of a decorated function that says which tables and names its records have; functools.wraps hands it on.
_RECORDS = "_perinvoke_records"


def idempotent(
    table: str,
    key: str | Callable[..., Any],
    *,
    on_duplicate: str = "wait",
    expires_after_seconds: float = 3600,
    payload: str | Callable[..., Any] | None = None,
    skip_value: Any = None,
    name: str | None = None,
    timeout: float | None = None,
    max_clock_skew_seconds: float = 1.0,
    client: Any = None,
) -> Callable[[Function], Function]:
    """Make a function's effect happen once for each key, over all environments, however often it is called.

    For handlers, functions and methods, sync and async; keeps name, signature and ``__wrapped__``. Below ``isolated``::

        @isolated
        @idempotent("table", key="detail.orderId")
        def handler(event, context): ...

    In the other order it works too, but without a deadline to go by.

    The first call writes twice: before the function and after it. A duplicate writes once, and is told what stands there; who
    waits for a run elsewhere reads until that has ended. The first call returns what the function returns, unchanged. A duplicate
    gets what JSON leaves of it: the same as the first one for a caller of Lambda, and in Python lists for tuples.

    A function that raises has not happened: its record is removed, and a retry runs at once. That holds for an interrupt at the
    deadline too. A run that was killed counts as running until its deadline (without ``isolated``: 15 minutes) and
    ``max_clock_skew_seconds`` more; then a retry runs. Either may have had its effect. A run that goes on after its deadline may
    run beside its retry; whoever is late leaves the other's record alone, returns its own result and logs a warning.

    When the function has succeeded and that can't be noted, its result is returned all the same, and an error is logged: to fail
    would have it repeated. A result that can't be kept is an error for every caller, because a retry must not run again.

    Blocks its thread while it calls DynamoDB and while it waits. An async function's loop is not blocked, unless the worker's
    client has to be made first, which takes up to 300 ms: call ``boto3_client("dynamodb")`` at init. Calls end before the
    deadline when they go through the worker's own client; a ``client`` of yours has its own time-outs. May be called from several
    threads at once. A child that the function forks has no part in its run: what it returns or raises is not noted.
    A call with the key of the run that it is made from can't wait for that, and is told ``AlreadyInProgress`` at once.

    Args:
        table: the name or ARN of a table whose key is the string ``id``; ``perinvoke table create`` makes one. Records have a TTL
            attribute, ``expiration``. Leases may use the same.
        key: what a call is known by. A JMESPath expression, applied to the call's first argument (a handler's event; after
            ``self``), with one function more than JMESPath has: ``parse_json(body)``. Or a function, called with all arguments.
            A string is used as it is, else canonical JSON: so ``1`` and ``"1"`` are the same key. At most 2,048 bytes.
        on_duplicate: what a call gets whose key has been there. ``"wait"``: the first one's result, waiting for it until the
            deadline's margin. ``"return"``: its result, or ``AlreadyInProgress`` at once. ``"raise"``: ``AlreadyDone`` or
            ``AlreadyInProgress``. ``"skip"``: ``skip_value``, and one log record. Beware: an SQS consumer that skips while the
            first one still runs has its message deleted, and if the first one then dies, nobody does the work. For SQS use
            ``"return"`` with ``process_records``, unless losing one is better than failing; with ``"wait"`` one message whose
            run has died can keep a batch's others waiting.
        expires_after_seconds: how long a result counts, from when it was written. Longer than the sender goes on trying.
        payload: what must be the same in all calls with a key; as ``key``. None: nothing is compared.
        skip_value: see ``on_duplicate``.
        name: of the function, in all its records; without ``#``. None: the Lambda function's name, the module's and the
            function's own. Give one to keep records over a renaming, to share them between Lambda functions, or to tell apart
            functions that one ``def`` makes.
        timeout: seconds to wait at most for a run elsewhere, or for a table that throttles; None: as long as there is time, and
            without ``isolated`` half a minute.
        max_clock_skew_seconds: how far the clocks of two environments may be apart.
        client: a low-level DynamoDB client. None: ``boto3_client("dynamodb")``.

    Raises:
        FixConfiguration: an argument has a value that isn't allowed; here, when the function is decorated.

    A call raises what the function raises, and:

        IdempotencyKeyError: there is no key, or none that can be used.
        PayloadMismatch: the key came before, with another payload.
        AlreadyInProgress: the first one still runs, or has died and its deadline isn't over.
        AlreadyDone: it has succeeded, and duplicates are to be refused.
        ResultNotJson, ResultTooLarge: the function has succeeded, but its result can't be kept. DynamoDB's limit is 400 KB.
        TableMissing, TableSchemaError, TableForbidden: the table can't be used. The function was not run.
        TableUnavailable: it throttled or did not answer for as long as there was time. The function was not run.
    """
    _check(table, on_duplicate, skip_value, name)
    _check_number("expires_after_seconds", expires_after_seconds, above=0.0, up_to=_LONGEST_EXPIRY_SECONDS)
    _check_number("max_clock_skew_seconds", max_clock_skew_seconds, least=0.0, up_to=_LONGEST_SKEW_SECONDS)
    patience_of(timeout)  # checks it
    first = FirstArgument(None)  # an expression that is none is found here, where it is written
    Source("key", key, first)
    if payload is not None:
        Source("payload", payload, first)

    def decorate(function: Function) -> Function:
        _check_function(function)
        first = FirstArgument(function)
        plan = Plan(
            table,
            _name_for(function, name, table),
            Source("key", key, first),
            None if payload is None else Source("payload", payload, first),
            on_duplicate=on_duplicate,
            expires_after_seconds=expires_after_seconds,
            skip_value=skip_value,
            timeout=timeout,
            max_clock_skew_seconds=max_clock_skew_seconds,
            client=client,
        )
        decorated = (async_wrapper if is_async(function) else wrapper)(function, plan)
        decorated.__dict__[_RECORDS] = {*getattr(function, _RECORDS, ()), (table, plan.name)}
        return decorated  # type: ignore[return-value]  # called like it

    return decorate


def _check_function(function: object) -> None:
    if not callable(function) or isinstance(function, staticmethod):
        raise FixConfiguration(
            f"idempotent wraps a function, and {function!r} is none: put it below classmethod, staticmethod or property"
        )
    if is_generator(function):
        raise FixConfiguration(
            f"idempotent wraps a function, and {function!r} is a generator, which runs after its call has ended"
        )


def _name_for(function: Any, given: str | None, table: str) -> str:
    name = _name_of(function) if given is None else given
    if (table, name) in getattr(function, _RECORDS, ()):
        raise FixConfiguration(
            f"{name} is idempotent already, and one record can't serve two: take one decorator away, or give it another name="
        )
    return name


def _name_of(function: Any) -> str:
    module, own = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not own or own.endswith("<lambda>"):
        raise FixConfiguration(f"{function!r} has no name of its own, so its records need one: give idempotent a name=")
    aws = name_of_function()
    return checked_name(f"{aws}.{module}.{own}" if aws else f"{module}.{own}")


def _check(table: object, on_duplicate: object, skip_value: object, name: object) -> None:
    if not isinstance(table, str) or not table:
        raise FixConfiguration(
            f'idempotent\'s table is {table!r}; allowed is the name or ARN of one: @idempotent(TABLE, key="detail.orderId")'
        )
    if on_duplicate not in ON_DUPLICATE:
        raise FixConfiguration(f"idempotent's on_duplicate is {on_duplicate!r}; allowed is one of {', '.join(ON_DUPLICATE)}")
    if skip_value is not None and on_duplicate != "skip":
        raise FixConfiguration(f"idempotent's skip_value is only for on_duplicate='skip', and that is {on_duplicate!r}")
    if name is not None:
        checked_name(name)  # type: ignore[arg-type]  # is checked there


def _check_number(argument: str, value: object, *, above: float | None = None, least: float | None = None, up_to: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    low = above if least is None else least
    assert low is not None
    if not is_number or not low <= value <= up_to or value == above:  # type: ignore[operator]  # also refuses nan
        begins = f"above {above:g}" if least is None else f"from {least:g} on"
        raise FixConfiguration(f"idempotent's {argument} is {value!r}; allowed are seconds {begins}, up to {up_to:,.0f}")
