"""Making the table, and finishing one whose making was broken off. What is there and doesn't fit is told, and never touched.

An existing table gets TTL turned on only while it is empty. In any other one DynamoDB would begin to remove items: those that
have a number called ``expiration``, whatever their owner means by it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from perinvoke.errors import TryAgain
from perinvoke.fleet.errors import TableMissing, TableSchemaError
from perinvoke.fleet.table.account import Objection, Unsupported
from perinvoke.fleet.table.shape import DEFINITION, TTL_DEFINITION, beyond_repair

if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.fleet.table.account import Account
    from perinvoke.fleet.table.shape import Table

    Tell = Callable[[str], object]

# Seconds. DynamoDB makes an empty table in about ten; what takes five minutes is worth looking at. Arbitrary.
_LONGEST_SECONDS = 300.0
_LOOK_EVERY_SECONDS = 0.5
_TELL_EVERY_SECONDS = 10.0
_TTL = TTL_DEFINITION["AttributeName"]


def create(account: Account, tell: Tell) -> Table:
    """Have the table, made now or before; blocks until it can be used, five minutes at most.

    Args:
        account: where.
        tell: takes a line about how far it is.

    Raises:
        TableSchemaError: there is one of that name, and it doesn't fit.
        TryAgain: it wasn't ready after five minutes; asking again goes on.
        TableForbidden, TableUnavailable, TableError: what AWS said, as ``Account.ask`` has it.
    """
    try:
        return _create(account, tell)
    except KeyboardInterrupt:
        tell("interrupted. DynamoDB goes on with what it was asked for; the same command goes on from there.")
        raise


def _create(account: Account, tell: Tell) -> Table:
    table, made = _existing(account), False
    if table is None:
        tell(f"making table {account.table!r} in {account.region} ...")
        made = _make(account)
    table = _when_active(account, table, tell)
    wrong = beyond_repair(table)
    if wrong is not None:
        raise TableSchemaError(
            f"there is a table {table.name!r} in {account.region} already, and it is left as it is: {wrong}",
            table=table.name,
            action="dynamodb:CreateTable",
        )
    if not table.needs_ttl:
        tell(f"table {table.name!r} is ready." if made else f"table {table.name!r} was there and fits.")
        return table
    if not made:
        _check_empty(account, table)
    try:
        _turn_ttl_on(account)
    except Unsupported as error:
        tell(f"table {table.name!r} is there, without TTL: all works, but old records are never removed. ({error})")
        return table
    tell(f"table {table.name!r} is ready." if made else f"table {table.name!r} was there, empty and without TTL; now it fits.")
    return account.described()


def _existing(account: Account) -> Table | None:
    try:
        return account.described()
    except TableMissing:
        return None


def _make(account: Account) -> bool:
    """Whether it was we: somebody else may have been quicker."""
    try:
        account.ask("create_table", "dynamodb:CreateTable", **DEFINITION)
    except Objection as error:
        if error.code != "ResourceInUseException":
            raise
        return False
    return True


def _when_active(account: Account, table: Table | None, tell: Tell) -> Table:
    """Look until it can be used. DescribeTable may be late, and not know yet what was just made: says its documentation."""
    began = told = time.monotonic()
    while table is None or table.status == "CREATING":
        now = time.monotonic()
        status = "not to be seen yet" if table is None else table.status
        if now - began > _LONGEST_SECONDS:
            raise TryAgain(
                f"table {account.table!r} is {status} after {_LONGEST_SECONDS:.0f} s. See its page in the console; the same "
                "command goes on from here."
            )
        if now - told >= _TELL_EVERY_SECONDS:
            told = now
            tell(f"... {status}, {now - began:.0f} s")
        time.sleep(_LOOK_EVERY_SECONDS)
        table = _existing(account)
    return table


def _check_empty(account: Account, table: Table) -> None:
    if account.ask("scan", "dynamodb:Scan", Limit=1, ConsistentRead=True)["Items"]:
        raise TableSchemaError(
            f"there is a table {table.name!r} in {account.region} already, with items and without TTL, and it is left as it is: "
            f"turned on, TTL removes every item whose attribute {_TTL} is a time that is past. If that is meant: "
            f"aws dynamodb update-time-to-live --table-name {table.name} "
            f"--time-to-live-specification Enabled=true,AttributeName={_TTL}",
            table=table.name,
            action="dynamodb:UpdateTimeToLive",
        )


def _turn_ttl_on(account: Account) -> None:
    try:
        account.ask("update_time_to_live", "dynamodb:UpdateTimeToLive", TimeToLiveSpecification=TTL_DEFINITION)
    except Objection:
        if not account.described().ttl_is_on:  # somebody else has just done it
            raise
