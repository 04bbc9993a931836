"""The client that a table is used with, and (from ``perinvoke.fleet.caller``) on whose behalf."""

from __future__ import annotations

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


def client_of(client: Any = None) -> Any:
    """The caller's own client; else the worker's, whose calls end before the deadline.

    Raises:
        MissingExtra: boto3 isn't installed.
    """
    return boto3_client("dynamodb") if client is None else client


def prepare_workers_clients(prepare: Callable[[Any], object]) -> None:
    """Have ``prepare(client)`` called with every client for DynamoDB that ``boto3_client`` and ``boto3_resource`` keep."""
    prepare_clients("dynamodb", prepare)
