"""Who waits for a lease on DynamoDB: ``dynamodb_waiters.py LIBRARY URL COUNT`` is one execution environment with so many workers.

Each of them writes a line when it is about to ask, and one with the time when it had the lease; it gives it back at once.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from python_dynamodb_lock.python_dynamodb_lock import DynamoDBLockClient

from moto_process import account_at
from perinvoke.fleet.dynamodb import LeaseLock

if TYPE_CHECKING:
    from collections.abc import Mapping

OURS, OFTEN, DEFAULT = "perinvoke", "often", "default"  # the last two are python-dynamodb-lock
OFTEN_SECONDS = 0.5  # about as often as perinvoke's one waiter looks
SINGLE, DOUBLE = "single", "double"  # the tables
_KEY = "held"
_LONGEST_SECONDS = 60.0  # of a wait
_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 3}, max_pool_connections=4)


def client_of(account: Mapping[str, str]) -> Any:
    """A low-level client, the same for all who take one."""
    return boto3.client("dynamodb", config=_CONFIG, **account)


def lock_client_of(account: Mapping[str, str]) -> DynamoDBLockClient:
    """python-dynamodb-lock with its own defaults: it sends a heartbeat every 5 seconds, from a thread."""
    logging.getLogger("python_dynamodb_lock").setLevel(logging.ERROR)
    return DynamoDBLockClient(boto3.resource("dynamodb", config=_CONFIG, **account), table_name=DOUBLE)


def end(locks: DynamoDBLockClient) -> None:
    """End its threads without waiting, as its ``close()`` does: they sleep for up to 5 seconds."""
    locks._shutting_down = True  # noqa: SLF001  # there is no other way


class Holder:
    """Holds the lease that the others wait for, in an execution environment of its own."""

    def __init__(self, library: str, account: Mapping[str, str]) -> None:
        self._locks: Any = None
        self._lock: Any
        if library == OURS:
            self._lock = _lease(client_of(account))
            self._lock.acquire()
        else:
            self._locks = lock_client_of(account)
            self._lock = self._locks.acquire_lock(_KEY)

    def release(self) -> None:
        """Let the others have it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def close(self) -> None:
        """Release it, if that hasn't been; end its threads."""
        self.release()
        if self._locks is not None:
            end(self._locks)


def _lease(client: Any) -> LeaseLock:
    return LeaseLock(SINGLE, _KEY, lease_seconds=300, timeout=_LONGEST_SECONDS, client=client)


def _wait(library: str, account: Mapping[str, str]) -> None:
    if library == OURS:
        lease = _lease(client_of(account))
        _tell("waiting")
        with lease:
            taken = time.monotonic()
    else:
        options = {"retry_period": dt.timedelta(seconds=OFTEN_SECONDS)} if library == OFTEN else {}
        locks = lock_client_of(account)
        _tell("waiting")
        lock = locks.acquire_lock(_KEY, retry_timeout=dt.timedelta(seconds=_LONGEST_SECONDS), **options)
        taken = time.monotonic()
        lock.release()
    _tell(f"{taken}")


def _tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # whole: several write to one pipe


def main(library: str, url: str, count: int) -> None:
    """Fork them, when all that they share is loaded, and wait for their end."""
    for _ in range(count):
        if os.fork() == 0:
            try:
                _wait(library, account_at(url))
            except BaseException:  # noqa: BLE001  # the process ends right after
                traceback.print_exc()
            finally:
                os._exit(0)  # without waiting for python-dynamodb-lock's threads
    for _ in range(count):
        os.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
