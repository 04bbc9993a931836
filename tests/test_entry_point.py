"""``Handler = perinvoke.handler.handler``: the route without a change to the function's code."""

from __future__ import annotations

import importlib
import sys

import pytest

from perinvoke import current, isolated
from perinvoke.errors import HandlerError, HandlerExited


@pytest.fixture
def entry(root, tmp_path, monkeypatch):
    """Ask for the entry point as the runtime does, in a fresh import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def load(name):
        monkeypatch.setenv("PERINVOKE_HANDLER", name)
        module = importlib.import_module("perinvoke.handler")
        vars(module).pop("handler", None)
        return module.handler

    yield load
    for name in set(sys.modules) - before:
        del sys.modules[name]
    vars(importlib.import_module("perinvoke.handler")).pop("handler", None)


def write(tmp_path, path, text):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


CODE = "import tempfile\ndef handler(event, context):\n    return [event, tempfile.gettempdir()]\n"


@pytest.mark.parametrize(
    ("path", "name"), [("plainapp.py", "plainapp.handler"), ("appfolder/sub/mod.py", "appfolder/sub/mod.handler")]
)
def test_the_named_handler_is_isolated(path, name, entry, tmp_path, root):
    write(tmp_path, path, CODE)
    event, tempdir = entry(name)(1, None)
    assert event == 1
    assert tempdir.startswith(str(root))


def test_one_that_is_decorated_already_is_not_wrapped_twice(entry, tmp_path):
    write(
        tmp_path,
        "decorated.py",
        "from perinvoke import isolated, current\n@isolated\ndef handler(event, context):\n    return current().parent\n",
    )
    assert entry("decorated.handler")({}, None) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must look like module.function"),
        ("nodot", "must look like module.function"),
        (".handler", "must look like module.function"),
        ("app.", "must look like module.function"),
        ("no_such_module.handler", "module 'no_such_module' can't be imported: No module named 'no_such_module'"),
        ("..relative.handler", "must look like module.function"),
        ("named.nothing", "module 'named' has no 'nothing'"),
        ("named.number", "'number' in module 'named' is of type int, which can't be called"),
        ("perinvoke.handler.handler", "that is perinvoke itself"),
    ],
)
def test_a_wrong_name_is_a_clear_error_at_init(name, message, entry, tmp_path):
    write(tmp_path, "named.py", "number = 3\n")
    with pytest.raises(HandlerError) as caught:
        entry(name)
    assert message in str(caught.value)
    assert "PERINVOKE_HANDLER" in str(caught.value)


def test_without_the_variable_the_error_says_what_to_set(entry, monkeypatch):
    module = importlib.import_module("perinvoke.handler")
    monkeypatch.delenv("PERINVOKE_HANDLER", raising=False)
    with pytest.raises(HandlerError, match="needs PERINVOKE_HANDLER"):
        _ = module.handler


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("raise ZeroDivisionError('at init')", ZeroDivisionError, "at init"),
        ("int('ten')", ValueError, "invalid literal"),
        ("import missing_dependency", ModuleNotFoundError, "missing_dependency"),
    ],
)
def test_what_the_module_raises_on_import_comes_through_unchanged(code, error, message, entry, tmp_path):
    write(tmp_path, "broken.py", code + "\n")
    with pytest.raises(error, match=message):
        entry("broken.handler")


def test_other_names_of_the_module_are_ordinary_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = importlib.import_module("perinvoke.handler").nothing


def test_what_ends_the_process_is_converted_on_this_route_too(entry, tmp_path):
    write(tmp_path, "exits.py", "import sys\ndef handler(event, context):\n    sys.exit(2)\n")
    with pytest.raises(HandlerExited):
        entry("exits.handler")({}, None)


def test_a_decorated_handler_may_call_current():
    assert isolated(lambda event, context: current().request_id)({}, None)


def test_an_attribute_error_of_the_module_is_not_taken_for_a_handler_that_is_missing(entry, tmp_path):
    """As it would be, where the runtime asks for ``perinvoke.handler``'s attribute."""
    write(tmp_path, "slips.py", "import os\nos.nothing_there\n")
    with pytest.raises(HandlerError, match=r"raised AttributeError: module 'os' .* 'nothing_there', at .*slips\.py:2$"):
        entry("slips.handler")
