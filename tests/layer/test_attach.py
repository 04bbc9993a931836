"""``perinvoke layer attach`` against a Lambda that does what it is asked for, or says no."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from botocore.model import OperationModel, ServiceModel

from attaching import HANDLER, PUBLISH, READ, UPDATE, WRAPPER, Commands, variables
from lambda_server import LATEST_PUBLISHED, LambdaServer
from moto_server import MotoServer
from perinvoke.layer.attach import fitness

if TYPE_CHECKING:
    from pathlib import Path

NOBODYS_REGION = "sa-east-1"


def test_a_function_gets_the_newest_layer_version_that_fits(command: Commands, server: LambdaServer) -> None:
    arn = server.layer()
    server.layer(runtimes=["python3.14"])
    server.layer(architectures=["arm64"])
    server.page = 1
    name = server.function(Environment={"Variables": {"SECRET": "hush"}})
    done = command.done("attach", name)
    found = server.configuration(name)
    assert [each["Arn"] for each in found["Layers"]] == [arn]
    assert found["Handler"] == "app.handler"
    assert found["Environment"]["Variables"]["AWS_LAMBDA_EXEC_WRAPPER"] == WRAPPER
    assert found["Environment"]["Variables"]["SECRET"] == "hush"
    assert f"+   {arn}\n" in done.stdout
    assert "+   AWS_LAMBDA_EXEC_WRAPPER=/opt/perinvoke/exec\n" in done.stdout
    assert "hush" not in done.stdout + done.stderr
    assert "no capacity provider" in done.stderr
    assert PUBLISH not in server.operations()


def test_attached_already_there_is_nothing_to_do(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function()
    command.done("attach", name)
    before = server.configuration(name)
    done = command.done("attach", name)
    assert "nothing to do" in done.stderr
    assert done.stdout == ""
    assert server.operations() == [READ, "ListLayerVersions"]
    assert server.configuration(name) == before


@pytest.mark.parametrize("form", ["{arn}", "{arn}:$LATEST", "123456789012:function:{name}"])
def test_a_function_may_be_named_by_its_arn_or_a_part_of_it(
    command: Commands, server: LambdaServer, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    server.layer()
    name = server.function()
    function = form.format(name=name, arn=server.configuration(name)["FunctionArn"])
    if form.startswith("{arn}"):
        monkeypatch.delenv("AWS_DEFAULT_REGION")  # the ARN says it
    command.done("attach", function)
    assert "PERINVOKE_ATTACHED" in server.configuration(name)["Environment"]["Variables"]


def test_the_handler_route_changes_the_handler(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function()
    done = command.done("attach", name, "--route", "handler")
    found = server.configuration(name)
    assert found["Handler"] == HANDLER
    assert found["Environment"]["Variables"]["PERINVOKE_HANDLER"] == "app.handler"
    assert "-   app.handler\n+   perinvoke.handler.handler\n" in done.stdout


def test_on_managed_instances_a_version_is_published_and_awaited(command: Commands, server: LambdaServer) -> None:
    arn = server.layer()
    name = server.function(managed=True)
    server.updates_take = server.versions_take = 2
    done = command.done("attach", name)
    published = server.configuration(name, qualifier=LATEST_PUBLISHED)
    assert [each["Arn"] for each in published["Layers"]] == [arn]
    order = [each for each in server.operations() if each in {UPDATE, PUBLISH}]
    assert order == [UPDATE, PUBLISH]
    assert f"waiting until version {LATEST_PUBLISHED} is active" in done.stderr
    assert f"version {LATEST_PUBLISHED} is active" in done.stderr
    assert f"aws lambda update-alias --function-name {name} --name ALIAS" in done.stderr
    assert done.stderr.count("warning") == done.stderr.count("doesn't say whether Managed Instances run them") == 1


def test_no_publish_says_how_to(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function(managed=True)
    done = command.done("attach", name, "--no-publish")
    assert PUBLISH not in server.operations()
    assert f"aws lambda publish-version --function-name {name} --publish-to LATEST_PUBLISHED" in done.stderr


def test_what_an_interrupted_command_has_not_published_the_next_one_does(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function(managed=True)
    command.done("attach", name, "--no-publish")
    done = command.done("attach", name)
    assert "nothing to change" in done.stdout
    assert [each for each in server.operations() if each in {UPDATE, PUBLISH}] == [PUBLISH]
    assert "PERINVOKE_ATTACHED" in server.configuration(name, qualifier=LATEST_PUBLISHED)["Environment"]["Variables"]
    assert "nothing to do" in command.done("attach", name).stderr


def test_what_others_have_not_published_is_warned_of(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function(managed=True)
    server.change(name, MemorySize=4096)
    assert "$LATEST has changes already that aren't published (MemorySize)" in command.done("attach", name).stderr


def test_a_first_version_is_warned_of(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function(managed=True)
    with server.undisturbed():
        server._functions["eu-west-1", name].published = None
    assert f"there is no {LATEST_PUBLISHED} yet: it starts instances" in command.done("attach", name).stderr


def test_a_first_version_that_was_not_published_is_published_by_the_next_command(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function(managed=True)
    server._functions["eu-west-1", name].published = None
    command.done("attach", name, "--no-publish")
    command.done("attach", name)
    assert PUBLISH in server.operations()
    assert "PERINVOKE_ATTACHED" in server.configuration(name, qualifier=LATEST_PUBLISHED)["Environment"]["Variables"]


def test_what_plain_moto_lacks_is_done_without(command: Commands, server: LambdaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No filters, no layers by their ARN, and a revision neither told nor asked for."""
    fitting = server.layer()
    server.layer(runtimes=["python3.14"])
    name = server.function()
    before = server.configuration(name)
    monkeypatch.setattr(
        LambdaServer, "_served", lambda server, asked, line, headers, body: MotoServer.reply_to(server, line, headers, body)
    )
    for arguments in ((), ("--route", "handler"), ("--version-arn", fitting)):
        command.done("attach", name, *arguments)
        assert [each["Arn"] for each in server.configuration(name)["Layers"]] == [fitting]
    command.done("detach", name)
    after = server.configuration(name)
    assert [after.get(member) for member in ("Handler", "Layers")] == [before["Handler"], before.get("Layers", [])]
    assert "Environment" not in after
    assert "RevisionId" not in server.asked[1].body


def test_a_newer_version_takes_the_place_of_the_older(command: Commands, server: LambdaServer) -> None:
    layers = [server.layer("before"), server.layer(), server.layer("after")]
    name = server.function(Layers=layers)
    newer = server.layer()
    command.done("attach", name)
    assert [each["Arn"] for each in server.configuration(name)["Layers"]] == [layers[0], newer, layers[2]]


def test_a_dry_run_only_reads(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function(managed=True)
    before = server.configuration(name)
    done = command("attach", name, "--dry-run", yes=False)
    assert done.returncode == 0
    assert "+   AWS_LAMBDA_EXEC_WRAPPER" in done.stdout
    assert "dry run: nothing is changed" in done.stderr
    assert set(server.operations()) == {READ, "ListLayerVersions"}
    assert server.configuration(name) == before


def test_without_a_terminal_nobody_is_asked(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function()
    done = command("attach", name, yes=False)
    assert done.returncode == 2
    assert done.stderr.endswith("stdin is no terminal: give --yes, or --dry-run to see only\n")
    assert UPDATE not in server.operations()


# --- refused before anything is changed ---------------------------------------------------------------------------------------


def refused(command: Commands, name: str, *arguments: str, told: str) -> str:
    done = command("attach", name, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("perinvoke: ")
    assert told in done.stderr
    assert UPDATE not in command.server.operations()
    return done.stderr


def test_a_function_that_is_not_there_is_told(command: Commands) -> None:
    refused(command, "nobodys", told="there is no function 'nobodys' in eu-west-1, in the account of these credentials")


def test_a_version_is_refused_without_a_request(command: Commands, server: LambdaServer) -> None:
    refused(command, "orders:7", told="names a version or an alias")
    assert server.asked == []


def test_a_region_that_is_not_the_arns_is_refused(command: Commands) -> None:
    arn = "arn:aws:lambda:eu-west-1:123456789012:function:orders"
    refused(command, arn, "--region", "us-east-1", told="--region is us-east-1, and")


def test_no_region_is_told(command: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    refused(command, "orders", told="no region is set: give --region, or set AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")  # as CI sets what it doesn't know
    refused(command, "orders", told="no region is set: give --region, or set AWS_DEFAULT_REGION")


def test_no_region_for_a_role_is_told(command: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("[profile me]\nrole_arn = arn:aws:iam::123456789012:role/me\ncredential_source = Environment\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert command("attach", "orders", "--profile", "me").stderr.startswith("perinvoke: no region is set: give --region")


def test_a_botocore_that_does_not_know_managed_instances_is_told(
    command: Commands, server: LambdaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its PublishVersion has no PublishTo; and what CapacityProviderConfig is, it doesn't read."""
    name = server.function(managed=True)
    model = ServiceModel.operation_model

    def older(service: ServiceModel, operation: str) -> OperationModel:
        found = model(service, operation)
        if operation == "PublishVersion":
            found.input_shape.members.pop("PublishTo", None)
        return found

    monkeypatch.setattr(ServiceModel, "operation_model", older)
    refused(command, name, told="is older than Managed Instances, and can't tell whether")


def test_no_credentials_are_told(command: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused(command, "orders", told="AWS_ACCESS_KEY_ID")


def test_no_layer_is_told_with_how_to_publish_one(command: Commands, server: LambdaServer) -> None:
    name = server.function(region=NOBODYS_REGION)
    told = refused(command, name, "--region", NOBODYS_REGION, told=f"there is no layer 'perinvoke' in {NOBODYS_REGION}")
    assert f"perinvoke layer publish --region {NOBODYS_REGION}" in told


def test_a_layer_without_a_version_that_fits_is_told(command: Commands, server: LambdaServer) -> None:
    server.layer("perinvoke-x", runtimes=["python3.14"], architectures=["arm64"])
    name = server.function(Layers=[server.layer("perinvoke-x", runtimes=["python3.14"], architectures=["arm64"])])
    told = refused(command, name, told="is for python3.13 on x86_64; the newest, ")
    assert "perinvoke layer build --python 3.13 --arch x86_64" in told


def test_a_named_version_that_does_not_fit_or_is_not_there_is_told(command: Commands, server: LambdaServer) -> None:
    name = server.function()
    arn = server.layer(runtimes=["python3.14"])
    refused(command, name, "--version-arn", arn, told="is for runtime python3.14, and function")
    missing = f"{arn.rpartition(':')[0]}:999"
    refused(command, name, "--version-arn", missing, told=f"there is no layer version {missing}. See which there are")
    elsewhere = arn.replace("eu-west-1", "us-east-1")
    refused(command, name, "--version-arn", elsewhere, told="is in us-east-1, and the function in eu-west-1")


def test_the_sixth_layer_is_refused_before_aws_is_asked(command: Commands, server: LambdaServer) -> None:
    server.layer()
    layers = [server.layer(f"l{number}") for number in range(5)]
    told = refused(command, server.function(Layers=layers), told="a function takes 5 layers")
    assert all(arn in told for arn in layers)


def test_variables_over_4_kb_are_refused_before_aws_is_asked(command: Commands, server: LambdaServer) -> None:
    server.layer()
    told = refused(command, server.function(Environment={"Variables": {"PASSWORD": "hush" * 1000}}), told="PASSWORD (4013 bytes)")
    assert "hush" not in told


def test_what_lambda_refuses_is_told_without_the_values_that_it_repeats(
    command: Commands, server: LambdaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitness, "ENVIRONMENT_BYTES", 10_000)
    server.layer()
    done = command("attach", server.function(Environment={"Variables": {"PASSWORD": 'hush"' * 700}}))
    assert done.returncode == 2
    assert done.stderr.endswith("have provided exceeded the 4KB limit.\n")
    assert "hush" not in done.stdout + done.stderr


def test_an_image_is_told_what_to_do_instead(command: Commands, server: LambdaServer) -> None:
    refused(
        command, server.function(PackageType="Image"), told="is a container image, and those take no layers. Install perinvoke"
    )


def test_a_function_that_is_not_python_is_told(command: Commands, server: LambdaServer) -> None:
    refused(command, server.function(Runtime="nodejs22.x"), told="runs on nodejs22.x: perinvoke is for Python only")


# --- as people type it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1)], ids=["yes", "no", "enter", "end"])
def test_on_a_terminal_it_asks_and_shows_colours(server: LambdaServer, tmp_path: Path, answer: str, code: int) -> None:
    server.reset()
    server.layer()
    name = server.function()
    before = server.configuration(name)
    seen, returncode = typed(["layer", "attach", name], variables(server, tmp_path), answer)
    assert returncode == code, seen
    assert "\033[32m+   AWS_LAMBDA_EXEC_WRAPPER=/opt/perinvoke/exec\033[0m" in seen
    assert ("nothing is changed" in seen) == (code == 1)
    assert (server.configuration(name) == before) == (code == 1)


def typed(arguments: list[str], environ: dict[str, str], answer: str) -> tuple[str, int]:
    """What a process of the command shows on its terminal, and its exit code, when the question gets this answer."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "perinvoke", *arguments]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environ, start_new_session=True) as process:
        os.close(its)
        seen = ""
        while select.select([ours], [], [], 60)[0]:
            try:
                read = os.read(ours, 10_000).decode()
            except OSError:  # the terminal's other end is closed
                break
            asked = "[y/N]" in seen
            seen += read
            if not asked and "[y/N]" in seen:
                os.write(ours, answer.encode())
        os.close(ours)
        return seen, process.wait(30)
