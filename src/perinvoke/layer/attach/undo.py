"""What a function was before attach, by its undo record. Pure.

What others have changed since stays: their layers, their variables, their handler. What was attach's own and isn't any more as it
set it, isn't overwritten blindly either; a note says what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from perinvoke.layer.attach.configuration import Parts
from perinvoke.layer.attach.names import layer_of
from perinvoke.layer.attach.record import ATTACHED, Record, record_of
from perinvoke.layer.attach.routes import EXEC_WRAPPER, HANDLER, OTHER_WRAPPER, OWN_HANDLER, WRAPPER


@dataclass(frozen=True)
class Undone:
    """A function without what attach did.

    Attributes:
        parts: what it was, or would be now.
        notes: what isn't as it was set, and what becomes of it.
        record: what says so; None where there is none, and ``parts`` is the function as it is.
    """

    parts: Parts
    notes: tuple[str, ...]
    record: Record | None


def undone(now: Parts) -> Undone:
    """The function without what attach did.

    Raises:
        LayerError: there is a record, and it can't be read.
    """
    record = record_of(now.environment)
    if record is None:
        return Undone(now, (), None)
    notes: list[str] = []
    layers = _layers(now.layers, record, notes)
    moved = _moved_back(now, record, notes)
    handler = moved.handler if moved.handler != now.handler else _handler(now.handler, record, notes)
    environment = dict(moved.environment)
    del environment[ATTACHED]
    for name, (new, old) in record.variables.items():
        if environment.get(name) == new:
            environment.pop(name, None)
            if old is not None:
                environment[name] = old
        elif environment.get(name) != old and moved.environment.get(name) == now.environment.get(name):
            notes.append(f"{name} was changed since, and stays as it is")
    return Undone(Parts(handler, layers, environment), tuple(notes), record)


def _layers(now: tuple[str, ...], record: Record, notes: list[str]) -> tuple[str, ...]:
    if record.layer is None:
        return now
    new, old = record.layer
    at = next((at for at, arn in enumerate(now) if layer_of(arn) == layer_of(new)), None)
    if at is None:
        notes.append(f"{new} was taken off since{'' if old is None else f'; {old}, which it took the place of, is not put back'}")
        return now
    if now[at] != new:
        notes.append(f"{new} was changed to {now[at]} since, which comes off all the same")
    return (*now[:at], *(() if old is None else (old,)), *now[at + 1 :])


def _handler(now: str, record: Record, notes: list[str]) -> str:
    if record.handler is None:
        return now
    new, old = record.handler
    if now == new:
        return old
    if now != old:
        notes.append(f"Handler was changed to {now} since, and stays so")
    return now


def _moved_back(now: Parts, record: Record, notes: list[str]) -> Parts:
    """Where the variable that stands in for a setting was changed since, as if the setting itself had been."""
    environment, handler = dict(now.environment), now.handler
    new, _ = record.variables.get(OWN_HANDLER, (None, None))
    own = environment.get(OWN_HANDLER)
    if record.handler and handler == HANDLER and own and new and own != new:
        notes.append(f"{OWN_HANDLER} was changed to {own} since: that is the Handler now, not {record.handler[1]}")
        handler, environment[OWN_HANDLER] = own, new
    new, _ = record.variables.get(OTHER_WRAPPER, (None, None))
    other = environment.get(OTHER_WRAPPER)
    if EXEC_WRAPPER in record.variables and environment.get(EXEC_WRAPPER) == WRAPPER and other and new and other != new:
        notes.append(f"{OTHER_WRAPPER} was changed to {other} since: that is the {EXEC_WRAPPER} now")
        environment[EXEC_WRAPPER], environment[OTHER_WRAPPER] = other, new
    return Parts(handler, now.layers, environment)
