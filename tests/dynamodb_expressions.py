"""DynamoDB's condition and update expressions, as far as this package's requests use them: parsed once, evaluated fast.

moto needs two milliseconds for an update, which is too long for simulations with a hundred thousand of them. What is said here is
compared with moto's answers in ``fleet/test_simulated_dynamodb.py``.
"""

from __future__ import annotations

import operator
import re
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Item: TypeAlias = "Mapping[str, dict[str, Any]]"
Names: TypeAlias = "Mapping[str, str]"
Values: TypeAlias = "Mapping[str, dict[str, Any]]"
Condition: TypeAlias = "Callable[[Item, Names, Values], bool]"
Operand: TypeAlias = "Callable[[Item, Names, Values], dict[str, Any] | None]"

_TOKEN = re.compile(r"\s*(<=|>=|<>|[()<>=,+-]|[#:]?[A-Za-z_]\w*)")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class InvalidExpression(ValueError):
    """What DynamoDB would answer with a ValidationException."""


class Update:
    """An update expression: what it sets, what it removes."""

    def __init__(self, sets: dict[str, Operand], removes: list[str]) -> None:
        self.sets = sets
        self.removes = removes

    def applied(self, item: Item, names: Names, values: Values) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """The item afterwards, and what of it was set. Everything is computed from the item as it was before."""
        written = {}
        for name, operand in self.sets.items():
            value = operand(item, names, values)
            if value is None:
                raise InvalidExpression(f"the attribute that {name} is computed from isn't there")
            written[names.get(name, name)] = value
        gone = {names.get(name, name) for name in self.removes}
        return {name: value for name, value in {**item, **written}.items() if name not in gone}, written


@cache
def condition(expression: str) -> Condition:
    """A ConditionExpression, as a function of the item, the names and the values."""
    parser = _Parser(expression)
    parsed = parser.disjunction()
    parser.expect_end()
    return parsed


@cache
def update(expression: str) -> Update:
    """An UpdateExpression."""
    parser = _Parser(expression)
    parsed = parser.clauses()
    parser.expect_end()
    return parsed


@cache
def placeholders(*expressions: str) -> frozenset[str]:
    """The ``#names`` and ``:values`` that expressions use."""
    return frozenset(token for expression in expressions for token in _tokens(expression) if token[0] in "#:")


def _tokens(expression: str) -> list[str]:
    tokens, at = [], 0
    while expression[at:].strip():
        match = _TOKEN.match(expression, at)
        if match is None:
            raise InvalidExpression(f"syntax error at {expression[at:]!r}")
        tokens.append(match[1])
        at = match.end()
    return tokens


class _Parser:
    """By recursive descent; one method for each rule of the grammar."""

    def __init__(self, expression: str) -> None:
        self._tokens = _tokens(expression)[::-1]

    def expect_end(self) -> None:
        if self._tokens:
            raise InvalidExpression(f"unexpected {self._tokens[-1]!r}")

    def disjunction(self) -> Condition:
        terms = [self._conjunction()]
        while self._takes("OR"):
            terms.append(self._conjunction())
        return lambda item, names, values: any(term(item, names, values) for term in terms)

    def _conjunction(self) -> Condition:
        terms = [self._term()]
        while self._takes("AND"):
            terms.append(self._term())
        return lambda item, names, values: all(term(item, names, values) for term in terms)

    def _term(self) -> Condition:
        if self._takes("("):
            inner = self.disjunction()
            self._expect(")")
            return inner
        if self._takes("NOT"):
            negated = self._term()
            return lambda item, names, values: not negated(item, names, values)
        for function, there in (("attribute_exists", True), ("attribute_not_exists", False)):
            if self._takes(function):
                self._expect("(")
                name = self._next()
                self._expect(")")
                return _presence(name, there=there)
        return self._comparison()

    def _comparison(self) -> Condition:
        left, sign, right = self.operand(), self._next(), self.operand()
        compare = _COMPARISONS.get(sign)
        if compare is None:
            raise InvalidExpression(f"{sign!r} compares nothing")
        return lambda item, names, values: _compared(compare, left(item, names, values), right(item, names, values))

    def clauses(self) -> Update:
        sets: dict[str, Operand] = {}
        removes: list[str] = []
        if self._takes("SET"):
            while True:
                name = self._next()
                self._expect("=")
                sets[name] = self._sum()
                if not self._takes(","):
                    break
        if self._takes("REMOVE"):
            removes.append(self._next())
            while self._takes(","):
                removes.append(self._next())
        return Update(sets, removes)

    def _sum(self) -> Operand:
        left = self.operand()
        for sign, add in (("+", operator.add), ("-", operator.sub)):
            if self._takes(sign):
                return _arithmetic(add, left, self.operand())
        return left

    def operand(self) -> Operand:
        token = self._next()
        if token == "if_not_exists":  # not a password: a token of the grammar
            self._expect("(")
            name = self._next()
            self._expect(",")
            otherwise = self.operand()
            self._expect(")")
            return lambda item, names, values: item.get(names.get(name, name)) or otherwise(item, names, values)
        if token.startswith(":"):
            return lambda item, names, values: values[token]
        return lambda item, names, values: item.get(names.get(token, token))

    def _next(self) -> str:
        if not self._tokens:
            raise InvalidExpression("the expression ends too early")
        return self._tokens.pop()

    def _takes(self, token: str) -> bool:
        if self._tokens and self._tokens[-1] == token:
            self._tokens.pop()
            return True
        return False

    def _expect(self, token: str) -> None:
        found = self._next()
        if found != token:
            raise InvalidExpression(f"{token!r} was expected, {found!r} found")


def _presence(name: str, *, there: bool) -> Condition:
    return lambda item, names, values: (names.get(name, name) in item) is there


def _arithmetic(add: Callable[[Any, Any], Any], left: Operand, right: Operand) -> Operand:
    def result(item: Item, names: Names, values: Values) -> dict[str, Any] | None:
        first, second = left(item, names, values), right(item, names, values)
        if first is None or second is None:
            return None
        if "N" not in first or "N" not in second:
            raise InvalidExpression("only numbers can be added")
        return {"N": str(add(_number(first["N"]), _number(second["N"])))}

    return result


def _compared(compare: Callable[[Any, Any], bool], left: dict[str, Any] | None, right: dict[str, Any] | None) -> bool:
    """What isn't there, or is of another type, compares with nothing; but it is unequal."""
    if left is None or right is None or left.keys() != right.keys():
        return compare is operator.ne
    (kind, first), (_, second) = *left.items(), *right.items()
    return compare(_number(first), _number(second)) if kind == "N" else compare(first, second)


def _number(text: str) -> int | Decimal:
    return int(text) if text.lstrip("-").isdigit() else Decimal(text)
