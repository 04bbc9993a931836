"""DynamoDB as what holds over all environments: leases, idempotency, versioned writes, transactions, reads that see one's writes.

The public names, each loaded when it is first used. They need boto3: ``pip install 'perinvoke[aws]'``.
"""

from __future__ import annotations

from perinvoke.fleet.loading import load

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is at run time; typing itself costs a worker 3 ms
if TYPE_CHECKING:
    from perinvoke.fleet.dynamodb.batch import process_records
    from perinvoke.fleet.dynamodb.counter import increment
    from perinvoke.fleet.dynamodb.idempotency import idempotent
    from perinvoke.fleet.dynamodb.lease import LeaseLock
    from perinvoke.fleet.dynamodb.reading import read
    from perinvoke.fleet.dynamodb.transaction import Reason, transact
    from perinvoke.fleet.dynamodb.versioned import VersionedItem, create_once, update_versioned
    from perinvoke.fleet.dynamodb.writes import note_writes, read_token
    from perinvoke.fleet.errors import (
        AlreadyDone,
        AlreadyInProgress,
        ChangeError,
        Duplicate,
        IdempotencyKeyError,
        LeaseError,
        LeaseLost,
        LeaseNotHeld,
        LeaseTimeout,
        OutcomeUnknown,
        PayloadMismatch,
        ResultError,
        ResultNotJson,
        ResultTooLarge,
        TableError,
        TableForbidden,
        TableMissing,
        TableSchemaError,
        TableUnavailable,
        TokenInvalid,
        TransactionCancelled,
        TransactionMismatch,
        WriteConflict,
    )

__all__ = [
    "AlreadyDone",
    "AlreadyInProgress",
    "ChangeError",
    "Duplicate",
    "IdempotencyKeyError",
    "LeaseError",
    "LeaseLock",
    "LeaseLost",
    "LeaseNotHeld",
    "LeaseTimeout",
    "OutcomeUnknown",
    "PayloadMismatch",
    "Reason",
    "ResultError",
    "ResultNotJson",
    "ResultTooLarge",
    "TableError",
    "TableForbidden",
    "TableMissing",
    "TableSchemaError",
    "TableUnavailable",
    "TokenInvalid",
    "TransactionCancelled",
    "TransactionMismatch",
    "VersionedItem",
    "WriteConflict",
    "create_once",
    "idempotent",
    "increment",
    "note_writes",
    "process_records",
    "read",
    "read_token",
    "transact",
    "update_versioned",
]

_NEEDS = {"boto3": "boto3", "botocore": "boto3", "jmespath": "boto3"}
_HERE = "perinvoke.fleet.dynamodb"
# No module has the name of what is in it: whoever imports a module sets its name here, too.
_HOMES = {
    "LeaseLock": "lease",
    "Reason": "transaction",
    "VersionedItem": "versioned",
    "create_once": "versioned",
    "idempotent": "idempotency",
    "increment": "counter",
    "note_writes": "writes",
    "process_records": "batch",
    "read": "reading",
    "read_token": "writes",
    "transact": "transaction",
    "update_versioned": "versioned",
}


def __getattr__(name: str) -> object:
    value = globals()[name] = load(_HERE, name, _HOMES, names=__all__, needs=_NEEDS, extra="aws")
    return value


def __dir__() -> list[str]:
    return __all__
