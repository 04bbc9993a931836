"""boto3 on the real runtime: how many sockets sixteen workers open, and what a server that never answers costs."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from aws_server import AwsServer, answer
from environments import event, result, run
from hostile_servers import SilentServer
from moto_server import MotoServer
from perinvoke.local import LocalConfig, LocalEnvironment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perinvoke.local import Outcome

FUNCTIONS = Path(__file__).parent / "functions"
WORKERS = 16
SERVICES = 3
TIMEOUT_SECONDS = 5.0
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def environment(endpoint: str, root: Path, **options: Any) -> LocalEnvironment:
    env = {"PERINVOKE_ROOT": str(root), "ENDPOINT": endpoint, **KEYS, **options.pop("env", {})}
    config = {"workers": WORKERS, "timeout_seconds": 60, "directory": FUNCTIONS, "queue": True, **options}
    return LocalEnvironment(LocalConfig(handler="aws.handler", env=env, **config))


async def invoke_all(local: LocalEnvironment, use: str, invocations: int) -> list[dict[str, Any]]:
    numbers = iter(range(invocations))
    answers: list[dict[str, Any]] = []

    async def caller() -> None:
        for number in numbers:
            outcome = await local.invoke(event(use=use, number=number))
            answers.append(result(outcome))

    async with asyncio.TaskGroup() as callers:
        for _ in range(WORKERS):
            callers.create_task(caller())
    return answers


def sockets_of(answers: list[dict[str, Any]]) -> dict[int, set[int]]:
    """All sockets that each worker ever had."""
    found: dict[int, set[int]] = defaultdict(set)
    for told in answers:
        found[told["pid"]] |= set(told["sockets"])
    return found


@pytest.fixture
def moto() -> Iterator[MotoServer]:
    with MotoServer() as server:
        session = boto3.Session("test", "test", region_name="us-east-1")
        s3, dynamodb, sqs = (session.client(name, endpoint_url=server.url) for name in ("s3", "dynamodb", "sqs"))
        s3.create_bucket(Bucket="bucket")
        dynamodb.create_table(
            TableName="table",
            KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        sqs.create_queue(QueueName="queue")
        for client in (s3, dynamodb, sqs):
            client.close()
        yield server


@pytest.mark.slow
def test_sixteen_workers_use_three_services_over_one_socket_each(moto, root):
    async def scenario() -> list[dict[str, Any]]:
        async with environment(moto.url, root) as local:
            return await invoke_all(local, "use_all", 10 * WORKERS)

    before = moto.connections
    answers = run(scenario(), 100)
    assert all(told["right"] for told in answers)
    sockets = sockets_of(answers)
    assert len(sockets) == WORKERS
    assert moto.connections - before == WORKERS * SERVICES
    # S3 is asked through a client made at init, too, but it is the same one.
    assert {pid: len(ports) for pid, ports in sockets.items()} == dict.fromkeys(sockets, SERVICES)


@pytest.mark.slow
@pytest.mark.parametrize("preload", ["", "handler"])
def test_no_socket_is_opened_after_the_first_invocation_and_none_is_left_open(preload, root):
    """Also not where a client was made before the workers were forked, which then is theirs."""

    async def scenario(server: AwsServer) -> list[dict[str, Any]]:
        async with environment(server.url, root, preload=preload) as local:
            return await invoke_all(local, "touch_all", 1_000)

    with AwsServer(echo) as server:
        answers = run(scenario(server), 100)
        opened = server.connections
    assert all(told["right"] and told["kept"] for told in answers)
    assert all(len(told["sockets"]) <= SERVICES for told in answers)
    assert opened == sum(map(len, sockets_of(answers).values())) <= WORKERS * SERVICES


def test_children_of_a_handler_and_their_parent_get_their_own_answers(root):
    async def scenario(server: AwsServer) -> list[dict[str, Any]]:
        async with environment(server.url, root, workers=2) as local:
            return [result(await local.invoke(event(use="fork_and_use", number=number))) for number in range(4)]

    with AwsServer(echo) as server:
        answers = run(scenario(server), 60)
        assert all(told["right"] for told in answers)
        parents = sum(map(len, sockets_of(answers).values()))
        assert parents == SERVICES * len({told["pid"] for told in answers})
        assert server.connections == parents + len(answers) * 3 * SERVICES


HANGS = ["a call", "a call of a client of one's own", "a call in a pool", "a transfer with threads of its own"]


def test_a_server_that_never_answers_costs_no_more_than_the_deadline(root):
    async def one(local: LocalEnvironment, way: str) -> tuple[Outcome, Outcome]:
        return await local.invoke(event(hang=way)), await local.invoke(event())

    async def scenario(server: SilentServer) -> list[tuple[Outcome, Outcome]]:
        endpoint = f"http://127.0.0.1:{server.port}"
        options = {"workers": len(HANGS), "timeout_seconds": TIMEOUT_SECONDS, "env": {"PERINVOKE_TIMEOUT_MARGIN_MS": "2500"}}
        async with environment(endpoint, root, **options) as local:
            return await asyncio.gather(*(one(local, way) for way in HANGS))

    with SilentServer() as server:
        for way, (first, second) in zip(HANGS, run(scenario(server), 60), strict=True):
            # The latter where the machine is so busy that the interrupt, which follows, comes first.
            assert first.error_type in {"AwsReadTimeout", "InvocationTimeout"}, (way, json.loads(first.payload))
            assert 1.5 < first.duration_seconds < TIMEOUT_SECONDS
            assert second.ok
            assert second.waited_seconds < 3.0


def test_an_interrupted_handler_may_call_aws_to_clean_up(root):
    async def scenario(server: AwsServer) -> Outcome:
        options = {"workers": 1, "timeout_seconds": TIMEOUT_SECONDS, "env": {"PERINVOKE_TIMEOUT_MARGIN_MS": "2500"}}
        async with environment(server.url, root, **options) as local:
            return await local.invoke(event(answers=server.url))

    with AwsServer(echo) as server:
        outcome = run(scenario(server), 60)
        assert outcome.error_type == "InvocationTimeout"
        assert outcome.duration_seconds < TIMEOUT_SECONDS
        assert len(server.requests) == 1


def echo(line: str) -> bytes:
    """S3's objects hold their own path; the other services answer with nothing."""
    method, path, _ = line.split()
    return answer(path.encode()) if method == "GET" else answer()
