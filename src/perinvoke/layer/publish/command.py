"""``perinvoke layer publish``, from its options to its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perinvoke.errors import MissingExtra
from perinvoke.layer.account import Account
from perinvoke.layer.errors import AwsLogin, AwsUnavailable
from perinvoke.layer.limits import MIB
from perinvoke.layer.publish.plan import EVERYBODY, accounts_of, named, regions_of, targets_of, zips_of
from perinvoke.layer.publish.publication import Publication
from perinvoke.layer.publish.results import Outcome, Result, are_all_done
from perinvoke.layer.publish.run import run

try:
    from perinvoke.layer.publish.show import next_steps, print_table, progress, tell
except ModuleNotFoundError as missing:
    raise MissingExtra(
        "perinvoke layer publish needs rich, which isn't installed: pip install 'perinvoke[layer]'", extra="layer"
    ) from missing

if TYPE_CHECKING:
    import threading
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    from perinvoke.layer.publish.plan import Target
    from perinvoke.layer.publish.publication import Stage

_DONE, _FAILED, _INTERRUPTED = 0, 1, 130


def publish(options: Namespace) -> int:
    """Publish the zips in all regions, or with ``--dry-run`` only look; the exit code."""
    accounts = accounts_of(options.account)
    account = Account(profile=options.profile, endpoint_url=options.endpoint_url)
    regions = regions_of(options.region, account.region, lambda name: account.partition_of(name) is not None)
    layers = named(zips_of(options.zips, tell), options.name)
    targets = targets_of(layers, regions, options.bucket, accounts)
    if account.region is None:  # where a role is assumed, or a login exchanged
        account = Account(profile=options.profile, region=regions[0], endpoint_url=options.endpoint_url)
    return _look(account, targets) if options.dry_run else _publish(account, targets)


def _publish(account: Account, targets: Sequence[Target]) -> int:
    _check(account, targets)

    def do(target: Target, on_stage: Callable[[Stage], object], stop: threading.Event) -> Result:
        return Publication(account, target, on_stage=on_stage, stop=stop).publish()

    with progress(len(targets)) as on_event:
        results, interrupted = run(targets, do, on_event)
    if not interrupted:
        _check_login(results)
    print_table(results)
    if interrupted:
        tell("interrupted; the same command does the rest, and finds what was made.")
        return _INTERRUPTED
    if are_all_done(results):
        tell(next_steps(results))
        return _DONE
    failed = [each for each in results if each.outcome is Outcome.FAILED]
    tell(f"{len(failed)} of {len(results)} failed; when the reasons are gone, the same command finishes the rest.")
    return _FAILED


def _check(account: Account, targets: Sequence[Target]) -> None:
    """What all regions need is looked at once, and told once."""
    account.check_credentials()
    account.service("lambda", targets[0].region)  # makes no request: the endpoint may be no URL


def _check_login(results: Sequence[Result]) -> None:
    """What hinders all regions alike is told once."""
    errors = [each.error for each in results]
    if all(isinstance(error, AwsLogin) for error in errors) and errors[0] is not None:
        raise errors[0]


def _look(account: Account, targets: Sequence[Target]) -> int:
    """Print the plan. Only reads, and does without where that can't be."""
    tell("dry run: nothing is made. What is there already is looked up, where the credentials allow it.")

    results, interrupted = _found(account, targets)
    print_table([_planned(each) for each in results])
    for line in [*_unseen(results), *_access(targets[0].accounts)]:
        tell(line)
    return _INTERRUPTED if interrupted else _DONE


def _found(account: Account, targets: Sequence[Target]) -> tuple[list[Result], bool]:
    def do(target: Target, on_stage: Callable[[Stage], object], stop: threading.Event) -> Result:
        return Publication(account, target, on_stage=on_stage, stop=stop).look()

    try:
        _check(account, targets)
    except (AwsLogin, AwsUnavailable) as error:
        return [Result(each, Outcome.FAILED, None, str(error), error) for each in targets], False
    with progress(len(targets)) as on_event:
        return run(targets, do, on_event)


def _planned(result: Result) -> Result:
    """What is found, and how the rest would be published."""
    if result.outcome is Outcome.THERE:
        return result
    target = result.target
    way = f"through s3://{target.bucket}" if target.bucket else "in the request"
    doubt = "" if result.outcome is Outcome.WOULD_PUBLISH else ", unless it is there"
    note = f"{target.zip.path}, {target.zip.packed_bytes / MIB:.2f} MB, {way}{doubt}"
    return Result(target, Outcome.WOULD_PUBLISH, None, note)


def _unseen(results: Sequence[Result]) -> list[str]:
    """Why it couldn't be looked whether it is there; each reason once."""
    return list(dict.fromkeys(f"couldn't look: {each.note}" for each in results if each.note))


def _access(accounts: Sequence[str]) -> list[str]:
    if EVERYBODY in accounts:
        return ["all accounts of AWS would be allowed to use and download it."]
    return [f"account {each} would be allowed to use it." for each in accounts]
