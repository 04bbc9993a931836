"""The policies of examples/iam against what is really asked of AWS: nothing is missing in them, and nothing is too much."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.client import BaseClient
from moto import mock_aws

from aws_server import answer
from moto_server import MotoServer
from perinvoke import shared_file
from perinvoke.cli import main
from perinvoke.fleet.dynamodb import (
    LeaseLock,
    VersionedItem,
    create_once,
    idempotent,
    increment,
    read,
    read_token,
    transact,
    update_versioned,
)
from perinvoke.fleet.table.template import ACTIONS
from perinvoke.pgbouncer.secret import read_secret
from processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dynamodb_server import DynamoDb

POLICIES = Path(__file__).parents[1] / "examples" / "iam"
# What botocore calls otherwise than IAM does; a transaction asks for what its actions are called.
_IAM_NAMES = {
    "HeadObject": "GetObject",
    "HeadBucket": "ListBucket",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "GetLayerVersionByArn": "GetLayerVersion",
}
_TRANSACTION = {"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem", "ConditionCheck": "ConditionCheckItem"}


def allowed(policy: str) -> set[str]:
    """The actions that a policy allows; it must name each of them, and whose they are."""
    document = json.loads((POLICIES / f"{policy}.json").read_text(encoding="utf-8"))
    assert document["Version"] == "2012-10-17"
    actions: set[str] = set()
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        assert statement["Resource"] != "*"
        actions.update([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    assert not [action for action in actions if "*" in action]
    return actions


@pytest.fixture
def server(dynamodb, monkeypatch, root) -> Iterator[DynamoDb]:
    """The server that every client of this process reaches."""
    for name, value in dynamodb.variables().items():
        monkeypatch.setenv(name, value)
    yield dynamodb
    dynamodb.faults = lambda operation, body: None


@pytest.fixture
def table(server: DynamoDb) -> str:
    return server.table()


@pytest.fixture
def used(table, monkeypatch) -> set[str]:
    """The actions of this process, after the table was made."""
    return recorded(monkeypatch)


def recorded(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The actions that this process asks AWS for, from now on, as IAM calls them."""
    actions: set[str] = set()
    call = BaseClient._make_api_call

    def recording(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        names = [_TRANSACTION[name] for action in parameters.get("TransactItems", []) for name in action]
        service = self.meta.service_model.service_name
        actions.update(f"{service}:{_IAM_NAMES.get(name, name)}" for name in names or [operation])
        return call(self, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", recording)
    return actions


def lose_one(server: DynamoDb, which: str) -> None:
    """Lose the next answer to ``which``, though it is carried out."""
    left = [which]

    def fault(operation: str, body: dict[str, Any]) -> str | None:
        if operation not in left:
            return None
        left.clear()
        return "lost"

    server.faults = fault


def test_a_lease_uses_what_its_policy_allows(table, used, tmp_path):
    script = """
import sys
from perinvoke.fleet.dynamodb import LeaseLock
with LeaseLock(sys.argv[1], "report", lease_seconds=30):
    print("held", flush=True)
    sys.stdin.read()
"""
    environment = {**os.environ, "PERINVOKE_ROOT": str(tmp_path / "another")}  # whoever shares a root waits without asking AWS
    with (
        subprocess.Popen([sys.executable, "-c", script, table], env=environment, text=True, stdin=PIPE, stdout=PIPE) as holder,
        ThreadPoolExecutor() as other,
    ):
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        waiting = other.submit(_hold, table)
        wait_until(lambda: "dynamodb:GetItem" in used, 20)
        holder.stdin.close()
        waiting.result()
    assert used == allowed("lease")


def _hold(table: str) -> None:
    with LeaseLock(table, "report", lease_seconds=30):
        pass


def test_idempotency_uses_what_its_policy_allows(server, table, used):
    def charge(order: dict[str, Any]) -> Any:
        if order["amount"] < 0:
            raise ValueError("nothing to charge")
        time.sleep(order["seconds"])
        return order["amount"]

    charged = idempotent(table, key="id", client=server.client())(charge)
    with ThreadPoolExecutor() as several:
        calls = [several.submit(charged, {"id": "a", "amount": 5, "seconds": 0.3}) for _ in range(2)]
        assert [call.result() for call in calls] == [5, 5]
    with pytest.raises(ValueError, match="nothing to charge"):
        charged({"id": "b", "amount": -1})
    assert used == allowed("idempotent")


def test_leases_and_idempotency_together_use_what_the_table_command_prints():
    assert allowed("lease") | allowed("idempotent") == set(ACTIONS)


def test_versioned_writes_use_what_their_policy_allows(server, table, used):
    client = server.client()
    update_versioned(table, {"id": "ann"}, lambda item: {**item, "balance": 1}, client=client)
    item = VersionedItem.read(table, {"id": "ann"}, client=client)
    item.write({"balance": 2})
    create_once(table, {"id": "bob"}, {"balance": 1}, client=client)
    lose_one(server, "PutItem")
    create_once(table, {"id": "eve"}, {"balance": 1}, client=client)
    assert used == allowed("versioned_writes")


def test_an_increment_uses_what_its_policy_allows(server, table, used):
    lose_one(server, "UpdateItem")
    assert increment(table, {"id": "ann"}, "count", client=server.client()) == 1
    assert used == allowed("increment")


def test_a_transaction_uses_what_its_policy_allows(server, table, used):
    client = server.client()
    key, condition = {"TableName": table, "Key": {"id": {"S": "a"}}}, {"ConditionExpression": "attribute_not_exists(id)"}
    lease = LeaseLock(server.table(), "report", client=client, lease_seconds=30)
    lease.acquire()
    used.clear()
    write = {"UpdateExpression": "SET n = :n", "ExpressionAttributeValues": {":n": {"N": "1"}}}
    transact(
        [
            lease.condition_check(),
            {"Put": {"TableName": table, "Item": {"id": {"S": "b"}}}},
            {"Update": {**key, "Key": {"id": {"S": "c"}}, **write}},
            {"Delete": {**key, "Key": {"id": {"S": "d"}}}},
            {"ConditionCheck": {**key, **condition}},
        ],
        client=client,
    )
    assert used == allowed("transact")


def test_a_read_uses_what_its_policy_allows(server, table, used):
    client = server.client()
    assert read(table, {"id": "ann"}, after=read_token(table, {"id": "ann"}), client=client) is None
    assert used == allowed("read")


def test_making_and_describing_the_table_uses_what_its_policy_allows(server, used):
    assert main(["table", "create", "examples-table"]) == 0
    assert main(["table", "create", "examples-table"]) == 0
    assert main(["table", "describe", "examples-table"]) == 0
    assert used == allowed("table")


def test_a_shared_file_of_s3_uses_what_its_policy_allows(monkeypatch, root):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="models/m.bin", Body=b"x" * 9_000_000)  # downloaded in parts
        operations: list[str] = []
        client.meta.events.register("before-call.s3.*", lambda model, **_: operations.append(model.name))
        shared_file.s3("bucket", "models/m.bin", client=client)
    assert {f"s3:{_IAM_NAMES.get(name, name)}" for name in operations} == allowed("shared_file_s3")


def test_pgbouncers_secret_uses_what_its_policy_allows(server, monkeypatch):
    boto3.client("secretsmanager").create_secret(Name="database", SecretString='{"username": "u"}')
    with server.counted() as operations:  # it is a process of its own that asks
        assert read_secret("database") == {"username": "u"}
    assert {f"secretsmanager:{name}" for name in operations} == allowed("pgbouncer_secret")


@pytest.fixture
def aws(monkeypatch) -> Iterator[MotoServer]:
    """All of moto's services, by which this process's clients go; the last one is over when the next one begins."""
    with MotoServer() as server:
        as_clients_environment(monkeypatch, server)
        yield server


def as_clients_environment(monkeypatch: pytest.MonkeyPatch, server: MotoServer) -> None:
    """Have this process's clients go to ``server``."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")


def layer_zip(path: Path, name: str) -> Path:
    """What ``perinvoke layer publish`` takes for a built one."""
    told = {
        "name": name,
        "perinvoke": "0.1.0",
        "pythons": ["3.13"],
        "architectures": ["arm64"],
        "parts": ["core"],
        "packages": {},
    }
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("perinvoke/layer.json", json.dumps(told))
    return path


@pytest.mark.parametrize("size", ["small", "large"])
def test_publishing_uses_what_its_policy_allows(size, aws, monkeypatch, tmp_path, root):
    policies = ["publish"]
    command = [
        "layer",
        "publish",
        str(layer_zip(tmp_path / "perinvoke-0.1.0.zip", f"examples-{size}")),
        "--account",
        "111122223333",
    ]
    if size == "large":
        policies.append("publish_through_s3")
        monkeypatch.setattr("perinvoke.layer.publish.plan.DIRECT_UPLOAD_BYTES", 10)
        boto3.client("s3").create_bucket(Bucket="layers", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        command += ["--bucket", "layers"]
    used = recorded(monkeypatch)
    assert main(command) == 0
    assert main(command) == 0  # the second time it is there, and is looked at
    assert used == set().union(*map(allowed, policies))


class ManagedInstances(MotoServer):
    """moto, whose functions are on Managed Instances, and whose ``$LATEST.PUBLISHED`` is what ``$LATEST`` is."""

    def reply_to(self, line: str, headers: dict[str, str], body: bytes) -> bytes | Iterable[bytes] | None:
        line = line.replace("?Qualifier=%24LATEST.PUBLISHED", "")
        line = re.sub(r"/layers\?find=LayerVersion&Arn=\S*%3A(\w+)%3A(\d+)", r"/layers/\1/versions/\2", line)  # moto lacks it
        reply = super().reply_to(line, headers, body)
        if not (line.startswith("GET ") and "/configuration" in line and isinstance(reply, bytes)):
            return reply
        told = json.loads(reply.partition(b"\r\n\r\n")[2])
        of_instances = {"CapacityProviderArn": "arn:aws:lambda:eu-west-1:123456789012:capacity-provider:orders"}
        told["CapacityProviderConfig"] = {"LambdaManagedInstancesCapacityProviderConfig": of_instances}
        return answer(json.dumps(told).encode())


def test_attaching_and_detaching_use_what_their_policy_allows(monkeypatch, tmp_path):
    with ManagedInstances() as server:
        as_clients_environment(monkeypatch, server)
        lambda_ = boto3.client("lambda")
        arn = lambda_.publish_layer_version(
            LayerName="perinvoke",
            Content={"ZipFile": layer_zip(tmp_path / "layer.zip", "perinvoke").read_bytes()},
            CompatibleRuntimes=["python3.13"],
            CompatibleArchitectures=["arm64"],
        )["LayerVersionArn"]
        trust = json.dumps({"Version": "2012-10-17", "Statement": []})
        role = boto3.client("iam").create_role(RoleName="examples", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        lambda_.create_function(
            FunctionName="orders",
            Runtime="python3.13",
            Role=role,
            Handler="app.handler",
            Architectures=["arm64"],
            Code={"ZipFile": layer_zip(tmp_path / "function.zip", "function").read_bytes()},
        )
        used = recorded(monkeypatch)
        for version in (["--version-arn", arn], []):
            assert main(["layer", "attach", "orders", "--yes", *version]) == 0
            assert main(["layer", "detach", "orders", "--yes"]) == 0
    # Lambda itself asks for GetLayerVersion, too, of whoever puts a layer on a function.
    assert used == allowed("attach")


def test_every_policy_is_compared():
    here = Path(__file__).read_text(encoding="utf-8")
    compared = set(re.findall(r'allowed\("(\w+)"\)', here)) | {"publish", "publish_through_s3"}
    assert {path.stem for path in POLICIES.iterdir()} == compared
