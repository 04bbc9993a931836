from __future__ import annotations

import asyncio
import base64
import http.client
import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from environments import event, local, run
from perinvoke.local.invoke_api import ACCOUNT, function_arn
from perinvoke.local.outcome import MAX_ASYNC_REQUEST_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES
from processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from perinvoke.local import LocalEnvironment


def client(environment: LocalEnvironment) -> Any:
    return boto3.client(
        "lambda",
        endpoint_url=environment.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=20, proxies={}),
    )


def call(handler: str, use: Callable[[Any, LocalEnvironment], Any], **options: Any) -> Any:
    """Run ``use`` with a boto3 client in a thread, beside the environment."""

    async def scenario() -> Any:
        async with local(handler, **options) as environment:
            lambda_client = await asyncio.to_thread(client, environment)
            try:
                return await asyncio.to_thread(use, lambda_client, environment)
            finally:
                lambda_client.close()

    return run(scenario())


def test_boto3_invokes_and_gets_the_answer() -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        context = base64.b64encode(b'{"custom": {"k": "v"}}').decode()
        response = boto.invoke(FunctionName="anything", Payload=b'{"a": 1}', ClientContext=context, TenantId="tenant")
        answer = json.loads(response["Payload"].read())
        assert (response["StatusCode"], response["ExecutedVersion"]) == (200, "$LATEST")
        assert "FunctionError" not in response
        assert answer["event"] == {"a": 1}
        assert answer["custom"] == {"k": "v"}
        assert answer["tenant_id"] == "tenant"
        assert answer["request_id"] == response["ResponseMetadata"]["RequestId"]

    call("app.echo", use)


def test_no_payload_is_an_empty_object() -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        assert json.loads(boto.invoke(FunctionName="f")["Payload"].read())["event"] == {}

    call("app.echo", use)


def test_a_function_error_is_marked_and_the_tail_of_the_log_comes_along() -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        response = boto.invoke(FunctionName="f", LogType="Tail", Payload=b'{"message": "no luck"}')
        assert (response["StatusCode"], response["FunctionError"]) == (200, "Unhandled")
        error = json.loads(response["Payload"].read())
        assert (error["errorType"], error["errorMessage"]) == ("ValueError", "no luck")
        assert "no luck" in base64.b64decode(response["LogResult"]).decode()

    call("app.fail", use)


def test_a_time_out_is_a_function_error(tmp_path: Path) -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        response = boto.invoke(FunctionName="f", Payload=event(folder=str(tmp_path), seconds=2, name="nap"))
        assert response["FunctionError"] == "Unhandled"
        assert json.loads(response["Payload"].read())["errorType"] == "Sandbox.Timedout"

    call("app.nap", use, timeout_seconds=0.1, workers=1)


def test_the_caller_is_throttled_when_all_workers_are_busy(tmp_path: Path) -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        boto.invoke(FunctionName="f", InvocationType="Event", Payload=event(folder=str(tmp_path), seconds=3))
        wait_until((tmp_path / "nap.began").exists)
        with pytest.raises(boto.exceptions.TooManyRequestsException) as caught:
            boto.invoke(FunctionName="f")
        assert caught.value.response["Reason"] == "ConcurrentInvocationLimitExceeded"
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429

    call("app.nap", use, workers=1)


def test_an_event_invocation_is_accepted_at_once_and_runs_even_after_waiting(tmp_path: Path) -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        for name in ("a", "b"):
            payload = event(folder=str(tmp_path), seconds=0.05, name=name)
            response = boto.invoke(FunctionName="f", InvocationType="Event", Payload=payload)
            assert response["StatusCode"] == 202
        wait_until((tmp_path / "b.done").exists)

    call("app.nap", use, workers=1)


def test_a_dry_run_runs_nothing() -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        assert boto.invoke(FunctionName="f", InvocationType="DryRun")["StatusCode"] == 204

    call("app.die", use, workers=1)


def test_names_arns_and_qualifiers_all_stand_for_the_function() -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        arn = "arn:aws:lambda:eu-west-1:999999999999:function:orders"
        for name, qualifier, expected in (
            ("orders", None, "arn:aws:lambda:us-east-1:123456789012:function:orders"),
            ("orders:7", None, "arn:aws:lambda:us-east-1:123456789012:function:orders:7"),
            ("orders", "live", "arn:aws:lambda:us-east-1:123456789012:function:orders:live"),
            (arn, None, arn),
            (arn, "$LATEST", f"{arn}:$LATEST"),
        ):
            options = {"Qualifier": qualifier} if qualifier else {}
            answer = json.loads(boto.invoke(FunctionName=name, **options)["Payload"].read())
            assert answer["arn"] == expected

    call("app.echo", use, env={"AWS_REGION": "us-east-1"})


def test_a_partial_arn_is_completed() -> None:
    assert function_arn("111:function:f", None, "eu-west-1") == "arn:aws:lambda:eu-west-1:111:function:f"
    assert function_arn("function:f", "live", "eu-west-1") == f"arn:aws:lambda:eu-west-1:{ACCOUNT}:function:f:live"
    assert function_arn("my-function:7", None, "eu-west-1") == f"arn:aws:lambda:eu-west-1:{ACCOUNT}:function:my-function:7"


def test_what_lambda_refuses_is_refused_alike() -> None:
    def refused(boto: Any, **arguments: Any) -> tuple[str, int]:
        with pytest.raises(ClientError) as caught:
            boto.invoke(FunctionName="f", **arguments)
        return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]

    def use(boto: Any, _: LocalEnvironment) -> None:
        assert refused(boto, Payload=b"{not json") == ("InvalidRequestContentException", 400)
        assert refused(boto, Payload=b"\xff\xfe{") == ("InvalidRequestContentException", 400)
        assert refused(boto, Payload="{}".encode("utf-16")) == ("InvalidRequestContentException", 400)
        assert refused(boto, Payload=b"[NaN]") == ("InvalidRequestContentException", 400)
        assert refused(boto, Payload=b"9" * 5_000) == ("InvalidRequestContentException", 400)
        assert refused(boto, LogType="Some") == ("InvalidParameterValueException", 400)
        for context in (b"[]", b'"text"', b"1", b"null", b'{"a": NaN}', b"[" * 6_000, b"\xff"):
            context_header = base64.b64encode(context).decode()
            assert refused(boto, ClientContext=context_header) == ("InvalidRequestContentException", 400)
        assert refused(boto, ClientContext="%%%") == ("InvalidRequestContentException", 400)
        assert refused(boto, Payload=b" " * (MAX_REQUEST_BYTES + 1)) == ("RequestTooLargeException", 413)
        large = b" " * (MAX_ASYNC_REQUEST_BYTES + 1)
        assert refused(boto, Payload=large, InvocationType="Event") == ("RequestTooLargeException", 413)
        assert refused(boto, InvocationType="Sometimes") == ("InvalidParameterValueException", 400)
        assert boto.invoke(FunctionName="f", Payload=b"{}")["StatusCode"] == 200

    call("app.echo", use)


def test_a_response_over_the_limit_is_a_function_error_and_the_largest_allowed_one_is_not() -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        response = boto.invoke(FunctionName="f", Payload=event(bytes=MAX_RESPONSE_BYTES + 1))
        assert json.loads(response["Payload"].read())["errorType"] == "Function.ResponseSizeTooLarge"
        response = boto.invoke(FunctionName="f", Payload=event(bytes=MAX_RESPONSE_BYTES))
        assert len(response["Payload"].read()) == MAX_RESPONSE_BYTES

    call("app.large", use, workers=1)


def test_other_paths_and_methods_are_not_found_and_a_caller_that_waits_for_leave_gets_it() -> None:
    def use(_: Any, environment: LocalEnvironment) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", environment.port, timeout=10)
        for method, path in (("GET", "/"), ("POST", "/2015-03-31/functions"), ("GET", "/2018-06-01/runtime/other")):
            connection.request(method, path)
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (404, True)
        connection.request("POST", "/2015-03-31/functions/f/invocations", b'{"a": 1}', {"Expect": "100-continue"})
        response = connection.getresponse()
        assert json.loads(response.read())["event"] == {"a": 1}
        connection.close()

    call("app.echo", use, workers=1)


def test_the_runtime_api_refuses_unknown_ids_and_a_second_init_error() -> None:
    def use(_: Any, environment: LocalEnvironment) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", environment.port, timeout=10)
        for path, status in (
            ("invocation/nobody/response", 400),
            ("invocation/nobody/error", 400),
            ("init/error", 202),
            ("init/error", 403),
        ):
            connection.request("POST", f"/2018-06-01/runtime/{path}", b"{}")
            response = connection.getresponse()
            response.read()
            assert (path, response.status) == (path, status)
        connection.close()

    call("app.echo", use, workers=1)


def test_the_end_of_the_runtime_is_a_function_error_for_what_it_ran_and_unavailable_after_that() -> None:
    def use(boto: Any, _: LocalEnvironment) -> None:
        response = boto.invoke(FunctionName="f")
        assert (response["StatusCode"], response["FunctionError"]) == (200, "Unhandled")
        assert json.loads(response["Payload"].read())["errorType"] == "Runtime.ExitError"
        with pytest.raises(ClientError) as caught:
            boto.invoke(FunctionName="f")
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 502

    call("app.die", use, workers=1, timeout_seconds=20)


def test_a_caller_that_hangs_up_does_not_disturb_the_worker(tmp_path: Path) -> None:
    def use(boto: Any, environment: LocalEnvironment) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", environment.port, timeout=10)
        payload = event(folder=str(tmp_path), seconds=0.2)
        connection.request("POST", "/2015-03-31/functions/f/invocations", payload)
        wait_until((tmp_path / "nap.began").exists)
        connection.close()
        wait_until((tmp_path / "nap.done").exists)
        payload = event(folder=str(tmp_path), seconds=0, name="next")
        response = boto.invoke(FunctionName="f", Payload=payload)
        assert json.loads(response["Payload"].read()) == "rested"

    call("app.nap", use, workers=1, queue=True)
