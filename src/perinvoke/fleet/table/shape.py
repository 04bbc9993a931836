"""What the one table of leases and idempotency must be, and what a table that is there lacks for it. Decides, and asks nobody.

* Its key is the string ``id`` alone. With another one nothing works.
* DynamoDB removes old records by their ``expiration``. Without that everything works, and old records pile up; so it is looked
  at here, and never while a function runs.
* A global table with multi-region strong consistency can't have TTL (says DynamoDB's guide, "How DynamoDB global tables work"),
  and does without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb.conditions import KEY, TTL

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_TYPE = "S"
# What CreateTable takes and, under the same names, CloudFormation.
DEFINITION: dict[str, Any] = {
    "BillingMode": "PAY_PER_REQUEST",
    "AttributeDefinitions": [{"AttributeName": KEY, "AttributeType": KEY_TYPE}],
    "KeySchema": [{"AttributeName": KEY, "KeyType": "HASH"}],
}
TTL_DEFINITION: dict[str, Any] = {"AttributeName": TTL, "Enabled": True}

# The status of its TTL where the server, an emulator, has none.
NO_TTL = "none"

# DynamoDB's rule for names.
_NAME = re.compile(r"[a-zA-Z0-9_.-]{3,255}")
_ARN = re.compile(r"arn:[a-z-]+:dynamodb:([a-z0-9-]+):\d{12}:table/([a-zA-Z0-9_.-]{3,255})")
_USABLE = frozenset({"ACTIVE", "UPDATING"})
_TTL_ON = frozenset({"ENABLED", "ENABLING"})
_TTL_IS_OFF = "its TTL is off: all works, but old records are never removed"


@dataclass(frozen=True)
class Wrong:
    """One thing that is wrong with a table, and what to do about it."""

    what: str
    next_step: str

    def __str__(self) -> str:
        return f"{self.what}. {self.next_step}"


@dataclass(frozen=True)
class Table:
    """A table, as DynamoDB describes it.

    Attributes:
        key: name, type and role (``HASH`` or ``RANGE``) of its key attributes.
        capacity: units of reading and writing; None where it is on demand.
        ttl_status: ``ENABLED``, ``ENABLING``, ``DISABLING`` or ``DISABLED``; ``NO_TTL``.
        replicas: region and status of those in other regions, without data (witnesses) too.
        consistency: between regions: ``STRONG`` or ``EVENTUAL``; None where there is one region.
    """

    name: str
    arn: str
    status: str
    key: tuple[tuple[str, str, str], ...]
    capacity: tuple[int, int] | None
    ttl_status: str
    ttl_attribute: str | None
    items: int
    bytes: int
    replicas: tuple[tuple[str, str], ...]
    consistency: str | None

    @property
    def key_text(self) -> str:
        """For people: ``pk (S), sort key sk (N)``."""
        return ", ".join(f"{'sort key ' if role == 'RANGE' else ''}{name} ({kind})" for name, kind, role in self.key)

    @property
    def has_right_key(self) -> bool:
        """Whether records can be kept in it."""
        return self.key == ((KEY, KEY_TYPE, "HASH"),)

    @property
    def ttl_is_on(self) -> bool:
        """Whether old records are removed, or will be within the hour."""
        return self.ttl_status in _TTL_ON and self.ttl_attribute == TTL

    @property
    def needs_ttl(self) -> bool:
        """Whether it lacks it and could have it."""
        return not self.ttl_is_on and self.consistency != "STRONG" and self.ttl_status != NO_TTL

    @property
    def is_global_and_late(self) -> bool:
        """Whether other regions see its writes only after a while."""
        return bool(self.replicas) and self.consistency != "STRONG"


def table_of(description: Mapping[str, Any], ttl: Mapping[str, Any]) -> Table:
    """From DescribeTable's ``Table`` and DescribeTimeToLive's ``TimeToLiveDescription``."""
    types = {each["AttributeName"]: each["AttributeType"] for each in description.get("AttributeDefinitions", [])}
    keys = [(each["AttributeName"], each["KeyType"]) for each in description.get("KeySchema", [])]
    throughput = description.get("ProvisionedThroughput", {})
    capacity = (int(throughput.get("ReadCapacityUnits", 0)), int(throughput.get("WriteCapacityUnits", 0)))
    mode = description.get("BillingModeSummary", {}).get("BillingMode")
    replicas = [(each.get("RegionName", "?"), each.get("ReplicaStatus", "?")) for each in description.get("Replicas", [])]
    replicas += [(each.get("RegionName", "?"), "witness") for each in description.get("GlobalTableWitnesses", [])]
    return Table(
        name=description["TableName"],
        arn=description.get("TableArn", ""),
        status=description.get("TableStatus", "?"),
        key=tuple((name, types.get(name, "?"), role) for name, role in keys),
        capacity=None if mode == "PAY_PER_REQUEST" or not any(capacity) else capacity,
        ttl_status=ttl.get("TimeToLiveStatus", "DISABLED"),
        ttl_attribute=ttl.get("AttributeName"),
        items=int(description.get("ItemCount", 0)),
        bytes=int(description.get("TableSizeBytes", 0)),
        replicas=tuple(sorted(replicas)),
        consistency=description.get("MultiRegionConsistency") or ("EVENTUAL" if replicas else None),
    )


def wrong_with(table: Table) -> list[Wrong]:
    """All that keeps leases and idempotency from using it as they should, worst first; empty: nothing."""
    found = [_wrong_status(table), _wrong_key(table), _wrong_ttl(table)]
    return [each for each in found if each is not None]


def beyond_repair(table: Table) -> Wrong | None:
    """The worst of what turning TTL on wouldn't mend."""
    return next((each for each in wrong_with(table) if each.what != _TTL_IS_OFF), None)


def _wrong_status(table: Table) -> Wrong | None:
    if table.status in _USABLE:
        return None
    step = {
        "CREATING": "It can be used in a moment: ask again",
        "DELETING": "Wait until it is gone, and make it anew: perinvoke table create",
    }.get(table.status, "See its page in the console for what happened to it, or use another table")
    return Wrong(f"its status is {table.status}, not ACTIVE", f"{step}.")


def _wrong_key(table: Table) -> Wrong | None:
    if table.has_right_key:
        return None
    return Wrong(
        f"its key is {table.key_text}, and must be {KEY} ({KEY_TYPE}) alone",
        "A table's key can't be changed: use another name, perinvoke table create makes it.",
    )


def _wrong_ttl(table: Table) -> Wrong | None:
    if not table.needs_ttl:
        return None
    turn_on = f"perinvoke table create {table.name}"
    if table.ttl_status == "DISABLING":
        return Wrong("its TTL is just being turned off", f"That takes up to an hour; then turn it on for {TTL}: {turn_on}.")
    if table.ttl_status in _TTL_ON:
        return Wrong(
            f"its TTL goes by the attribute {table.ttl_attribute}, and must go by {TTL}",
            "Use another table; or, if nothing else needs it, turn it off (aws dynamodb update-time-to-live --table-name "
            f"{table.name} --time-to-live-specification Enabled=false,AttributeName={table.ttl_attribute}), wait an hour, and "
            f"turn it on for {TTL}: {turn_on}.",
        )
    return Wrong(_TTL_IS_OFF, f"Turn it on for {TTL}: {turn_on}.")


def notes_about(table: Table) -> list[str]:
    """What is not wrong, and good to know."""
    notes = []
    if table.is_global_and_late:
        notes.append(
            "its regions see each other's writes late, and of two the last one stays: leases and idempotency hold only among "
            "those who use it in one region. Over regions they need a table with multi-region strong consistency."
        )
    if table.consistency == "STRONG":
        notes.append(
            "with multi-region strong consistency DynamoDB has neither transactions nor TTL: remove records yourself whose "
            f"{TTL} (seconds since 1970) is past."
        )
    if table.ttl_status == NO_TTL:
        notes.append("the server isn't DynamoDB, and has no TTL: all works, but old records are never removed.")
    if table.capacity is not None:
        notes.append("its capacity is provisioned: what exceeds it is throttled. On demand it isn't.")
    return notes


def checked_name(name: str) -> str:
    """The name that a table is to be made with.

    Raises:
        FixConfiguration: it is none.
    """
    if _ARN.fullmatch(name):
        raise FixConfiguration(f"{name} is an ARN; a table is made by its name: give what follows table/, and --region")
    if not _NAME.fullmatch(name):
        raise FixConfiguration(f"{name!r} is no name for a table: 3 to 255 characters of a-z, A-Z, 0-9, '_', '-' and '.' are")
    return name


def region_in(name: str, region: str | None) -> str | None:
    """Where the table of that name or ARN is: as asked for, or as the ARN says.

    Raises:
        FixConfiguration: it is neither, or the two differ.
    """
    arn = _ARN.fullmatch(name)
    if arn is None:
        if name.startswith("arn:"):
            raise FixConfiguration(f"{name!r} is no table's ARN: arn:aws:dynamodb:REGION:ACCOUNT:table/NAME is")
        checked_name(name)
        return region
    if region not in {None, arn[1]}:
        raise FixConfiguration(f"--region is {region}, but {name} is in {arn[1]}: leave one of them out")
    return arn[1]
