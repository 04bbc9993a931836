"""``perinvoke table create`` and ``perinvoke table describe``, from their options to their exit codes.

What can be piped goes to stdout: the CloudFormation, or the description. All else goes to stderr.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from perinvoke.errors import MissingExtra

try:
    import boto3 as _  # noqa: F401  # what all of this needs; the others import it without a check
except ModuleNotFoundError as error:
    raise MissingExtra("perinvoke table needs boto3, which isn't installed: pip install 'perinvoke[aws]'", extra="aws") from error

from perinvoke.fleet.table.account import Account
from perinvoke.fleet.table.create import create as have
from perinvoke.fleet.table.describe import lines_about
from perinvoke.fleet.table.shape import checked_name, region_in, wrong_with
from perinvoke.fleet.table.template import cloudformation, likely_arn, own_tables, statement

if TYPE_CHECKING:
    from argparse import Namespace

_FITS, _DOES_NOT_FIT = 0, 1


def create(options: Namespace) -> int:
    """Make the table, or with ``--dry-run`` nothing; print how CloudFormation makes it. The exit code."""
    name = checked_name(options.name)
    if options.dry_run:
        _tell("dry run: nothing is made, and nobody is asked.")
        arn = likely_arn(name, options.region)
    else:
        arn = have(_account(options), _tell).arn
    _tell(f"\nThe function's role needs for it:\n{statement(arn)}")
    _tell(f"\nand on tables of your own, as you use them:\n{own_tables()}\n")
    sys.stdout.write(cloudformation(name))
    return _FITS


def describe(options: Namespace) -> int:
    """Print what the table is, and whether it fits: 0, else 1."""
    options.region = region_in(options.name, options.region)
    account = _account(options)
    table = account.described()
    sys.stdout.write("\n".join(lines_about(table, account.region)) + "\n")
    return _DOES_NOT_FIT if wrong_with(table) else _FITS


def _account(options: Namespace) -> Account:
    return Account(region=options.region, profile=options.profile, endpoint_url=options.endpoint_url, table=options.name)


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
