"""From what a function is and what is wished to what changes. Pure: nobody is asked, and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from perinvoke.layer.attach.configuration import Parts, members
from perinvoke.layer.attach.fitness import check_limits, warnings_about
from perinvoke.layer.attach.names import layer_of, looks_like_ours
from perinvoke.layer.attach.record import ATTACHED, Pair, Record, encode
from perinvoke.layer.attach.routes import Route, chosen, of_ours, routed
from perinvoke.layer.attach.undo import undone
from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from perinvoke.layer.attach.configuration import Configuration


@dataclass(frozen=True)
class Plan:
    """One change.

    Attributes:
        before: the function as it is.
        after: as it shall be.
        warnings: what to know before one says yes.
    """

    before: Parts
    after: Parts
    warnings: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(members(self.before, self.after))


def attaching(function: Configuration, layer: str, route: Route | None) -> Plan:
    """The function with the layer version attached; attached already, it is as if it were detached before.

    Args:
        function: as it is.
        layer: the ARN of the layer version.
        route: None for the one that fits.

    Raises:
        LayerError: it can't be had: a limit of Lambda's, a record that can't be read.
    """
    now, was = function.parts, undone(function.parts)
    before, warnings = was.parts, list(was.notes)
    if route is None:
        route, why = chosen(now, before)
        warnings += [why] if why else []
    wished = routed(Parts(before.handler, _with_layer(now.layers, before.layers, layer), before.environment), route)
    record = _record(before, wished, layer)
    environment = dict(wished.environment)
    if record:
        environment[ATTACHED] = encode(record)
    after = Parts(wished.handler, wished.layers, environment)
    if not members(_without_record(now), wished):  # a record alone is no reason for a change
        return Plan(now, now)
    check_limits(after, layer)
    if route is Route.WRAPPER and function.instances is not None:
        warnings.append(
            "AWS documents exec wrappers for Lambda's own runtimes, and doesn't say whether Managed Instances run them. Look for "
            "the record 'preloaded' in the function's log; where it is missing, take --route handler"
        )
    others = [arn for arn in wished.layers if looks_like_ours(arn) and arn != layer]
    if others:
        warnings.append(f"{', '.join(others)} looks like perinvoke's too; of two, the later in the list wins. Keep one")
    return Plan(now, after, (*warnings, *warnings_about(function)))


def detaching(function: Configuration) -> Plan:
    """The function as it was before it was attached; where nothing of perinvoke's is on it, as it is.

    Raises:
        LayerError: there is something of perinvoke's on it, and nothing says what was there before.
    """
    now, was = function.parts, undone(function.parts)
    ours = of_ours(was.parts)
    left = ", ".join([*filter(looks_like_ours, was.parts.layers), *ours])
    if was.record is None:
        if not left:
            return Plan(now, now)
        raise LayerError(
            f"function {function.name!r} has {left}, and no record of what was there before ({ATTACHED}): it was attached by "
            "hand, or by SAM, CloudFormation, CDK or Terraform. Take it off there"
        )
    warnings = list(was.notes)
    if ours and not any(map(looks_like_ours, was.parts.layers)):
        warnings.append(f"{', '.join(ours)} stays, which attach hasn't set: without the layer the function fails")
    return Plan(now, was.parts, tuple(warnings))


def current_layer(now: Parts) -> str | None:
    """The ARN, without a version, of the layer that attach would replace: the one that it attached, or one that looks like it."""
    was = undone(now)
    if was.record is not None and was.record.layer is not None:
        return layer_of(was.record.layer[0])
    return next((layer_of(arn) for arn in now.layers if looks_like_ours(arn)), None)


def _with_layer(now: tuple[str, ...], before: tuple[str, ...], layer: str) -> tuple[str, ...]:
    """In the place of another version of the same layer, or where attach had put one; else last."""
    for at, arn in enumerate(before):
        if layer_of(arn) == layer_of(layer):
            return (*before[:at], layer, *before[at + 1 :])
    gone = [at for at, arn in enumerate(now) if arn not in before]
    at = gone[0] if gone else len(before)
    return (*before[:at], layer, *before[at:])


def _record(before: Parts, wished: Parts, layer: str) -> Record:
    replaced = next((arn for arn in before.layers if layer_of(arn) == layer_of(layer)), None)
    names = [*before.environment, *(name for name in wished.environment if name not in before.environment)]
    variables: dict[str, Pair] = {
        name: (wished.environment.get(name), before.environment.get(name))
        for name in names
        if wished.environment.get(name) != before.environment.get(name)
    }
    return Record(
        layer=None if replaced == layer else (layer, replaced),
        handler=None if wished.handler == before.handler else (wished.handler, before.handler),
        variables=variables,
    )


def _without_record(parts: Parts) -> Parts:
    return Parts(parts.handler, parts.layers, {name: value for name, value in parts.environment.items() if name != ATTACHED})
