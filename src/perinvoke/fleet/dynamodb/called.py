"""What a function is, as far as those who call it must know: whether it is async, and which argument comes first.

Told from its code object: ``inspect`` would cost a worker 8 ms.
"""

from __future__ import annotations

import functools

from perinvoke.errors import FixConfiguration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

# Of inspect: CO_COROUTINE; CO_GENERATOR or CO_ASYNC_GENERATOR.
_CO_COROUTINE = 0x80
_CO_GENERATORS = 0x20 | 0x200


class Missing(LookupError):
    """A function was called without any argument."""


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine."""
    return _has_flag(function, _CO_COROUTINE)


def is_generator(function: Any) -> bool:
    """Whether calling it gives a generator, which runs only afterwards."""
    return _has_flag(function, _CO_GENERATORS)


class FirstArgument:
    """Finds the first argument of a function's calls; after ``self`` or ``cls``. Lives as long as the function.

    Decorators are looked through, as far as they tell what they wrap: they pass on what they are called with.
    """

    __slots__ = ("_name", "_position")

    def __init__(self, function: Any) -> None:
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        code = _code(function)
        names: Sequence[str] = () if code is None else code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        is_method = names[:1] in {("self",), ("cls",)}
        is_plain = hasattr(function, "__code__") and not hasattr(function, "__self__")  # else its self is bound already
        self._position = 1 if is_method and is_plain else 0
        rest = names[1:] if is_method else names
        self._name = rest[0] if rest and not isinstance(function, functools.partial) else None

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Of this call.

        Raises:
            Missing: there is none.
        """
        if len(args) > self._position:
            return args[self._position]
        if self._name is not None and self._name in kwargs:
            return kwargs[self._name]
        raise Missing


def refuse_awaitable(result: Any, told: str) -> None:
    """Raise ``FixConfiguration`` where a call that didn't look async has begun something that nobody would wait for."""
    if hasattr(type(result), "__await__"):
        if hasattr(result, "close"):
            result.close()  # a coroutine that never runs would only warn
        raise FixConfiguration(told)


def _has_flag(function: Any, flag: int) -> bool:
    code = _code(function)
    return code is not None and bool(code.co_flags & flag)


def _code(function: Any) -> Any:
    """The code object behind a function, method, partial or callable object; None for what is written in C."""
    while isinstance(function, functools.partial):
        function = function.func
    inner = getattr(function, "__func__", function)
    if not hasattr(inner, "__code__") and not isinstance(function, type):
        inner = type(function).__call__
    return getattr(inner, "__code__", None)
