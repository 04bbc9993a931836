"""``perinvoke layer attach`` and ``perinvoke layer detach``, from their options to their exit codes.

What changes goes to stdout; all else, and the question, to stderr.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from perinvoke.errors import PerinvokeError
from perinvoke.layer.account import Account
from perinvoke.layer.attach.configuration import unpublished
from perinvoke.layer.attach.difference import lines
from perinvoke.layer.attach.fitness import check_kind
from perinvoke.layer.attach.layer_choice import layer_version
from perinvoke.layer.attach.names import parse_function
from perinvoke.layer.attach.plan import attaching, current_layer, detaching
from perinvoke.layer.attach.record import ATTACHED
from perinvoke.layer.attach.remote import LATEST_PUBLISHED, RemoteFunction
from perinvoke.layer.attach.routes import Route
from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from argparse import Namespace

    from perinvoke.layer.attach.configuration import Configuration
    from perinvoke.layer.attach.plan import Plan

_DONE, _SAID_NO = 0, 1


def attach(options: Namespace) -> int:
    """Put the layer on a function; the exit code."""
    function = _function(options)
    now = function.settled()
    check_kind(now)
    layer = layer_version(function.service, now, options.version_arn, current_layer(now.parts))
    plan = attaching(now, layer, None if options.route is None else Route(options.route))
    return _carry_out(function, now, plan, options)


def detach(options: Namespace) -> int:
    """Make a function what it was before it was attached; the exit code."""
    function = _function(options)
    now = function.settled()
    return _carry_out(function, now, detaching(now), options)


def _function(options: Namespace) -> RemoteFunction:
    name = parse_function(options.function)
    if options.region and name.region and options.region != name.region:
        raise LayerError(f"--region is {options.region}, and {options.function} is in {name.region}. Leave out --region")
    account = Account(profile=options.profile, region=name.region or options.region, endpoint_url=options.endpoint_url)
    account.check_credentials()
    return RemoteFunction(account, name, _tell)


def _carry_out(function: RemoteFunction, now: Configuration, plan: Plan, options: Namespace) -> int:
    """Show it, ask, and do it."""
    published = function.read_published() if now.instances else None
    behind = [] if published is None else unpublished(now, published)
    # Also when nothing is left to change: the command that changed it may have been interrupted before it published.
    runs = None if published is None else published.parts.environment.get(ATTACHED)
    unfinished = runs != now.parts.environment.get(ATTACHED)
    # Without a version nothing runs that had to be undone, and a first one would start instances.
    runs_nothing = published is None and ATTACHED not in plan.after.environment
    publishes = now.instances is not None and not options.no_publish and not runs_nothing and (plan.changes or unfinished)
    if not plan.changes and not publishes:
        _tell(f"function {now.name!r} in {function.service.region} is as it should be: nothing to do")
        return _DONE
    _show(function, now, plan)
    if publishes:
        _tell_of_publishing(behind, exists=published is not None)
    if options.dry_run:
        _tell("dry run: nothing is changed")
        return _DONE
    if not options.yes and not _agrees():
        _tell("nothing is changed")
        return _SAID_NO
    _do(function, now, plan, publishes=publishes)
    return _DONE


def _do(function: RemoteFunction, now: Configuration, plan: Plan, *, publishes: bool) -> None:
    made = "whether the change was sent already isn't known; the same command tells"
    try:
        if plan.changes:
            function.update(now, plan)
            made = "the change is made, and Lambda goes on applying it"
            now = function.applied(now, plan.after)
        if publishes:
            made = "the change is made and applied, but not published; the same command goes on from there"
            try:
                function.publish(now)
            except PerinvokeError:
                _tell(made)
                raise
            made = f"the change is made, and Lambda goes on making version {LATEST_PUBLISHED} active"
            function.activated()
    except KeyboardInterrupt:
        _tell(f"interrupted: {made}")
        raise
    _tell_what_runs(now, publishes=publishes)


def _show(function: RemoteFunction, now: Configuration, plan: Plan) -> None:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    told = [f"function {now.name} in {function.service.region}:", *lines(plan.before, plan.after, colour=colour)]
    if not plan.changes:
        told = [f"function {now.name} in {function.service.region}: nothing to change"]
    sys.stdout.write("\n".join(told) + "\n")
    sys.stdout.flush()
    for warning in plan.warnings:
        _tell(f"warning: {warning}")


def _tell_of_publishing(behind: list[str], *, exists: bool) -> None:
    _tell(f"then version {LATEST_PUBLISHED} is published, which Managed Instances run (not with --no-publish)")
    if not exists:
        _tell(f"warning: there is no {LATEST_PUBLISHED} yet: it starts instances of its own, beside those of numbered versions")
    elif behind:
        _tell(f"warning: $LATEST has changes already that aren't published ({', '.join(behind)}): they get published too")


def _tell_what_runs(now: Configuration, *, publishes: bool) -> None:
    to = f"--function-name {now.name}"
    if publishes:
        _tell(f"done: version {LATEST_PUBLISHED} is active, and runs when the function is invoked without a version")
    elif now.instances is not None:
        _tell(f"done, and not published. To have it run: aws lambda publish-version {to} --publish-to LATEST_PUBLISHED")
    else:
        _tell("done: it runs when the function is invoked without a version")
    _tell(
        f"Numbered versions, and aliases of them, run what they did. To move an alias: aws lambda publish-version {to}, then "
        f"aws lambda update-alias {to} --name ALIAS --function-version NUMBER"
    )


def _agrees() -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise LayerError("nobody can be asked, because stdin is no terminal: give --yes, or --dry-run to see only")
    sys.stderr.write("Apply this? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
