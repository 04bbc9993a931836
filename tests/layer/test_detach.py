"""``perinvoke layer detach``: a function is exactly as it was."""

from __future__ import annotations

from typing import Any

import pytest

from attaching import PUBLISH, READ, UPDATE, Commands
from lambda_server import LATEST_PUBLISHED, LambdaServer

FUNCTIONS: dict[str, dict[str, Any]] = {
    "bare": {},
    "managed": {"managed": True},
    "variables": {"Environment": {"Variables": {"TABLE": "orders", "PERINVOKE_PRELOAD": "boto3"}}},
    "wrapper": {"Environment": {"Variables": {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/otel-instrument"}}},
    "datadog": {
        "Handler": "datadog_lambda.handler.handler",
        "Environment": {"Variables": {"DD_LAMBDA_HANDLER": "app.handler"}},
    },
}


@pytest.mark.parametrize(
    ("kind", "route"),
    [
        *(("bare", None), ("bare", "handler"), ("managed", None), ("variables", "wrapper")),
        *(("wrapper", None), ("wrapper", "wrapper"), ("datadog", "wrapper"), ("datadog", "handler")),
    ],
)
def test_after_detach_the_configuration_is_what_it_was(
    command: Commands, server: LambdaServer, kind: str, route: str | None
) -> None:
    arguments = ("--route", route) if route else ()
    layers = [server.layer("before"), server.layer("after")] if kind != "bare" else []
    name = server.function(Layers=layers, **FUNCTIONS[kind])
    before = server.configuration(name)
    server.layer()
    command.done("attach", name, *arguments)
    assert server.configuration(name) != before
    server.layer()
    command.done("attach", name)
    command.done("detach", name)
    assert server.configuration(name) == before
    assert "nothing to do" in command.done("detach", name).stderr
    assert UPDATE not in server.operations()


def test_on_managed_instances_what_it_was_is_published(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function(managed=True)
    before = server.configuration(name, qualifier=LATEST_PUBLISHED)
    command.done("attach", name)
    command.done("detach", name)
    assert server.operations()[-2:] == [PUBLISH, READ]
    assert server.configuration(name, qualifier=LATEST_PUBLISHED) == before


def test_what_an_interrupted_detach_has_not_published_the_next_one_does(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function(managed=True)
    before = server.configuration(name, qualifier=LATEST_PUBLISHED)
    command.done("attach", name)
    command.done("detach", name, "--no-publish")
    command.done("detach", name)
    assert [each for each in server.operations() if each in {UPDATE, PUBLISH}] == [PUBLISH]
    assert server.configuration(name, qualifier=LATEST_PUBLISHED) == before


def test_what_others_changed_since_is_kept_and_what_was_changed_of_ours_is_told(command: Commands, server: LambdaServer) -> None:
    ours = server.layer()
    name = server.function()
    command.done("attach", name, "--version-arn", ours)
    environment = server.configuration(name)["Environment"]["Variables"]
    other = server.layer("other")
    server.change(
        name, Layers=[other, ours], Environment={"Variables": {**environment, "NEW": "1", "PERINVOKE_PRELOAD": "boto3"}}
    )
    done = command.done("detach", name)
    found = server.configuration(name)
    assert [each["Arn"] for each in found["Layers"]] == [other]
    assert found["Environment"]["Variables"] == {"NEW": "1", "PERINVOKE_PRELOAD": "boto3"}
    assert "warning: PERINVOKE_PRELOAD was changed since, and stays as it is" in done.stderr


def test_what_was_attached_by_hand_is_told_and_left_alone(command: Commands, server: LambdaServer) -> None:
    arn = server.layer()
    name = server.function(Layers=[arn])
    before = server.configuration(name)
    done = command("detach", name)
    assert done.returncode == 2
    assert f"function '{name}' has {arn}, and no record of what was there before (PERINVOKE_ATTACHED)" in done.stderr
    assert server.configuration(name) == before


def test_what_was_never_published_is_not_published_by_detach(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function(managed=True)
    server._functions["eu-west-1", name].published = None
    command.done("attach", name, "--no-publish")
    command.done("detach", name)
    assert PUBLISH not in server.operations()


def test_a_dry_run_only_reads(command: Commands, server: LambdaServer) -> None:
    server.layer()
    name = server.function()
    command.done("attach", name)
    before = server.configuration(name)
    done = command("detach", name, "--dry-run", yes=False)
    assert done.returncode == 0
    assert "-   AWS_LAMBDA_EXEC_WRAPPER=/opt/perinvoke/exec" in done.stdout
    assert server.operations() == [READ]
    assert server.configuration(name) == before
