"""``perinvoke layer publish`` when answers are lost, regions fail, others publish too, or somebody presses Ctrl-C."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from aws_server import AwsServer, answer
from perinvoke.layer.publish import publication
from processes import wait_until
from publishing import PUBLISH, REGIONS, Done, LayerServer, Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lambda_server import Asked

FIRST, SECOND, THIRD = REGIONS
ACCOUNT = "210987654321"
LAST = "the same command finishes the rest."
READY_SECONDS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


@pytest.fixture
def publisher(
    server: LayerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Publisher]:
    made = Publisher(server, tmp_path, monkeypatch, capsys)
    made.prepare()
    yield made
    server.before = lambda asked: None


def first_times(count: int, operation: str, fault: str) -> Callable[[Asked], str | None]:
    turns = itertools.count()
    return lambda asked: fault if asked.operation == operation and next(turns) < count else None


@pytest.mark.parametrize(
    ("fault", "count", "looks"),
    [
        ("lost", 1, True),
        ("dropped", 2, True),
        ("ServiceException", 2, True),
        ("TooManyRequestsException", 3, False),  # then it certainly wasn't made
    ],
)
def test_what_fails_for_a_while_is_published_once(publisher: Publisher, fault: str, count: int, looks: bool) -> None:  # noqa: FBT001
    layer = publisher.zip()
    publisher.server.faults = first_times(count, PUBLISH, fault)
    done = publisher.run(regions=FIRST)
    assert done.returncode == 0, done.stdout
    assert done.results() == {FIRST: "published"}
    assert [each["Version"] for each in publisher.versions(layer)] == [1]
    asked = publisher.server.operations()
    assert asked.count(PUBLISH) == (1 if fault == "lost" else count + 1)
    assert asked.count("ListLayerVersions") == (count + 1 if looks else 1)


def test_throttling_of_all_that_is_asked_is_borne(publisher: Publisher) -> None:
    layer = publisher.zip()
    turns = itertools.count()
    publisher.server.faults = lambda asked: "TooManyRequestsException" if next(turns) % 2 == 0 else None
    done = publisher.run("--account", ACCOUNT, regions=FIRST)
    assert done.returncode == 0, done.stdout
    assert [each["Version"] for each in publisher.versions(layer)] == [1]
    assert len(publisher.policy(layer)) == 1


def test_throttling_without_end_is_told_after_some_attempts(publisher: Publisher) -> None:
    publisher.zip()
    publisher.server.faults = first_times(99, PUBLISH, "TooManyRequestsException")
    done = publisher.run(regions=FIRST)
    assert done.returncode == 1
    assert "lambda:PublishLayerVersion on layer" in done.stdout
    assert "TooManyRequestsException, told so. Try again later." in done.stdout
    assert "isn't known" not in done.stdout
    assert publisher.writes() == [PUBLISH] * publication.ATTEMPTS


def test_an_answer_that_is_lost_before_the_network_fails_is_found_by_the_next_run(publisher: Publisher) -> None:
    def fails(asked: Asked) -> str | None:
        if asked.operation == PUBLISH:
            down.set()
            return "lost"
        return "dropped" if down.is_set() else None

    layer, down = publisher.zip(), threading.Event()
    publisher.server.faults = fails
    done = publisher.run(regions=FIRST)
    assert done.returncode == 1
    assert publisher.writes() == [PUBLISH]
    assert "Whether a version was made isn't known; the same command looks for it first." in done.stdout
    publisher.server.reset()
    assert publisher.run(regions=FIRST).results() == {FIRST: "there already"}
    assert [each["Version"] for each in publisher.versions(layer)] == [1]


def test_a_network_failure_half_way_is_finished_by_the_same_command(publisher: Publisher) -> None:
    layers = [publisher.zip(), publisher.zip("dist/perinvoke-1.zip")]
    publisher.server.faults = lambda asked: (
        "dropped" if asked.region == THIRD or (asked.region == SECOND and asked.name == layers[1]) else None
    )
    done = publisher.run()
    assert done.returncode == 1
    found = {(region, layer): result for region, layer, result, _ in done.rows()}
    failed = {(THIRD, layers[0]), (THIRD, layers[1]), (SECOND, layers[1])}
    assert {each for each, result in found.items() if result == "failed"} == failed
    assert {result for each, result in found.items() if each not in failed} == {"published"}
    assert "Connection was closed before we received a valid response" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("3 of 6 failed")
    assert done.stderr.splitlines()[-1].endswith(LAST)

    publisher.server.reset()
    again = publisher.run()
    assert again.returncode == 0, again.stdout
    assert {(region, layer) for region, layer, result, _ in again.rows() if result == "published"} == failed
    assert {(each.region, each.name) for each in publisher.server.asked if each.operation == PUBLISH} == failed
    for region, layer in itertools.product(REGIONS, layers):
        assert [each["Version"] for each in publisher.versions(layer, region)] == [1]


@pytest.mark.parametrize("operation", ["ListLayerVersions", PUBLISH, "AddLayerVersionPermission"])
def test_what_is_denied_in_one_region_is_told_and_the_others_go_on(publisher: Publisher, operation: str) -> None:
    layer = publisher.zip()
    publisher.server.faults = lambda asked: (
        "AccessDeniedException" if (asked.region, asked.operation) == (SECOND, operation) else None
    )
    done = publisher.run("--account", ACCOUNT)
    assert done.returncode == 1
    assert done.results() == {FIRST: "published", SECOND: "failed", THIRD: "published"}
    (told,) = [row[3] for row in done.rows() if row[0] == SECOND]
    assert f"your credentials don't allow lambda:{operation} on layer {layer!r}" in told
    assert f"in {SECOND} (told so). Have it allowed, or give --profile." in told
    publisher.server.reset()
    assert publisher.run("--account", ACCOUNT).returncode == 0
    for region in REGIONS:
        assert len(publisher.versions(layer, region)) == 1
        assert len(publisher.policy(layer, region)) == 1


def test_a_version_whose_permission_fails_is_shown_all_the_same(publisher: Publisher) -> None:
    layer = publisher.zip()
    publisher.server.faults = lambda asked: "ServiceException" if asked.operation == "AddLayerVersionPermission" else None
    done = publisher.run("--account", ACCOUNT, regions=FIRST)
    ((_, _, result, told),) = done.rows()
    assert (done.returncode, result) == (1, "failed")
    assert told.startswith(f"arn:aws:lambda:{FIRST}:123456789012:layer:{layer}:1: published, but ")


def test_a_permission_whose_answer_is_lost_is_fine(publisher: Publisher) -> None:
    layer = publisher.zip()
    publisher.server.faults = first_times(1, "AddLayerVersionPermission", "lost")
    assert publisher.run("--account", ACCOUNT, regions=FIRST).results() == {FIRST: "published"}
    assert len(publisher.policy(layer)) == 1


def test_credentials_that_are_over_are_told_once(publisher: Publisher) -> None:
    publisher.zip()
    publisher.server.faults = lambda asked: "ExpiredTokenException"
    done = publisher.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "ExpiredTokenException, told so. Log in again (aws login, aws sso login), or give --profile." in done.stderr


KEYS = "aws_access_key_id = test\naws_secret_access_key = test\n"
ROLE = f"role_arn = arn:aws:iam::{ACCOUNT}:role/publisher\nsource_profile = keys\n"
_NOT_ASSUMED = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>it isn't yours</Message></Error></ErrorResponse>"


def with_profile(publisher: Publisher, profile: str) -> str:
    """The file with that profile, ``me``, and one that has keys; none has a region."""
    publisher.zip()
    path = publisher.directory / "config"
    path.write_text(f"[profile keys]\n{KEYS}[profile me]\n{profile}")
    return str(path)


def test_a_role_is_assumed_once_for_all_regions(publisher: Publisher) -> None:
    done = publisher.run("--profile", "me", AWS_CONFIG_FILE=with_profile(publisher, ROLE), AWS_DEFAULT_REGION=None)
    assert done.results() == dict.fromkeys(REGIONS, "published"), done.stderr
    assert publisher.server.operations().count("sts POST") == 1


def test_a_role_that_may_not_be_assumed_is_told_as_what_it_is(publisher: Publisher) -> None:
    config = with_profile(publisher, ROLE)
    with AwsServer(lambda _: answer(_NOT_ASSUMED, "403 Forbidden")) as sts:
        done = publisher.run("--profile", "me", AWS_CONFIG_FILE=config, AWS_ENDPOINT_URL_STS=sts.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "perinvoke: the credentials can't be had: AssumeRole, it isn't yours\n"
    assert publisher.server.operations() == []


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("credential_process = /nowhere/keys\n", "the credentials of profile 'me' can't be read: /nowhere/keys: No such file"),
        ("credential_process = echo keys\n", "the credentials of profile 'me' can't be read: "),
    ],
)
def test_credentials_that_cannot_be_read_are_told(publisher: Publisher, profile: str, told: str) -> None:
    done = publisher.run("--profile", "me", AWS_CONFIG_FILE=with_profile(publisher, profile))
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    look = publisher.run("--profile", "me", "--dry-run", AWS_CONFIG_FILE=with_profile(publisher, profile))
    assert look.returncode == 0
    assert f"couldn't look: {told}" in look.stderr


def test_a_code_that_nobody_can_type_is_told(publisher: Publisher) -> None:
    config = with_profile(publisher, f"{ROLE}mfa_serial = arn:aws:iam::{ACCOUNT}:mfa/me\n")
    done = subprocess.run(
        publisher.command("--profile", "me"),
        cwd=publisher.directory,
        env=publisher.variables() | {"AWS_CONFIG_FILE": config},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # without a terminal, at which it would ask all the same
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "perinvoke: the profile 'me' asks for an MFA code, and nobody can type one here: stdin is no terminal." in done.stderr


def test_a_region_that_is_not_enabled_is_told(publisher: Publisher) -> None:
    publisher.zip()
    publisher.server.faults = lambda asked: "UnrecognizedClientException" if asked.region == SECOND else None
    done = publisher.run()
    assert done.results() == {FIRST: "published", SECOND: "failed", THIRD: "published"}
    assert "If they are good elsewhere, have the region enabled for the account." in done.stdout


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_who_answers_is_told_with_what_to_check(publisher: Publisher) -> None:
    publisher.zip()
    url = f"http://127.0.0.1:{closed_port()}"
    done = publisher.run("--endpoint-url", url, regions=FIRST)
    assert done.returncode == 1
    assert "Check the network, --region and --endpoint-url." in done.stdout
    assert "doesn't know it" not in done.stdout
    unknown = publisher.run(regions="eu-west-9", AWS_ENDPOINT_URL=url)
    assert "Is eu-west-9 a region's name? The installed botocore doesn't know it." in unknown.stdout
    look = publisher.run("--dry-run", "--endpoint-url", url, regions=FIRST)
    assert (look.returncode, look.results()) == (0, {FIRST: "would be published"})
    assert "couldn't look: lambda:ListLayerVersions on layer" in look.stderr


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (answer(b"<html>welcome</html>"), "there was an answer, but none of AWS: it has no LayerVersions. Check the network"),
        (answer(b"x" * 5000, "404 Not Found"), "404, xxx"),
        (answer(b"<html>", "502 Bad Gateway"), "502, Bad Gateway. Try again later."),
    ],
)
def test_a_server_that_is_not_aws_is_told(publisher: Publisher, reply: bytes, message: str) -> None:
    publisher.zip()
    with AwsServer(lambda line: reply) as stranger:
        done = publisher.run("--endpoint-url", stranger.url, regions=FIRST)
    assert done.returncode == 1
    assert message in done.stdout
    assert len(done.stdout) < 1500


@pytest.mark.parametrize(("fault", "result"), [("TooManyRequestsException", "not published"), ("ServiceException", "not known")])
def test_ctrl_c_ends_a_pause(publisher: Publisher, monkeypatch: pytest.MonkeyPatch, fault: str, result: str) -> None:
    def press(asked: Asked) -> str | None:
        if asked.operation != PUBLISH:
            return None
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return fault

    publisher.zip()
    publisher.server.faults = press
    monkeypatch.setattr(publication, "_BASE_SECONDS", 1e6)
    monkeypatch.setattr(publication, "_LONGEST_SECONDS", 1e6)
    done = publisher.run(regions=FIRST)
    assert (done.returncode, done.results()) == (130, {FIRST: result})


@pytest.mark.parametrize("package", ["boto3", "rich"])
def test_without_a_package_it_says_what_to_install(publisher: Publisher, package: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; from perinvoke.cli import main; sys.exit(main(['layer', 'publish']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"needs {package}" in done.stderr
    assert done.stderr.endswith("which isn't installed: pip install 'perinvoke[layer]'\n")


def test_a_zip_that_is_built_anew_meanwhile_is_not_published(publisher: Publisher) -> None:
    layer = publisher.zip()
    publisher.server.before = lambda asked: publisher.zip(name=layer, content="new")
    done = publisher.run(regions=FIRST)
    assert done.returncode == 1
    assert "dist/perinvoke-0.zip has changed since it was looked at" in done.stdout
    assert publisher.writes() == []


def test_two_who_publish_at_once_may_make_two_versions_and_find_the_newer_one_later(publisher: Publisher) -> None:
    def quicker(asked: Asked) -> None:
        if asked.operation == PUBLISH and next(turns) == 0:
            other = publisher.server.client()
            other.publish_layer_version(
                LayerName=layer,
                Content={"ZipFile": content},
                **{member: asked.body[member] for member in ("Description", "CompatibleRuntimes", "CompatibleArchitectures")},
            )

    layer, turns = publisher.zip(), itertools.count()
    content = (publisher.directory / "dist/perinvoke-0.zip").read_bytes()
    publisher.server.before = quicker
    assert publisher.run(regions=FIRST).rows()[0][2:] == ["published", f"arn:aws:lambda:{FIRST}:123456789012:layer:{layer}:2"]
    assert publisher.run(regions=FIRST).rows()[0][2:] == ["there already", f"arn:aws:lambda:{FIRST}:123456789012:layer:{layer}:2"]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_tells_what_was_done_and_what_was_not(publisher: Publisher, times: int) -> None:
    layers = [publisher.zip(f"dist/perinvoke-{number}.zip") for number in range(5)]
    reached, answered = threading.Semaphore(0), threading.Event()

    def slow(asked: Asked) -> None:
        if asked.operation == PUBLISH and asked.region != FIRST:
            reached.release()
            answered.wait(60)

    publisher.server.before = slow
    options = {"env": publisher.variables(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(publisher.command(), cwd=publisher.directory, **options) as publishing:  # type: ignore[call-overload]
        for _ in range(8):  # each of its threads
            assert reached.acquire(timeout=READY_SECONDS)
        os.kill(publishing.pid, signal.SIGINT)
        assert publishing.stderr is not None
        while "Ctrl-C again: at once." not in publishing.stderr.readline():
            assert publishing.poll() is None
        if times == 1:
            answered.set()
        else:
            os.kill(publishing.pid, signal.SIGINT)
        output, errors = publishing.communicate(timeout=READY_SECONDS)
        answered.set()
    done = Done(publishing.returncode, output, errors)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted; the same command does the rest, and finds what was made."
    assert "Traceback" not in done.stderr
    found = {(region, layer): result for region, layer, result, _ in done.rows()}
    for layer in layers[:4]:
        assert found.pop((FIRST, layer)) == "published"
        for region in (SECOND, THIRD):
            assert found.pop((region, layer)) == ("published" if times == 1 else "not known")
    assert found == {(region, layers[4]): "not published" for region in REGIONS}

    publisher.server.before = lambda asked: None
    wait_until(lambda: all(publisher.versions(layer, region) for layer in layers[:4] for region in REGIONS), READY_SECONDS)
    again = publisher.run()
    assert again.returncode == 0
    assert {layer for _, layer, result, _ in again.rows() if result == "published"} == {layers[4]}


def test_on_a_terminal_there_is_a_bar_and_without_colour_if_so_wanted(publisher: Publisher) -> None:
    publisher.zip()
    controlling, terminal = os.openpty()
    variables = publisher.variables() | {"TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(
        publisher.command(), cwd=publisher.directory, env=variables, stdout=subprocess.PIPE, stderr=terminal, text=True
    ) as publishing:
        os.close(terminal)
        output = publishing.communicate(timeout=READY_SECONDS)[0]
    shown = b""
    try:
        while part := os.read(controlling, 65_536):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(controlling)
    assert publishing.returncode == 0
    assert b"3/3" in shown
    assert b"\x1b[3" not in shown
    assert Done(0, output, "").results() == dict.fromkeys(REGIONS, "published")
