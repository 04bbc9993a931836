"""The ways in which a function comes to be isolated without a change to its code, as settings. Pure.

* wrapper: ``AWS_LAMBDA_EXEC_WRAPPER`` is the layer's script, which names perinvoke's handler in place of the function's own, and
  becomes the parent of the workers. Another wrapper that was there is kept: the script runs it first.
* handler: ``Handler`` is perinvoke's, and ``PERINVOKE_HANDLER`` the function's own. Wrappers stay as they are.

A handler that another library has put before the function's own (Datadog's) is what perinvoke's calls then: perinvoke is outside.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from perinvoke.layer.attach.configuration import Parts
from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable

HANDLER = "perinvoke.handler.handler"
OWN_HANDLER = "PERINVOKE_HANDLER"
WRAPPER = "/opt/perinvoke/exec"
EXEC_WRAPPER = "AWS_LAMBDA_EXEC_WRAPPER"
OTHER_WRAPPER = "PERINVOKE_EXEC_WRAPPER"
PRELOAD = "PERINVOKE_PRELOAD"


class Route(Enum):
    """By its name in ``--route``."""

    WRAPPER = "wrapper"
    HANDLER = "handler"


def chosen(now: Parts, before: Parts) -> tuple[Route, str | None]:
    """The route for who has named none: the one that it is on, or the one that disturbs nobody; and what is to be said of it.

    Args:
        now: the function.
        before: the same without what attach has changed.
    """
    if now.environment.get(EXEC_WRAPPER) == WRAPPER:
        return Route.WRAPPER, None
    if now.handler == HANDLER:
        return Route.HANDLER, None
    other = before.environment.get(EXEC_WRAPPER)
    if other:
        return Route.HANDLER, (
            f"{EXEC_WRAPPER} is {other} already, and there can be only one: so the route is 'handler', which neither supervises "
            "nor preloads. --route wrapper does, and runs that wrapper first"
        )
    return Route.WRAPPER, None


def routed(before: Parts, route: Route) -> Parts:
    """A function that isn't perinvoke's yet, with what the route sets; layers stay.

    Raises:
        LayerError: its handler is perinvoke's, and nobody knows its own.
    """
    if before.handler == HANDLER and not before.environment.get(OWN_HANDLER):
        raise LayerError(
            f"Handler is {HANDLER}, and there is no {OWN_HANDLER}: set it to the function's own, such as app.handler"
        )
    routes: dict[Route, Callable[[Parts], Parts]] = {Route.WRAPPER: _with_wrapper, Route.HANDLER: _with_handler}
    return routes[route](before)


def is_isolated(parts: Parts) -> bool:
    """Whether perinvoke's handler is called, by Lambda or by another library's handler, whose variable names it."""
    return parts.handler == HANDLER or HANDLER in parts.environment.values()


def of_ours(parts: Parts) -> list[str]:
    """The settings that need the layer, as somebody reads them."""
    found = []
    if parts.environment.get(EXEC_WRAPPER) == WRAPPER:
        found.append(f"{EXEC_WRAPPER}={WRAPPER}")
    if parts.handler == HANDLER:
        found.append(f"Handler={HANDLER}")
    return found + [f"{name}={HANDLER}" for name, value in parts.environment.items() if value == HANDLER]


def _with_wrapper(before: Parts) -> Parts:
    environment = dict(before.environment)
    other = environment.get(EXEC_WRAPPER)
    if other and other != WRAPPER:
        environment[OTHER_WRAPPER] = other
    environment[EXEC_WRAPPER] = WRAPPER
    # A nicety that can't break: what can't be shared by a fork is refused there, and each worker then imports for itself.
    environment.setdefault(PRELOAD, "handler")
    return Parts(before.handler, before.layers, environment)


def _with_handler(before: Parts) -> Parts:
    environment = dict(before.environment)
    if environment.get(EXEC_WRAPPER) == WRAPPER:  # set by hand; the other route is wished now
        other = environment.pop(OTHER_WRAPPER, None)
        del environment[EXEC_WRAPPER]
        if other:
            environment[EXEC_WRAPPER] = other
    if is_isolated(before):  # a second time it would call itself, by way of the other library's handler
        return Parts(before.handler, before.layers, environment)
    environment[OWN_HANDLER] = before.handler
    return Parts(HANDLER, before.layers, environment)
