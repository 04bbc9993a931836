"""attach and detach when others change the function meanwhile, answers are lost, AWS is busy, or somebody presses Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from attaching import PUBLISH, READ, UPDATE, Commands, script, variables
from aws_server import AwsServer, answer
from lambda_server import LATEST_PUBLISHED, LambdaServer
from perinvoke.layer.attach import remote

if TYPE_CHECKING:
    from pathlib import Path

    from lambda_server import Asked

ATTACHED = "PERINVOKE_ATTACHED"
ENDLESS = 1_000_000


@pytest.fixture
def command(command: Commands, server: LambdaServer) -> Commands:
    server.layer()
    return command


def is_attached(server: LambdaServer, name: str, qualifier: str | None = None) -> bool:
    return ATTACHED in server.configuration(name, qualifier=qualifier).get("Environment", {}).get("Variables", {})


def count(server: LambdaServer, operation: str) -> int:
    return server.operations().count(operation)


# --- somebody else ------------------------------------------------------------------------------------------------------------


def test_a_change_between_the_look_and_the_update_is_not_overwritten(command: Commands, server: LambdaServer) -> None:
    name = server.function()
    server.faults = script(UPDATE, lambda: server.change(name, Environment={"Variables": {"NEW": "1"}}))
    done = command("attach", name)
    assert done.returncode == 2
    assert f"perinvoke: somebody else has changed function '{name}' meanwhile. Nothing of that is overwritten" in done.stderr
    assert "run the command again" in done.stderr
    assert server.configuration(name)["Environment"]["Variables"] == {"NEW": "1"}
    command.done("attach", name)
    assert server.configuration(name)["Environment"]["Variables"]["NEW"] == "1"


def test_a_change_is_not_overwritten_by_detach_either(command: Commands, server: LambdaServer) -> None:
    name = server.function()
    command.done("attach", name)
    server.faults = script(UPDATE, lambda: server.change(name, MemorySize=4096))
    assert command("detach", name).returncode == 2
    assert is_attached(server, name)
    command.done("detach", name)
    assert server.configuration(name)["MemorySize"] == 4096


def test_a_change_that_is_under_way_is_waited_for(command: Commands, server: LambdaServer) -> None:
    name = server.function()
    server._functions["eu-west-1", name].reads_in_progress = 3
    done = command.done("attach", name)
    assert "waiting for another change of the function, which is under way ..." in done.stderr
    assert count(server, UPDATE) == 1
    assert is_attached(server, name)


def test_a_change_that_begins_meanwhile_is_waited_for_and_not_overwritten(command: Commands, server: LambdaServer) -> None:
    name = server.function()

    def somebody_else() -> None:
        server.change(name, MemorySize=4096)
        server._functions["eu-west-1", name].reads_in_progress = 3

    server.faults = script(UPDATE, somebody_else)
    done = command("attach", name)
    assert done.returncode == 2
    assert "another change of the function is under way; waiting for its end ..." in done.stderr
    assert "somebody else has changed function" in done.stderr
    assert not is_attached(server, name)


def test_a_conflict_that_passes_is_no_failure(command: Commands, server: LambdaServer) -> None:
    name = server.function()
    server.faults = script(UPDATE, "ResourceConflictException")
    command.done("attach", name)
    assert count(server, UPDATE) == 2


def test_a_change_that_never_ends_is_told(command: Commands, server: LambdaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "UPDATE_SECONDS", 0.05)
    name = server.function()
    server._functions["eu-west-1", name].reads_in_progress = ENDLESS
    done = command("attach", name)
    assert done.returncode == 2
    assert f"function '{name}': another change of it is still under way after 0 s" in done.stderr
    assert UPDATE not in server.operations()


def test_a_change_right_after_ours_is_told_and_nothing_is_published(command: Commands, server: LambdaServer) -> None:
    name = server.function(managed=True)
    server.faults = script(READ, None, None, lambda: server.change(name, Layers=[]))
    done = command("attach", name)
    assert done.returncode == 2
    assert f"somebody else has changed function '{name}' right after this change" in done.stderr
    assert PUBLISH not in server.operations()


# --- answers that don't come --------------------------------------------------------------------------------------------------


def test_a_lost_answer_of_an_update_that_was_carried_out_is_no_failure(command: Commands, server: LambdaServer) -> None:
    name = server.function()
    server.faults = script(UPDATE, "lost")
    command.done("attach", name)
    assert count(server, UPDATE) == 1
    assert is_attached(server, name)


@pytest.mark.parametrize("fault", ["dropped", "ServiceException"])
def test_an_update_that_was_not_carried_out_is_repeated(command: Commands, server: LambdaServer, fault: str) -> None:
    name = server.function()
    server.faults = script(UPDATE, fault, fault)
    command.done("attach", name)
    assert count(server, UPDATE) == 3
    assert is_attached(server, name)


def test_an_update_that_fails_by_its_own_doing_is_seen_to_be_made(command: Commands, server: LambdaServer) -> None:
    name = server.function()
    bodies: list[dict[str, Any]] = []

    def late(asked: Asked) -> str | None:
        """The first one is carried out when the second one has been sent already."""
        if asked.operation != UPDATE:
            return None
        bodies.append(dict(asked.body))
        if len(bodies) == 1:
            return "dropped"
        server.change(name, **{member: value for member, value in bodies[0].items() if member != "RevisionId"})
        return None

    server.faults = late
    command.done("attach", name)
    assert count(server, UPDATE) == 2
    assert is_attached(server, name)


def test_a_lost_answer_and_then_somebody_elses_change_is_told(command: Commands, server: LambdaServer) -> None:
    name = server.function()
    lost = script(UPDATE, "lost")
    changed = script(READ, None, lambda: server.change(name, Layers=[]))
    server.faults = lambda asked: lost(asked) or changed(asked)
    done = command("attach", name)
    assert done.returncode == 2
    assert f"somebody else has changed function '{name}' meanwhile" in done.stderr
    assert count(server, UPDATE) == 1


def test_throttling_that_ends_is_waited_out(command: Commands, server: LambdaServer) -> None:
    name = server.function(managed=True)
    server.updates_take = server.versions_take = 2
    left = dict.fromkeys((READ, UPDATE, PUBLISH, "ListLayerVersions"), 2)

    def throttled(asked: Asked) -> str | None:
        left[asked.operation] -= 1
        return "TooManyRequestsException" if left[asked.operation] >= 0 else None

    server.faults = throttled
    command.done("attach", name)
    assert count(server, UPDATE) == count(server, PUBLISH) == 3
    assert is_attached(server, name, LATEST_PUBLISHED)


def test_throttling_while_waiting_ends_nothing(command: Commands, server: LambdaServer) -> None:
    name = server.function()
    server.updates_take = 3
    server.faults = script(READ, None, *["TooManyRequestsException"] * 9)
    command.done("attach", name)
    assert is_attached(server, name)


@pytest.mark.parametrize("fault", ["TooManyRequestsException", "ServiceException", "dropped"])
def test_an_update_that_cannot_be_had_is_told(
    command: Commands, server: LambdaServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(remote, "INSIST_SECONDS", 0.05)
    name = server.function()
    server.faults = lambda asked: fault if asked.operation == UPDATE else None
    done = command("attach", name)
    assert done.returncode == 2
    assert f"lambda:UpdateFunctionConfiguration on function '{name}' in eu-west-1" in done.stderr
    assert count(server, UPDATE) > 1
    assert not is_attached(server, name)


@pytest.mark.parametrize(
    "fault", ["lost", "dropped", "ResourceConflictException", "TooManyRequestsException", "ServiceException"]
)
def test_publishing_is_repeated_as_far_as_it_must_be(command: Commands, server: LambdaServer, fault: str) -> None:
    name = server.function(managed=True)
    server.faults = script(PUBLISH, fault)
    command.done("attach", name)
    assert count(server, PUBLISH) == (1 if fault == "lost" else 2)
    assert is_attached(server, name, LATEST_PUBLISHED)


def test_a_look_that_shows_what_was_before_is_not_believed(command: Commands, server: LambdaServer) -> None:
    """Lambda promises nowhere that who has written reads it."""
    name = server.function(managed=True)
    server._functions["eu-west-1", name].published = None
    whole, old, looks = server._read, [], []

    def late(asked: Asked, moto: Any) -> bytes:
        told = whole(asked, moto)
        if not asked.query:
            old.append(told)
            return old[0] if UPDATE in server.operations() and len(old) < 4 else told
        looks.append(told)
        return looks[0] if len(looks) < 3 else told

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_read", late)
        command.done("attach", name)
    assert count(server, UPDATE) == count(server, PUBLISH) == 1
    assert (len(old), len(looks)) == (4, 3)


def test_a_change_that_could_not_be_published_is_told(command: Commands, server: LambdaServer) -> None:
    name = server.function(managed=True)
    server.faults = script(PUBLISH, "AccessDeniedException")
    assert "made and applied, but not published; the same command goes on from there" in command("attach", name).stderr


@pytest.mark.parametrize("verb", ["attach", "detach"])
def test_an_answer_that_is_not_of_lambda_is_told(command: Commands, verb: str) -> None:
    with AwsServer(lambda line: answer(b"{}")) as stranger:
        done = command(verb, "orders", "--endpoint-url", stranger.url)
    assert done.returncode == 2
    assert "there was an answer, but none of AWS: it has no FunctionArn" in done.stderr


def test_a_page_of_a_proxy_is_told_in_one_line(command: Commands) -> None:
    page = json.dumps({"Message": "<html>\n<h1>Out of order</h1>\n</html>"}).encode()
    with AwsServer(lambda line: answer(page, "503 Service Unavailable")) as proxy:
        done = command("attach", "orders", "--endpoint-url", proxy.url)
    assert done.stderr.count("\n") == 1
    assert "503, <html> <h1>Out of order</h1> </html>. Try again later." in done.stderr


def test_a_new_revision_without_a_change_is_published(command: Commands, server: LambdaServer) -> None:
    name = server.function(managed=True)
    server.faults = script(PUBLISH, lambda: server._functions["eu-west-1", name].changed())
    command.done("attach", name)
    assert count(server, PUBLISH) == 2
    assert is_attached(server, name, LATEST_PUBLISHED)


def test_a_change_before_the_publishing_is_told_and_not_published(command: Commands, server: LambdaServer) -> None:
    name = server.function(managed=True)
    server.faults = script(PUBLISH, lambda: server.change(name, MemorySize=4096))
    done = command("attach", name)
    assert done.returncode == 2
    assert f"somebody else has changed function '{name}' before it was published" in done.stderr
    assert not is_attached(server, name, LATEST_PUBLISHED)


# --- AWS says no --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "action"),
    [(READ, "GetFunctionConfiguration"), ("ListLayerVersions", "ListLayerVersions"), (UPDATE, UPDATE), (PUBLISH, PUBLISH)],
)
def test_a_missing_permission_is_told_as_iam_names_it(
    command: Commands, server: LambdaServer, operation: str, action: str
) -> None:
    name = server.function(managed=True)
    server.faults = lambda asked: "AccessDeniedException" if asked.operation == operation else None
    done = command("attach", name)
    assert done.returncode == 2
    assert f"perinvoke: your credentials don't allow lambda:{action} on " in done.stderr
    assert ("Or name the version: --version-arn" in done.stderr) == (operation == "ListLayerVersions")
    assert is_attached(server, name) == (operation == PUBLISH)
    server.faults = lambda asked: None
    command.done("attach", name)  # and goes on from there
    assert is_attached(server, name, LATEST_PUBLISHED)


def test_credentials_that_are_over_are_told(command: Commands, server: LambdaServer) -> None:
    server.faults = lambda asked: "ExpiredTokenException"
    done = command("attach", server.function())
    assert done.returncode == 2
    assert "Log in again" in done.stderr


def test_an_update_that_lambda_cannot_apply_is_told_with_its_reason(command: Commands, server: LambdaServer) -> None:
    name = server.function(managed=True)
    server.update_fails = "the layer can't be read"
    done = command("attach", name)
    assert done.returncode == 2
    assert f"Lambda could not apply the change of function '{name}': InvalidConfiguration: the layer can't be read" in done.stderr
    assert "perinvoke layer detach" in done.stderr
    assert PUBLISH not in server.operations()


def test_a_version_that_fails_is_told_with_its_reason(command: Commands, server: LambdaServer) -> None:
    name = server.function(managed=True)
    server.versions_take, server.version_fails = 2, "the handler can't be imported"
    done = command("attach", name)
    assert done.returncode == 2
    told = f"version {LATEST_PUBLISHED} of function '{name}' has failed: FunctionError: the handler can't be imported"
    assert told in done.stderr


@pytest.mark.parametrize(
    ("limit", "told"), [("UPDATE_SECONDS", "still applying the change"), ("VERSION_SECONDS", "still pending")]
)
def test_what_lambda_does_not_end_is_told(
    command: Commands, server: LambdaServer, monkeypatch: pytest.MonkeyPatch, limit: str, told: str
) -> None:
    name = server.function(managed=True)
    monkeypatch.setattr(remote, limit, 0.05)
    if limit == "UPDATE_SECONDS":
        server.updates_take = ENDLESS
    else:
        server.versions_take = ENDLESS
    done = command("attach", name)
    assert done.returncode == 2
    assert told in done.stderr
    assert "the same command goes on from here" in done.stderr


# --- Ctrl-C -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waits", "told"),
    [
        ("waiting until Lambda has applied it", "interrupted: the change is made, and Lambda goes on applying it"),
        (
            f"waiting until version {LATEST_PUBLISHED}",
            f"the change is made, and Lambda goes on making version {LATEST_PUBLISHED}",
        ),
    ],
)
def test_ctrl_c_says_what_is_done_and_what_goes_on(server: LambdaServer, tmp_path: Path, waits: str, told: str) -> None:
    server.layer()
    name = server.function(managed=True)
    server.reset()
    if "applied" in waits:
        server.updates_take = ENDLESS
    else:
        server.versions_take = ENDLESS
    command = [sys.executable, "-m", "perinvoke", "layer", "attach", name, "--yes"]
    with subprocess.Popen(
        command, env=variables(server, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if line.startswith(waits):
                process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, seen
    assert told in seen
    assert "Traceback" not in seen
    assert is_attached(server, name)
