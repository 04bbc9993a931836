"""What a call is known by: its key, and a digest of what belongs to it.

A key is found by a JMESPath expression in the call's first argument, or made by a function of all arguments. A string is taken as
it is, anything else as canonical JSON: members sorted, no blanks, and a number the same however it was written (``1`` and
``1.0``). So ``1`` and ``"1"`` are one key. They are one to people: a producer that quotes its numbers from today on means the
same orders, and to run an order twice is the worse mistake. For a payload, whose digest is always made of JSON, they differ.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions, signature

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb.called import Missing
from perinvoke.fleet.errors import IdempotencyKeyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from perinvoke.fleet.dynamodb.called import FirstArgument

MAX_BYTES = 2_048  # of a partition key, in UTF-8: DynamoDB's limit
NO_PAYLOAD = "-"  # of a record that was begun where payloads are not compared
_PREFIX = "idempotency#"
_DIGEST = "sha256:"  # in place of a key
_SEPARATOR = "#"  # in no name: so of two records one is never taken for the other
_EXACT_INTEGERS = 2**53  # beyond it a float stands for more than one integer
_TOLD_CHARACTERS = 100  # of a value in a message; arbitrary


class _WithParseJson(Functions):  # type: ignore[misc]  # ships no types
    """JMESPath's functions, and one for a body that is JSON in a string."""

    @signature({"types": ["string", "null"]})  # type: ignore[untyped-decorator]  # the same
    def _func_parse_json(self, text: str | None) -> Any:
        return None if text is None else json.loads(text)


_OPTIONS = jmespath.Options(custom_functions=_WithParseJson())


class Source:
    """Where a key or a payload is in what a function is called with; lives as long as the function.

    Args:
        argument: ``"key"`` or ``"payload"``, for messages.
        given: a JMESPath expression, or a function that is called like the other one.
        first: finds what the expression is applied to.

    Raises:
        FixConfiguration: it is neither, or no expression that JMESPath knows.
    """

    __slots__ = ("_compiled", "_first", "_function", "selects_members", "told")

    def __init__(self, argument: str, given: str | Callable[..., Any], first: FirstArgument) -> None:
        self._first = first
        self._compiled = self._function = None
        self.selects_members = True  # a dictionary was put together for this: none of its values may be missing
        if isinstance(given, str):
            self._compiled = _compiled(argument, given)
            self.selects_members = _last(self._compiled.parsed)["type"] == "multi_select_dict"
            self.told = f"{argument}={given!r}"
        elif callable(given):
            self._function = given
            self.told = f"{argument}={getattr(given, '__qualname__', given)}"
        else:
            raise FixConfiguration(
                f"idempotent's {argument} is {given!r}; allowed are a JMESPath expression and a function of the call's arguments"
            )

    def value(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Of this call.

        Raises:
            IdempotencyKeyError: the expression can't be applied to it, or the function failed.
        """
        try:
            if self._function is not None:
                return self._function(*args, **kwargs)
            assert self._compiled is not None
            first = self._first.of(args, kwargs)
            found = self._compiled.search(first, options=_OPTIONS)
        except Missing:
            raise IdempotencyKeyError(
                f"{self.told} has nothing to be applied to: the function was called without arguments"
            ) from None
        except JMESPathError as error:
            raise IdempotencyKeyError(f"{self.told} can't be applied to the call's first argument: {error}") from error
        except Exception as error:
            how = ". It is called with the same arguments as the call" if self._function and isinstance(error, TypeError) else ""
            raise IdempotencyKeyError(f"{self.told} failed with {type(error).__name__}: {error}{how}") from error
        if not _has_members(first) and (found is None or _has_null(found, selects_members=self.selects_members)):
            # Of a payload it would else be the same null in every call, and nothing would be compared.
            raise IdempotencyKeyError(
                f"{self.told} is applied to the call's first argument, and JMESPath finds no members in one of type "
                f"{type(first).__name__}: {_short(first)}. Use a function of the call's arguments: lambda order: order.id"
            )
        return found


def key_of(source: Source, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The call's key.

    Raises:
        IdempotencyKeyError: there is none, it is null, empty or longer than 2,048 bytes, a part of it is null, or it is nothing
            that JSON knows. The error names the expression and what was found.
    """
    value = source.value(args, kwargs)
    if value is None or (isinstance(value, str | list | tuple | dict) and not value):
        raise _no_key(source, value, "null" if value is None else "empty")
    if _has_null(value, selects_members=source.selects_members):
        raise _no_key(source, value, "in part null")
    key = value if isinstance(value, str) else _canonical(source, value)
    size = _size(source, key)
    if size > MAX_BYTES:
        raise IdempotencyKeyError(
            f"{source.told} found a key of {size:,} bytes, {_short(value)}; DynamoDB takes {MAX_BYTES:,}. Choose a shorter part, "
            "or a function that makes a digest of it"
        )
    return key


def digest_of(source: Source | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A digest of the call's payload; the same for what is the same as JSON.

    Raises:
        IdempotencyKeyError: it can't be found, or is nothing that JSON knows.
    """
    if source is None:
        return NO_PAYLOAD
    value = source.value(args, kwargs)
    return _sha256(_canonical(source, value))


def record_id(name: str, key: str) -> str:
    """Under which a call's record lies: readable, and where DynamoDB's limit doesn't allow that, with a digest for the key."""
    readable = f"{_PREFIX}{name}{_SEPARATOR}{key}"
    if len(readable.encode()) <= MAX_BYTES and not key.startswith(_DIGEST):  # whoever chooses keys can't choose another's digest
        return readable
    return f"{_PREFIX}{name}{_SEPARATOR}{_DIGEST}{_sha256(key)}"


def checked_name(name: str) -> str:
    """A name that records can be told apart by.

    Raises:
        FixConfiguration: it isn't one.
    """
    longest = MAX_BYTES - len(f"{_PREFIX}{_SEPARATOR}{_DIGEST}{_sha256('')}")
    given: object = name
    if not isinstance(given, str) or not given or _SEPARATOR in given or len(given.encode("utf-8", "replace")) > longest:
        raise FixConfiguration(
            f"idempotent's name is {_short(name)}; allowed is text of 1 to {longest:,} bytes without {_SEPARATOR!r}"
        )
    return name


def canonical(value: Any) -> str:
    """JSON that is the same for what is the same.

    Raises:
        TypeError: it is nothing that JSON knows: a date, a set, bytes; a member's name that is no string.
        ValueError: it holds a number that JSON has none for: nan, infinity.
        RecursionError: it holds itself, or is nested too deep.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _EXACT_INTEGERS else value
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("a dictionary whose keys are not all strings")
        return {name: _plain(member) for name, member in value.items()}
    raise TypeError(f"a value of type {type(value).__name__}")


def _number(value: Decimal) -> int | float | str:
    """The number as it would be without ``decimal``; one that has more digits than a float is told apart by them."""
    if not value.is_finite():
        raise ValueError(f"{value} is no number of JSON's")
    if abs(value) < _EXACT_INTEGERS and value == value.to_integral_value():
        return int(value)
    near = float(value)
    return near if Decimal(repr(near)) == value else str(value.normalize())


def _canonical(source: Source, value: Any) -> str:
    try:
        return canonical(value)
    except (TypeError, ValueError, RecursionError) as error:
        if hasattr(value, "close") and hasattr(value, "__await__"):
            value.close()  # a coroutine that never runs would only warn
        told = "what is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise IdempotencyKeyError(
            f"{source.told} found {told}, which JSON has no form for: {_short(value)}. Choose a part that has one, or convert it"
        ) from error


def _compiled(argument: str, expression: str) -> Any:
    try:
        compiled = jmespath.compile(expression)
    except JMESPathError as error:
        raise FixConfiguration(
            f"idempotent's {argument} is {expression!r}, which is no JMESPath expression: {error}. See https://jmespath.org"
        ) from error
    if _is_same_always(_last(compiled.parsed)):
        raise FixConfiguration(
            f"idempotent's {argument} is {expression!r}, which is the same for every call: text in '…' or `…` stands for itself. "
            'A member whose name needs quotes is written with double ones: headers."X-Request-Id"'
        )
    unknown = sorted(_functions(compiled.parsed) - _WithParseJson.FUNCTION_TABLE.keys())
    if unknown:
        raise FixConfiguration(
            f"idempotent's {argument} is {expression!r}: there is no {unknown[0]}(), only JMESPath's own and parse_json()"
        )
    return compiled


def _functions(node: Mapping[str, Any]) -> set[str]:
    """The names of all that an expression calls."""
    own = {node["value"]} if node["type"] == "function_expression" else set()
    return own.union(*(_functions(child) for child in node["children"] if isinstance(child, dict)))  # a slice's are numbers


def _last(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of an expression that makes its result."""
    while node["type"] in {"subexpression", "pipe"}:
        node = node["children"][-1]
    return node


def _is_same_always(node: Mapping[str, Any]) -> bool:
    """Whether it puts together nothing but literals. A literal alone is meant: nobody takes it for a member."""
    if node["type"] == "multi_select_dict":
        return all(pair["children"][0]["type"] == "literal" for pair in node["children"])
    return node["type"] == "multi_select_list" and all(child["type"] == "literal" for child in node["children"])


def _has_null(value: Any, *, selects_members: bool) -> bool:
    """Whether a part of a key is missing. An object that was found as a whole may hold nulls."""
    if isinstance(value, list | tuple):
        return any(member is None or _has_null(member, selects_members=False) for member in value)
    return isinstance(value, dict) and selects_members and None in value.values()


def _has_members(value: Any) -> bool:
    """Whether an expression may find something in it: as JMESPath looks, not as Python would."""
    return isinstance(value, list) or hasattr(value, "get")


def _no_key(source: Source, value: Any, what: str) -> IdempotencyKeyError:
    return IdempotencyKeyError(
        f"{source.told} found a key that is {what}: {_short(value)}. Every call needs one: have it sent, or choose another"
    )


def _size(source: Source, key: str) -> int:
    try:
        return len(key.encode())
    except UnicodeEncodeError as error:
        raise IdempotencyKeyError(f"{source.told} found a key that is no valid Unicode: {_short(key)}") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= _TOLD_CHARACTERS else f"{told[:_TOLD_CHARACTERS]}…"
