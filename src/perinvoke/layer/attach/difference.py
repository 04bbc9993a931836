"""A change as people read it: lines with - and +, in colour on a terminal. Pure.

Of variables only those that change are named, and values are shown only of those that attach itself sets: no secrets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perinvoke.layer.attach.record import ATTACHED
from perinvoke.layer.attach.routes import EXEC_WRAPPER, OTHER_WRAPPER, OWN_HANDLER, PRELOAD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perinvoke.layer.attach.configuration import Parts

_SHOWN = frozenset({EXEC_WRAPPER, OTHER_WRAPPER, OWN_HANDLER, PRELOAD})
_RED, _GREEN, _PLAIN = "\033[31m", "\033[32m", "\033[0m"


def lines(before: Parts, after: Parts, *, colour: bool) -> list[str]:
    """What changes; of layers all are shown, because their order matters."""
    found = []
    for sign, text in _changes(before, after):
        ink = {"-": _RED, "+": _GREEN}.get(sign, "") if colour else ""
        found.append(f"{ink}{sign} {text}{_PLAIN}" if ink else f"{sign} {text}")
    return found


def _changes(before: Parts, after: Parts) -> Iterator[tuple[str, str]]:
    if before.layers != after.layers:
        yield " ", "layers:"
        for sign, arn in _merged(before.layers, after.layers):
            yield sign, f"  {arn}"
    if before.handler != after.handler:
        yield " ", "handler:"
        yield "-", f"  {before.handler}"
        yield "+", f"  {after.handler}"
    if before.environment != after.environment:
        yield " ", "environment:"
        for name in sorted({*before.environment, *after.environment}):
            old, new = before.environment.get(name), after.environment.get(name)
            if old == new:
                continue
            if old is not None:
                yield "-", f"  {_variable(name, old)}"
            if new is not None:
                yield "+", f"  {_variable(name, new)}"


def _variable(name: str, value: str) -> str:
    if name == ATTACHED:
        return f"{name}=… (what detach goes by)"
    return f"{name}={value if name in _SHOWN else '…'}"


def _merged(before: tuple[str, ...], after: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Both lists as one; at most one layer is added, and one taken off, and the others keep their order."""
    rest = list(after)
    for arn in before:
        if arn not in rest:
            yield "-", arn
            continue
        while rest[0] != arn:
            yield "+", rest.pop(0)
        yield " ", rest.pop(0)
    for arn in rest:
        yield "+", arn
