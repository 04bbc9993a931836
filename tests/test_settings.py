from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perinvoke.errors import SettingError
from perinvoke.settings import read_settings, warn_of_unknown


def test_the_default_root_is_the_users_own_below_the_systems_temp_directory(tmp_path):
    assert read_settings({}).root == f"/tmp/perinvoke-{os.geteuid()}"
    assert read_settings({"TMPDIR": str(tmp_path)}).root == f"{tmp_path}/perinvoke-{os.geteuid()}"
    assert read_settings({"TMPDIR": "/does/not/exist"}).root == f"/tmp/perinvoke-{os.geteuid()}"


def test_variables_win_over_defaults():
    settings = read_settings(
        {"PERINVOKE_ROOT": "/var//x/", "PERINVOKE_HANDLER": "app.handler", "AWS_LAMBDA_CONCURRENCY_MODE": "thread"}
    )
    assert (settings.root, settings.handler, settings.shared_process) == ("/var/x", "app.handler", True)


@pytest.mark.parametrize(
    ("mode", "shared"), [("process", False), ("hybrid", True), ("THREAD", True), ("", False), ("new", False)]
)
def test_the_platforms_modes(mode, shared):
    assert read_settings({"AWS_LAMBDA_CONCURRENCY_MODE": mode}).shared_process is shared


def test_settings_are_frozen():
    with pytest.raises(AttributeError, match="frozen"):
        read_settings({}).root = "/x"


@given(st.text())
def test_any_root_is_either_an_absolute_path_or_an_error_that_says_what_is_allowed(value):
    try:
        root = read_settings({"PERINVOKE_ROOT": value}).root
    except SettingError as error:
        assert "PERINVOKE_ROOT" in str(error)
        assert "absolute path" in str(error)
        copy = pickle.loads(pickle.dumps(error))
        assert (copy.setting, copy.value, str(copy)) == ("PERINVOKE_ROOT", value, str(error))
    else:
        assert os.path.isabs(root)


def test_a_variable_nobody_knows_is_pointed_out(caplog):
    warn_of_unknown({"PERINVOKE_ROOTS": "/x", "PERINVOKE_ROOT": "/y"})
    assert "does not know PERINVOKE_ROOTS; it knows PERINVOKE_ATTACHED, PERINVOKE_CALLER_TIMEOUT_SECONDS, " in caplog.text


@pytest.mark.parametrize("value", ["", "-1", "0.5", "abc", "\u0661", "1e3", " 1"])
def test_a_margin_that_is_no_whole_number_is_an_error(value):
    with pytest.raises(SettingError, match="PERINVOKE_TIMEOUT_MARGIN_MS is .* whole number of milliseconds"):
        read_settings({"PERINVOKE_TIMEOUT_MARGIN_MS": value})


def test_the_margin_is_300_ms_unless_set():
    assert read_settings({}).timeout_margin_seconds == 0.3
    assert read_settings({"PERINVOKE_TIMEOUT_MARGIN_MS": "1500"}).timeout_margin_seconds == 1.5


@pytest.mark.parametrize("name", ["PERINVOKE_TIMEOUT_SECONDS", "PERINVOKE_CALLER_TIMEOUT_SECONDS"])
@pytest.mark.parametrize(
    "value", ["", "0", "0.0", "-1", "nan", "inf", "1e3", "1_0", " 1", "1.", ".5", "1.2.3", "86401", "9" * 400, "\u0661", "2s"]
)
def test_seconds_that_are_none_are_an_error(name, value):
    with pytest.raises(SettingError, match=f"{name} is .* number of seconds above 0, up to 86400, such as 29 or 2.5"):
        read_settings({name: value})


def test_time_outs_are_not_set_unless_they_are():
    settings = read_settings({})
    assert (settings.timeout_seconds, settings.caller_timeout_seconds, settings.on_timeout) == (None, None, "raise")
    settings = read_settings({"PERINVOKE_TIMEOUT_SECONDS": "2.5", "PERINVOKE_CALLER_TIMEOUT_SECONDS": "29"})
    assert (settings.timeout_seconds, settings.caller_timeout_seconds) == (2.5, 29)


@pytest.mark.parametrize("value", ["", "RAISE", "kill", "raise "])
def test_an_on_timeout_that_there_is_not_is_an_error(value):
    with pytest.raises(SettingError, match="PERINVOKE_ON_TIMEOUT is .*; allowed is one of raise, replace, report, off"):
        read_settings({"PERINVOKE_ON_TIMEOUT": value})
    with pytest.raises(SettingError, match="isolated's on_timeout is .*; allowed is one of raise, replace, report, off"):
        read_settings({}, on_timeout=value)


def test_an_argument_wins_over_its_variable():
    assert read_settings({"PERINVOKE_ON_TIMEOUT": "off"}, on_timeout="report").on_timeout == "report"
    assert read_settings({"PERINVOKE_ON_TIMEOUT": "off"}).on_timeout == "off"


@pytest.mark.parametrize(
    ("execution_env", "polls"),
    [("AWS_Lambda_python3.13", True), ("AWS_Lambda_python3.11", False), ("", False), ("AWS_Lambda_python3.x", False)],
)
def test_how_the_runtime_waits_for_the_next_invocation(execution_env, polls):
    assert read_settings({"AWS_EXECUTION_ENV": execution_env}).polls_in_helper_thread is polls
