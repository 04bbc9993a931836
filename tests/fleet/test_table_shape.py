"""What a table must be, decided from what DynamoDB says of it; and the texts that are made of that."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb.states import Idempotency, Lease
from perinvoke.fleet.table.describe import lines_about
from perinvoke.fleet.table.shape import (
    DEFINITION,
    TTL_DEFINITION,
    beyond_repair,
    checked_name,
    notes_about,
    region_in,
    table_of,
    wrong_with,
)
from perinvoke.fleet.table.template import ACTIONS, cloudformation, likely_arn, statement

ON = {"TimeToLiveStatus": "ENABLED", "AttributeName": "expiration"}
ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/coordination"


def described(**changes):
    return {
        "TableName": "coordination",
        "TableArn": ARN,
        "TableStatus": "ACTIVE",
        "BillingModeSummary": {"BillingMode": "PAY_PER_REQUEST"},
        "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
        "ProvisionedThroughput": {"ReadCapacityUnits": 0, "WriteCapacityUnits": 0},
        "ItemCount": 3,
        "TableSizeBytes": 4_711,
        **changes,
    }


def keyed(*keys):
    return {
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": kind} for name, kind, _ in keys],
        "KeySchema": [{"AttributeName": name, "KeyType": role} for name, _, role in keys],
    }


STRONG = {"Replicas": [{"RegionName": "us-east-2", "ReplicaStatus": "ACTIVE"}], "MultiRegionConsistency": "STRONG"}
STRONG["GlobalTableWitnesses"] = [{"RegionName": "us-west-2", "WitnessStatus": "ACTIVE"}]
LATE = {"Replicas": [{"RegionName": "us-east-2", "ReplicaStatus": "ACTIVE"}]}


@pytest.mark.parametrize(
    ("changes", "ttl"),
    [
        ({}, ON),
        ({}, {**ON, "TimeToLiveStatus": "ENABLING"}),
        ({"TableStatus": "UPDATING"}, ON),
        ({"BillingModeSummary": {}, "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5}}, ON),
        (STRONG, {"TimeToLiveStatus": "DISABLED"}),
        (LATE, ON),
    ],
)
def test_what_fits(changes, ttl):
    assert wrong_with(table_of(described(**changes), ttl)) == []


@pytest.mark.parametrize(
    ("changes", "ttl", "what", "step"),
    [
        (keyed(("pk", "S", "HASH")), ON, "its key is pk (S), and must be id (S) alone", "use another name"),
        (keyed(("id", "N", "HASH")), ON, "its key is id (N)", "another name"),
        (keyed(("id", "S", "HASH"), ("at", "N", "RANGE")), ON, "its key is id (S), sort key at (N)", "another name"),
        ({}, {"TimeToLiveStatus": "DISABLED"}, "its TTL is off", "perinvoke table create coordination"),
        ({}, {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}, "goes by the attribute ttl", "Enabled=false"),
        ({}, {"TimeToLiveStatus": "DISABLING", "AttributeName": "ttl"}, "just being turned off", "up to an hour"),
        ({"TableStatus": "DELETING"}, ON, "its status is DELETING", "Wait until it is gone"),
        ({"TableStatus": "CREATING"}, ON, "its status is CREATING", "in a moment"),
        ({"TableStatus": "INACCESSIBLE_ENCRYPTION_CREDENTIALS"}, ON, "INACCESSIBLE_ENCRYPTION_CREDENTIALS", "console"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(changes, ttl, what, step):
    (wrong,) = wrong_with(table_of(described(**changes), ttl))
    assert what in wrong.what
    assert step in wrong.next_step


def test_only_missing_ttl_can_be_mended():
    off = {"TimeToLiveStatus": "DISABLED"}
    assert beyond_repair(table_of(described(), off)) is None
    other_key = beyond_repair(table_of(described(**keyed(("pk", "S", "HASH"))), off))
    assert other_key is not None
    assert "pk" in other_key.what


def test_what_regions_and_capacity_mean_is_noted():
    assert notes_about(table_of(described(), ON)) == []
    (late,) = notes_about(table_of(described(**LATE), ON))
    assert "only among those who use it in one region" in late
    (strong,) = notes_about(table_of(described(**STRONG), {}))
    assert "neither transactions nor TTL" in strong
    provisioned = {"BillingModeSummary": {}, "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5}}
    (throttled,) = notes_about(table_of(described(**provisioned), ON))
    assert "throttled" in throttled


def test_the_description_is_aligned():
    lines = lines_about(table_of(described(**STRONG), {}), "eu-west-1")
    assert len({len(line) - len(line.partition("  ")[2].lstrip()) for line in lines}) == 1
    text = "\n".join(lines)
    for told in ("us-east-2 ACTIVE, us-west-2 witness", "strong over regions", "3 (4.6 KiB)", "on demand", "OK"):
        assert told in text


@pytest.mark.parametrize("name", ["abc", "a.b-c_D", "x" * 255, "123", "null"])
def test_names_that_dynamodb_takes(name):
    assert checked_name(name) == name
    assert (
        yaml.safe_load(cloudformation(name).replace("!Ref", "").replace("!GetAtt", ""))["Resources"]["PerinvokeTable"][
            "Properties"
        ]["TableName"]
        == name
    )


@pytest.mark.parametrize("name", ["", "ab", "x" * 256, "a b c", "söhne", "abc\n", "a/b/c"])
def test_names_that_it_does_not_take(name):
    with pytest.raises(FixConfiguration, match="3 to 255 characters"):
        checked_name(name)


def test_an_arn_tells_the_region():
    assert region_in(ARN, None) == "eu-west-1"
    assert region_in(ARN, "eu-west-1") == "eu-west-1"
    assert region_in("coordination", "us-east-1") == "us-east-1"
    with pytest.raises(FixConfiguration, match="leave one of them out"):
        region_in(ARN, "us-east-1")
    with pytest.raises(FixConfiguration, match="no table's ARN"):
        region_in("arn:aws:s3:::coordination", None)
    with pytest.raises(FixConfiguration, match="is an ARN"):
        checked_name(ARN)


def test_the_template_makes_what_the_command_makes():
    text = cloudformation("coordination").replace("!Ref", "").replace("!GetAtt", "")
    resource = yaml.safe_load(text)["Resources"]["PerinvokeTable"]
    assert resource["Properties"] == {
        "TableName": "coordination",
        **DEFINITION,
        "TimeToLiveSpecification": TTL_DEFINITION,
    }
    assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == "Retain"


def test_cloudformation_finds_no_fault_with_the_template(tmp_path):
    template = tmp_path / "table.yaml"
    template.write_text(cloudformation("coordination"))
    linter = shutil.which("cfn-lint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("cfn-lint isn't installed")
    done = subprocess.run([linter, template], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_statement_allows_what_the_records_need_and_no_more():
    allowed = json.loads(statement(ARN))
    assert allowed["Resource"] == ARN
    transitions = [*Lease.TABLE.transitions, *Idempotency.TABLE.transitions]
    writes = {"dynamodb:UpdateItem" if transition.update else "dynamodb:DeleteItem" for transition in transitions}
    assert set(allowed["Action"]) == writes | {"dynamodb:GetItem"} == set(ACTIONS)


@pytest.mark.parametrize(
    ("region", "arn"),
    [
        (None, "arn:aws:dynamodb:*:*:table/abc"),
        ("eu-west-1", "arn:aws:dynamodb:eu-west-1:*:table/abc"),
        ("cn-north-1", "arn:aws-cn:dynamodb:cn-north-1:*:table/abc"),
        ("us-gov-west-1", "arn:aws-us-gov:dynamodb:us-gov-west-1:*:table/abc"),
    ],
)
def test_the_arn_of_a_table_that_nobody_was_asked_about(region, arn):
    assert likely_arn("abc", region) == arn
