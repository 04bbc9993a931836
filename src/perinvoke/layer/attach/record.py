"""The undo record: what attach has changed on a function, kept in the function's own environment, in the same update.

So it is there exactly when the change is, whoever detaches, from wherever. Small JSON: Lambda has 4 KB for all variables. What
attach hasn't changed is absent, and each pair is what was set and what was there before; null: nothing.

    {"v":1,"layer":["arn…:perinvoke:3",null],"env":{"AWS_LAMBDA_EXEC_WRAPPER":["/opt/perinvoke/exec",null]}}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Mapping

# The variable that holds it.
ATTACHED = "PERINVOKE_ATTACHED"
_VERSION = 1

# What was set, and what was there before.
Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class Record:
    """What attach has changed.

    Attributes:
        layer: the layer version that it added, and the one that it took the place of.
        handler: the ``Handler``.
        variables: by their names.
    """

    layer: tuple[str, str | None] | None = None
    handler: tuple[str, str] | None = None
    variables: Mapping[str, Pair] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        """Whether there is anything to undo."""
        return bool(self.layer or self.handler or self.variables)


def encode(record: Record) -> str:
    """As it stands in the variable; ``parse`` reads it."""
    told: dict[str, Any] = {"v": _VERSION}
    if record.layer:
        told["layer"] = record.layer
    if record.handler:
        told["handler"] = record.handler
    if record.variables:
        told["env"] = record.variables
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False)


def record_of(environment: Mapping[str, str]) -> Record | None:
    """The function's; None where there is none.

    Raises:
        LayerError: there is one, and it can't be read.
    """
    text = environment.get(ATTACHED)
    return None if text is None else parse(text)


def parse(text: str) -> Record:
    """What ``encode`` wrote.

    Raises:
        LayerError: somebody else wrote it, or a newer perinvoke.
    """
    try:
        told = json.loads(text)
        version = told["v"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise _unreadable() from error
    if version != _VERSION:
        raise LayerError(f"{ATTACHED} was written by a newer perinvoke (format {version!r}). Install that one, and try again")
    try:
        return Record(
            layer=_changed(told["layer"]) if "layer" in told else None,
            handler=_both(told["handler"]) if "handler" in told else None,
            variables={name: _pair(pair) for name, pair in told.get("env", {}).items()},
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise _unreadable() from error


def _unreadable() -> LayerError:
    return LayerError(
        f"the variable {ATTACHED}, by which perinvoke layer detach knows what was there before, can't be read: somebody has "
        "changed it. Take off by hand what is perinvoke's (its layer, AWS_LAMBDA_EXEC_WRAPPER=/opt/perinvoke/exec or "
        f"Handler=perinvoke.handler.handler, variables PERINVOKE_…), and {ATTACHED} too"
    )


def _pair(value: object) -> Pair:
    new, old = _two(value)
    if not isinstance(new, str | None) or not isinstance(old, str | None):
        raise TypeError(value)
    return new, old


def _changed(value: object) -> tuple[str, str | None]:
    new, old = _pair(value)
    if new is None:
        raise TypeError(value)
    return new, old


def _both(value: object) -> tuple[str, str]:
    new, old = _changed(value)
    if old is None:
        raise TypeError(value)
    return new, old


def _two(value: object) -> list[object]:
    if not isinstance(value, list) or len(value) != 2:  # noqa: PLR2004  # a pair
        raise TypeError(value)
    return value
