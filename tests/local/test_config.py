from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from perinvoke.errors import HandlerError, LocalError
from perinvoke.local import LocalConfig
from perinvoke.local.variables import runtime_variables


@pytest.mark.parametrize(
    "handler",
    [
        "app.handler",
        "app/sub/mod.handler",
        "app.sub.mod.handler",
        "_a._b",
        "my-func.handler",
        "my-dir/app.handler",
        "1app.handler",
    ],
)
def test_handlers_are_named_as_lambda_names_them(handler: str) -> None:
    assert LocalConfig(handler=handler).handler == handler


@pytest.mark.parametrize(
    "handler", ["", "app", ".handler", "app.", "app handler", "a..b", "/app.handler", "../app.handler", "a b.c", "a.b\0", "a\n.b"]
)
def test_a_name_that_cannot_be_a_handler_is_refused(handler: str) -> None:
    with pytest.raises(HandlerError, match=r"module\.function") as caught:
        LocalConfig(handler=handler)
    assert caught.value.handler == handler


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"workers": 10_000}, "from 1 to 1024"),
        ({"workers": True}, "workers is True"),
        ({"timeout_seconds": 0}, "timeout is 0 seconds"),
        ({"timeout_seconds": -1}, "timeout is -1 seconds"),
        ({"timeout_seconds": math.nan}, "timeout is nan seconds"),
        ({"timeout_seconds": math.inf}, "up to 900"),
        ({"timeout_seconds": 900.1}, "up to 900"),
        ({"port": -1}, "port is -1"),
        ({"port": 65_536}, "from 0 to 65535"),
        ({"memory_mb": 1}, "memory is 1"),
        ({"function_name": "a b"}, "function name 'a b'"),
        ({"directory": Path("/proc/nonexistent")}, "does not exist"),
        ({"directory": Path("/etc/passwd")}, "is not a directory"),
        ({"env": {"": "x"}}, "environment variable ''"),
        ({"env": {"A": "\0"}}, "environment variable 'A'"),
        ({"env": {"_HANDLER": "x"}}, "_HANDLER is set by the runner"),
        ({"env": {"PERINVOKE_PRELOAD": "json"}, "preload": "handler"}, "PERINVOKE_PRELOAD is 'json'; give one of them"),
        ({"preload": "a\0b"}, "environment variable 'PERINVOKE_PRELOAD'"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LocalError, match=message):
        LocalConfig(handler="app.handler", **options)


def test_other_platforms_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(LocalError, match="needs Linux; this is darwin"):
        LocalConfig(handler="app.handler")


def variables(inherited: dict[str, str], **options: Any) -> dict[str, str]:
    config = LocalConfig(handler="app.handler", **options)
    return runtime_variables(config, inherited=inherited, api_address="127.0.0.1:1", log_socket="/s")


def test_the_functions_own_variables_win_over_the_platforms_and_the_callers() -> None:
    found = variables({"A": "caller", "AWS_EXECUTION_ENV": "caller"}, env={"A": "own", "AWS_LAMBDA_LOG_FORMAT": "Text"})
    assert (found["A"], found["AWS_LAMBDA_LOG_FORMAT"]) == ("own", "Text")
    assert found["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"


def test_pythonpath_is_left_alone_and_what_would_hide_the_code_is_not_inherited() -> None:
    found = variables({"PYTHONPATH": "/p", "PYTHONSAFEPATH": "1"})
    assert found["PYTHONPATH"] == "/p"
    assert "PYTHONSAFEPATH" not in found
    assert "PYTHONPATH" not in variables({})


def test_dummy_credentials_appear_only_where_nothing_says_where_others_are(tmp_path: Path) -> None:
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_CONFIG_FILE": "/nonexistent"}
    assert variables(nowhere)["AWS_ACCESS_KEY_ID"] == "local"
    assert variables({**nowhere, "AWS_ACCESS_KEY_ID": "mine"})["AWS_ACCESS_KEY_ID"] == "mine"
    assert "AWS_SESSION_TOKEN" not in variables({**nowhere, "AWS_ACCESS_KEY_ID": "mine"})
    assert "AWS_ACCESS_KEY_ID" not in variables(nowhere, env={"AWS_PROFILE": "p"})
    (tmp_path / "credentials").touch()
    assert "AWS_ACCESS_KEY_ID" not in variables({**nowhere, "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")})


def test_the_region_is_the_callers_or_a_default() -> None:
    assert variables({})["AWS_REGION"] == "us-east-1"
    assert variables({"AWS_DEFAULT_REGION": "eu-west-1"})["AWS_REGION"] == "eu-west-1"


def test_preload_implies_supervise_and_wins_over_the_callers_variable() -> None:
    assert not LocalConfig(handler="app.handler").supervise
    assert LocalConfig(handler="app.handler", preload="handler").supervise
    assert LocalConfig(handler="app.handler", preload="json", env={"PERINVOKE_PRELOAD": "json"}).supervise
    assert variables({"PERINVOKE_PRELOAD": "caller"}, preload="handler")["PERINVOKE_PRELOAD"] == "handler"
    assert variables({"PERINVOKE_PRELOAD": "caller"}, supervise=True)["PERINVOKE_PRELOAD"] == "caller"
