"""The table as CloudFormation makes it, and what a function's role must be allowed to do with it. Text, and nothing is asked."""

from __future__ import annotations

import json

from perinvoke.fleet.table.shape import DEFINITION, TTL_DEFINITION

# What leases and idempotency do with their table: they take, renew, give back, begin and complete (UpdateItem), look while they
# wait (GetItem), and forget a call that failed (DeleteItem).
ACTIONS = ("dynamodb:GetItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem")
# And with the caller's own tables. Writes read, too, where an answer was lost.
_ON_OWN_TABLES = {
    "read": "GetItem",
    "update_versioned, VersionedItem, create_once": "GetItem, PutItem",
    "increment": "GetItem, UpdateItem",
    "transact": "PutItem, UpdateItem, DeleteItem, ConditionCheckItem, whichever it has",
    "lock.condition_check()": "ConditionCheckItem, on the table of leases",
}
_PARTITIONS = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}

_TEMPLATE = """\
AWSTemplateFormatVersion: "2010-09-09"
Description: The table of perinvoke's leases and idempotency
Resources:
  PerinvokeTable:
    Type: AWS::DynamoDB::Table
    # Without its records what was done once is done again: it outlives its stack.
    DeletionPolicy: Retain
    UpdateReplacePolicy: Retain
    Properties:
      TableName: {name}
      BillingMode: {billing}
      AttributeDefinitions:
        - AttributeName: {key}
          AttributeType: {kind}
      KeySchema:
        - AttributeName: {key}
          KeyType: HASH
      TimeToLiveSpecification:
        AttributeName: {ttl}
        Enabled: true
      # Point-in-time recovery is left off: yesterday's leases and results would be wrong today.
Outputs:
  TableName:
    Value: !Ref PerinvokeTable
  TableArn:
    Value: !GetAtt PerinvokeTable.Arn
"""


def cloudformation(name: str) -> str:
    """A whole template, in YAML."""
    (attribute,) = DEFINITION["AttributeDefinitions"]
    return _TEMPLATE.format(
        name=json.dumps(name),  # in quotes: 123 and null are names too
        billing=DEFINITION["BillingMode"],
        key=attribute["AttributeName"],
        kind=attribute["AttributeType"],
        ttl=TTL_DEFINITION["AttributeName"],
    )


def statement(arn: str) -> str:
    """The statement that a role's policy needs, in JSON."""
    return json.dumps({"Effect": "Allow", "Action": list(ACTIONS), "Resource": arn}, indent=2)


def own_tables() -> str:
    """What is needed on tables of one's own, in a line for each function."""
    return "\n".join(f"  {name}: {actions}" for name, actions in _ON_OWN_TABLES.items())


def likely_arn(name: str, region: str | None) -> str:
    """The ARN of a table that nobody has been asked about, in whichever account."""
    partition = next((its for prefix, its in _PARTITIONS.items() if (region or "").startswith(prefix)), "aws")
    return f"arn:{partition}:dynamodb:{region or '*'}:*:table/{name}"
