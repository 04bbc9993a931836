"""The client that a table is used with, and (from ``perinvoke.fleet.caller``) on whose behalf."""

from __future__ import annotations

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.caller import LONGEST_SECONDS, name_of_caller, patience_of, runs_at_most_seconds
from perinvoke.sharing.asker import Lessee, lessee
from perinvoke.sharing.aws import boto3_client, ending_within, prepare_clients
from perinvoke.sharing.turns import Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "LONGEST_SECONDS",
    "Lessee",
    "Turn",
    "client_of",
    "ending_within",
    "lessee",
    "name_of_caller",
    "patience_of",
    "prepare_workers_clients",
    "runs_at_most_seconds",
]

_METHODS = ("get_item", "update_item", "transact_write_items")
# What boto3 calls its handler that turns Python's values into DynamoDB's, in the client of a resource.
_TRANSLATES = "dynamodb-attr-value-input"


def client_of(client: Any = None) -> Any:
    """The caller's own client; else the worker's, whose calls end before the deadline.

    Raises:
        MissingExtra: boto3 isn't installed.
        FixConfiguration: the caller's is no low-level client for DynamoDB.
    """
    if client is None:
        return boto3_client("dynamodb")
    wrong = _wrong_with(client)
    if wrong is not None:
        raise FixConfiguration(
            f"client is {client!r}, {wrong}. Pass a low-level client: boto3.client('dynamodb'); or leave it out, for "
            "perinvoke.boto3_client('dynamodb')"
        )
    return client


def _wrong_with(client: Any) -> str | None:
    """Why it can't be used; None: nothing. A stand-in for a client may lack what tells."""
    meta = getattr(client, "meta", None)
    if type(meta).__name__ == "ResourceMeta":
        return "which is a resource of boto3's or a part of one"
    service = getattr(getattr(meta, "service_model", None), "service_name", None)
    if isinstance(service, str) and service != "dynamodb":
        return f"which is a client for {service}"
    if not any(hasattr(client, method) for method in _METHODS):
        return "which is no client"
    events = getattr(meta, "events", None)
    # There is no public way to ask. Unasked, its requests are refused for a key that isn't the table's: true, and no help.
    if _TRANSLATES in getattr(getattr(events, "_emitter", None), "_unique_id_handlers", ()):
        return "which belongs to a resource of boto3's and takes Python's values in the place of DynamoDB's"
    return None


def prepare_workers_clients(prepare: Callable[[Any], object]) -> None:
    """Have ``prepare(client)`` called with every client for DynamoDB that ``boto3_client`` and ``boto3_resource`` keep."""
    prepare_clients("dynamodb", prepare)
