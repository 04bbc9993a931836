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
    assert "does not know PERINVOKE_ROOTS; it knows PERINVOKE_HANDLER, PERINVOKE_MIN_FREE_BYTES, " in caplog.text


@pytest.mark.parametrize("value", ["", "-1", "0.5", "abc", "\u0661", "1e3", " 1"])
def test_a_margin_that_is_no_whole_number_is_an_error(value):
    with pytest.raises(SettingError, match="PERINVOKE_TIMEOUT_MARGIN_MS is .* whole number of milliseconds"):
        read_settings({"PERINVOKE_TIMEOUT_MARGIN_MS": value})


def test_the_margin_is_300_ms_unless_set():
    assert read_settings({}).timeout_margin_seconds == 0.3
    assert read_settings({"PERINVOKE_TIMEOUT_MARGIN_MS": "1500"}).timeout_margin_seconds == 1.5
