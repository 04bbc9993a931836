"""A function that calls S3, DynamoDB and SQS at ``ENDPOINT``: as functions do, or where no answer comes."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import boto3

from perinvoke import boto3_client, boto3_resource, isolated
from perinvoke.sharing.aws import deadline_bound

ENDPOINT = os.environ["ENDPOINT"]
AT_INIT = boto3_client("s3", endpoint_url=ENDPOINT)  # with preload before the fork, without a connection
POOL = ThreadPoolExecutor(2)


def client(service: str) -> Any:
    return boto3_client(service, endpoint_url=ENDPOINT)


def own_client() -> Any:
    return deadline_bound(boto3.client("dynamodb", endpoint_url=ENDPOINT))


def use_all(number: int) -> str:
    """Write and read back through three services; returns what was read from S3."""
    key = f"k-{number}"
    AT_INIT.put_object(Bucket="bucket", Key=key, Body=key.encode())
    table = boto3_resource("dynamodb", endpoint_url=ENDPOINT).Table("table")
    table.put_item(Item={"key": key, "number": number})
    assert table.get_item(Key={"key": key})["Item"] == {"key": key, "number": number}
    sqs = client("sqs")
    sqs.send_message(QueueUrl=sqs.get_queue_url(QueueName="queue")["QueueUrl"], MessageBody=key)
    read: str = client("s3").get_object(Bucket="bucket", Key=key)["Body"].read().decode()
    return read


def touch_all(number: int) -> str:
    """The cheapest call of each service."""
    client("dynamodb").list_tables()
    client("sqs").list_queues()
    read: str = client("s3").get_object(Bucket="bucket", Key=f"k-{number}")["Body"].read().decode()
    return read.rpartition("/")[2]


def fork_and_use(number: int) -> str:
    """Children that use AWS too, and then the parent again."""
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=touch_all, args=(number * 10 + child,)) for child in range(3)]
    touch_all(number)
    for child in children:
        child.start()
    read = touch_all(number)
    for child in children:
        child.join()
        assert child.exitcode == 0
    return touch_all(number) if read == f"k-{number}" else read


USES = {"use_all": use_all, "touch_all": touch_all, "fork_and_use": fork_and_use}


def clean_up_late(answers: str) -> None:
    """A call in a handler that is being interrupted at its deadline."""
    try:
        time.sleep(60)
    finally:
        boto3_client("dynamodb", endpoint_url=answers).list_tables()


HANGS = {
    "a call": lambda: client("dynamodb").list_tables(),
    "a call of a client of one's own": lambda: own_client().list_tables(),
    "a call in a pool": lambda: POOL.submit(client("dynamodb").list_tables).result(),
    "a transfer with threads of its own": lambda: client("s3").download_fileobj("bucket", "k", io.BytesIO()),
}


def open_sockets() -> list[int]:
    """Our ends of the connections to the endpoint, by their port."""
    theirs, found = urlsplit(ENDPOINT).port, []
    for name in os.listdir("/proc/self/fd"):
        if _is_socket(name):
            with socket.socket(fileno=os.dup(int(name))) as ours:
                if ours.family == socket.AF_INET and ours.getpeername()[1] == theirs:
                    found.append(ours.getsockname()[1])
    return found


def _is_socket(fd: str) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(int(fd)).st_mode)
    except OSError:
        return False  # what the listing itself was read from


@isolated
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Do as told."""
    if "hang" in event:
        HANGS[event["hang"]]()
    if "answers" in event:
        clean_up_late(event["answers"])
    if "use" not in event:
        return {}
    read = USES[event["use"]](event["number"])
    return {
        "pid": os.getpid(),
        "sockets": open_sockets(),
        "right": read == f"k-{event['number']}",
        "kept": client("s3") is AT_INIT,
    }
