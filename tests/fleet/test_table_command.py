"""``perinvoke table`` against a DynamoDB that is there, isn't, or says no."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml  # type: ignore[import-untyped]
from moto.dynamodb.models.table import Table

from aws_server import AwsServer, answer
from perinvoke.cli import main
from perinvoke.fleet.table.shape import DEFINITION, TTL_DEFINITION
from processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dynamodb_server import DynamoDb

    Run = Callable[..., "Done"]

_names = itertools.count(1)
READY_SECONDS = 30


@pytest.fixture
def name() -> str:
    return f"coordination-{next(_names)}"


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has credentials, and of whom nothing else is known."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "perinvoke", "table", *arguments]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def table(
    dynamodb: DynamoDb, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command in this process, where boto3 is loaded already."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)

    def run(*arguments: str, **changes: str | None) -> Done:
        at = () if "--endpoint-url" in arguments or "--dry-run" in arguments else ("--endpoint-url", dynamodb.url)
        with monkeypatch.context() as patch:
            for variable, value in changes.items():
                patch.delenv(variable) if value is None else patch.setenv(variable, value)
            return Done(main(["table", *arguments, *at]), *capsys.readouterr())

    return run


def ttl_of(dynamodb: DynamoDb, name: str) -> dict[str, Any]:
    found: dict[str, Any] = dynamodb.client().describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    return found


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What DescribeTable says of tables; moto's are always active."""
    found: dict[str, str] = {}

    def described(self: Table, base_key: str = "TableDescription") -> dict[str, Any]:
        told = describe(self, base_key)
        told[base_key]["TableStatus"] = found.get(self.name, "ACTIVE")
        return told

    describe = Table.describe
    monkeypatch.setattr(Table, "describe", described)
    return found


def test_it_makes_the_table_and_prints_how_cloudformation_would(table: Run, dynamodb: DynamoDb, name: str) -> None:
    done = table("create", name)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout.replace("!", ""))["Resources"]["PerinvokeTable"]["Properties"]["TableName"] == name
    assert f"making table '{name}' in eu-west-1 ..." in done.stderr
    assert f"table '{name}' is ready." in done.stderr
    assert f'"Resource": "arn:aws:dynamodb:eu-west-1:123456789012:table/{name}"' in done.stderr
    made = dynamodb.client().describe_table(TableName=name)["Table"]
    assert made["KeySchema"] == [{"AttributeName": "id", "KeyType": "HASH"}]
    assert made["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert ttl_of(dynamodb, name) == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expiration"}

    shown = table("describe", name)
    assert shown.returncode == 0, shown.stderr
    assert "verdict  OK: leases and idempotency can use it" in shown.stdout
    assert shown.stderr == ""
    by_arn = table("describe", made["TableArn"], AWS_DEFAULT_REGION=None)
    assert by_arn.stdout == shown.stdout


def test_what_is_there_and_fits_is_left_as_it_is(table: Run, dynamodb: DynamoDb, name: str) -> None:
    first = table("create", name)
    with dynamodb.counted() as operations:
        again = table("create", name)
    assert again.returncode == 0, again.stderr
    assert operations == ["DescribeTable", "DescribeTimeToLive"]
    assert f"table '{name}' was there and fits." in again.stderr
    assert again.stdout == first.stdout


def test_a_dry_run_makes_nothing_and_needs_nobody(table: Run, dynamodb: DynamoDb, name: str) -> None:
    nobody = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_DEFAULT_REGION": None}
    with dynamodb.counted() as operations:
        done = table("create", name, "--dry-run", **nobody)
    assert done.returncode == 0, done.stderr
    assert operations == []
    assert "nothing is made" in done.stderr
    assert f'"Resource": "arn:aws:dynamodb:*:*:table/{name}"' in done.stderr
    assert table("create", name).stdout == done.stdout


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"key": "pk"}, "its key is pk (S), and must be id (S) alone"),
        ({"kind": "N"}, "its key is id (N)"),
        ({"sort": "at"}, "its key is id (S), sort key at (S)"),
    ],
)
def test_another_key_is_told_and_the_table_not_touched(table: Run, dynamodb: DynamoDb, schema: dict[str, str], what: str) -> None:
    name = dynamodb.table(**schema)
    with dynamodb.counted() as operations:
        made, shown = table("create", name), table("describe", name)
    assert set(operations) == {"DescribeTable", "DescribeTimeToLive"}
    assert (made.returncode, made.stdout) == (2, "")
    assert "it is left as it is" in made.stderr
    assert len(made.stderr.splitlines()) == 1
    assert shown.returncode == 1
    assert what in made.stderr
    assert what in shown.stdout


def test_ttl_by_another_attribute_is_told_and_left(table: Run, dynamodb: DynamoDb) -> None:
    name = dynamodb.table()
    dynamodb.client().update_time_to_live(TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "ttl"})
    made, shown = table("create", name), table("describe", name)
    assert (made.returncode, shown.returncode) == (2, 1)
    assert "its TTL goes by the attribute ttl, and must go by expiration" in made.stderr
    assert f"aws dynamodb update-time-to-live --table-name {name}" in made.stderr
    assert ttl_of(dynamodb, name)["AttributeName"] == "ttl"


def test_an_empty_table_without_ttl_is_finished(table: Run, dynamodb: DynamoDb) -> None:
    name = dynamodb.table()
    shown = table("describe", name)
    assert shown.returncode == 1
    assert f"Turn it on for expiration: perinvoke table create {name}." in shown.stdout
    done = table("create", name)
    assert done.returncode == 0, done.stderr
    assert "empty and without TTL; now it fits" in done.stderr
    assert table("describe", name).returncode == 0


@pytest.mark.parametrize("verb", ["create", "describe"])
def test_what_answers_and_is_not_aws_is_told(table: Run, name: str, verb: str) -> None:
    with AwsServer(lambda line: answer(b"<html>welcome</html>")) as server:
        done = table(verb, name, "--endpoint-url", server.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there was an answer, but none of AWS: it has no Table." in done.stderr


@pytest.mark.parametrize("unknown", [{"UpdateTimeToLive"}, {"UpdateTimeToLive", "DescribeTimeToLive"}])
def test_where_the_server_has_no_ttl_the_table_is_made_without(
    table: Run, dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch, name: str, unknown: set[str]
) -> None:
    monkeypatch.setattr(dynamodb, "faults", lambda operation, body: "UnknownOperationException" if operation in unknown else None)
    for _ in ("made", "there and empty"):
        done = table("create", name)
        assert done.returncode == 0, done.stderr
        assert "PerinvokeTable" in done.stdout
    if "DescribeTimeToLive" in unknown:
        shown = table("describe", name)
        assert shown.returncode == 0, shown.stderr
        assert "old records are never removed" in shown.stdout
    else:
        assert f"{dynamodb.url} doesn't know that request" in done.stderr


def test_ttl_is_never_turned_on_where_items_are(table: Run, dynamodb: DynamoDb) -> None:
    name = dynamodb.table()
    dynamodb.client().put_item(TableName=name, Item={"id": {"S": "an order"}, "expiration": {"N": "1"}})
    done = table("create", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "with items and without TTL, and it is left as it is" in done.stderr
    assert "Enabled=true,AttributeName=expiration" in done.stderr
    assert ttl_of(dynamodb, name)["TimeToLiveStatus"] == "DISABLED"


def test_a_table_that_somebody_else_is_making_is_waited_for(
    dynamodb: DynamoDb, variables: dict[str, str], statuses: dict[str, str]
) -> None:
    name = dynamodb.table()
    statuses[name] = "CREATING"
    asked = len(dynamodb.operations)
    arguments = command("create", name, "--endpoint-url", dynamodb.url)
    with subprocess.Popen(arguments, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as creating:
        wait_until(lambda: dynamodb.operations[asked:].count("DescribeTable") >= 2, READY_SECONDS)
        assert creating.poll() is None
        del statuses[name]
        errors = creating.communicate(timeout=30)[1]
    assert creating.returncode == 0, errors
    assert ttl_of(dynamodb, name)["TimeToLiveStatus"] == "ENABLED"


def test_ctrl_c_while_it_waits_says_how_to_go_on(dynamodb: DynamoDb, variables: dict[str, str], statuses: dict[str, str]) -> None:
    name = dynamodb.table()
    statuses[name] = "CREATING"
    asked = len(dynamodb.operations)
    arguments = command("create", name, "--endpoint-url", dynamodb.url)
    with subprocess.Popen(arguments, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as creating:
        wait_until(lambda: len(dynamodb.operations) > asked, READY_SECONDS)
        while creating.poll() is None:  # what it raises in a callback from C is swallowed; then people press it again
            creating.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                creating.wait(5)
        output, errors = creating.communicate(timeout=30)
    assert (creating.returncode, output) == (130, "")
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors


def test_a_table_that_is_being_deleted_is_told(table: Run, dynamodb: DynamoDb, statuses: dict[str, str]) -> None:
    name = dynamodb.table()
    statuses[name] = "DELETING"
    done = table("create", name)
    assert done.returncode == 2
    assert "its status is DELETING, not ACTIVE. Wait until it is gone" in done.stderr
    assert table("describe", name).returncode == 1


def test_of_two_who_make_it_at_once_both_have_it(
    table: Run, dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def quicker(operation: str, body: dict[str, Any]) -> None:
        if operation == "CreateTable" and next(turns) == 0:  # another one, while this one's request is on its way
            definition = {"TableName": name, **DEFINITION}
            dynamodb.client().create_table(**definition)
            dynamodb.client().update_time_to_live(TableName=name, TimeToLiveSpecification=TTL_DEFINITION)

    turns = itertools.count()
    monkeypatch.setattr(dynamodb, "faults", quicker)
    done = table("create", name)
    assert done.returncode == 0, done.stderr
    assert "was there and fits" in done.stderr


@pytest.mark.parametrize(
    ("operation", "error", "verb", "message"),
    [
        ("CreateTable", "AccessDeniedException", "create", "your credentials don't allow dynamodb:CreateTable"),
        ("DescribeTable", "AccessDeniedException", "create", "your credentials don't allow dynamodb:DescribeTable"),
        ("DescribeTimeToLive", "AccessDeniedException", "create", "don't allow dynamodb:DescribeTimeToLive"),
        ("UpdateTimeToLive", "AccessDeniedException", "create", "don't allow dynamodb:UpdateTimeToLive"),
        ("UpdateTimeToLive", "ValidationException", "create", "dynamodb:UpdateTimeToLive on table"),
        ("CreateTable", "LimitExceededException", "create", "LimitExceededException, told so. Try again later."),
        ("DescribeTable", "AccessDeniedException", "describe", "your credentials don't allow dynamodb:DescribeTable"),
        ("DescribeTable", "ExpiredTokenException", "describe", "ExpiredTokenException, told so. Log in again"),
        ("DescribeTable", "UnrecognizedClientException", "describe", "UnrecognizedClientException, told so. Log in again"),
        ("DescribeTable", "ThrottlingException", "describe", "ThrottlingException, told so. Try again later."),
        ("DescribeTable", "InternalServerError", "describe", "InternalServerError, told so. Try again later."),
        ("DescribeTable", "OptInRequired", "describe", "OptInRequired, told so"),
    ],
)
def test_what_aws_refuses_is_told_in_a_line_that_names_the_action(  # noqa: PLR0917
    table: Run,
    dynamodb: DynamoDb,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    operation: str,
    error: str,
    verb: str,
    message: str,
) -> None:
    monkeypatch.setattr(dynamodb, "faults", lambda asked, body: error if asked == operation else None)
    done = table(verb, name)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("perinvoke: ")
    assert message in last
    assert f"dynamodb:{operation}" in last
    assert len(done.stderr.splitlines()) <= 2  # the other one: that it is being made


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NO_CREDENTIALS: dict[str, str | None] = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("describe", "nowhere"), {}, "there is no table 'nowhere' in eu-west-1"),
        (("describe", "nowhere"), {"AWS_DEFAULT_REGION": None}, "no region is set: give --region"),
        (("describe", "nowhere"), {"AWS_DEFAULT_REGION": ""}, "no region is set: give --region"),
        (("describe", "nowhere", "--region", "not a region"), {}, "not a region"),
        (("describe", "nowhere"), NO_CREDENTIALS, "Unable to locate credentials. Log in"),
        (("describe", "nowhere"), {"AWS_SECRET_ACCESS_KEY": None}, "Partial credentials"),
        (("create", "nowhere", "--profile", "mars"), {}, "The config profile (mars) could not be found"),
        (("describe", "nowhere", "--endpoint-url", "localhost"), {}, "Invalid endpoint: localhost"),
        (("describe", "nowhere", "--endpoint-url", f"http://127.0.0.1:{closed_port()}"), {}, "Check the network"),
        (("describe", "a b"), {}, "'a b' is no name for a table: 3 to 255 characters"),
        (("create", "ab"), {}, "'ab' is no name for a table"),
        (("create", "ab", "--dry-run"), {}, "'ab' is no name for a table"),
        (("create", "arn:aws:dynamodb:eu-west-1:123456789012:table/abc"), {}, "a table is made by its name"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    table: Run, arguments: tuple[str, ...], changes: dict[str, str | None], message: str
) -> None:
    done = table(*arguments, **changes)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("perinvoke: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


ROLE = "[profile me]\nrole_arn = arn:aws:iam::123456789012:role/me\ncredential_source = Environment\n"
_NOT_ASSUMED = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>it isn't yours</Message></Error></ErrorResponse>"


def told_of_profile(table: Run, tmp_path: Path, profile: str, **changes: str | None) -> str:
    """What stderr has of one that can't be used."""
    config = tmp_path / "config"
    config.write_text(profile)
    done = table("describe", "abc", "--profile", "me", AWS_CONFIG_FILE=str(config), **changes)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_a_role_that_may_not_be_assumed_is_not_told_as_a_table_that_may_not_be_described(table: Run, tmp_path: Path) -> None:
    with AwsServer(lambda _: answer(_NOT_ASSUMED, "403 Forbidden")) as sts:
        told = told_of_profile(table, tmp_path, ROLE, AWS_ENDPOINT_URL_STS=sts.url)
    assert told == "perinvoke: the credentials can't be had: AssumeRole, it isn't yours\n"


def test_who_hands_out_credentials_and_is_not_there_is_told(table: Run, tmp_path: Path) -> None:
    told = told_of_profile(table, tmp_path, ROLE, AWS_ENDPOINT_URL_STS=f"http://127.0.0.1:{closed_port()}", AWS_MAX_ATTEMPTS="1")
    assert told.startswith("perinvoke: Could not connect to the endpoint URL")


@pytest.mark.parametrize(
    ("credentials", "told"),
    [
        ("credential_process = /nowhere/keys\n", "the credentials of profile 'me' can't be read: /nowhere/keys: No such file"),
        ("credential_process = echo keys\n", "the credentials of profile 'me' can't be read: Expecting value"),
    ],
)
def test_credentials_that_cannot_be_read_are_told(table: Run, tmp_path: Path, credentials: str, told: str) -> None:
    assert told_of_profile(table, tmp_path, f"[profile me]\n{credentials}").startswith(f"perinvoke: {told}")


def test_a_code_that_nobody_can_type_is_told(tmp_path: Path, variables: dict[str, str]) -> None:
    config = tmp_path / "config"
    config.write_text(f"{ROLE}mfa_serial = arn:aws:iam::123456789012:mfa/me\n")
    done = subprocess.run(
        command("describe", "abc", "--profile", "me"),
        env=variables | {"AWS_CONFIG_FILE": str(config)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # without a terminal, at which it would ask all the same
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "perinvoke: the profile 'me' asks for an MFA code, and nobody can type one here: stdin is no terminal." in done.stderr
    assert "Traceback" not in done.stderr


def test_without_boto3_it_says_what_to_install(table: Run, tmp_path: Path, variables: dict[str, str]) -> None:
    code = "import sys; sys.modules['boto3'] = None; from perinvoke.cli import main; sys.exit(main(['table', 'describe', 'abc']))"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "perinvoke: perinvoke table needs boto3, which isn't installed: pip install 'perinvoke[aws]'\n"


def test_help_is_there_for_both() -> None:
    for arguments in (("--help",), ("create", "--help"), ("describe", "--help")):
        done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0
        assert "exit code: 0 when the table fits" in done.stdout
