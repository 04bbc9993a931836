from __future__ import annotations

import pytest

from perinvoke.runtime.command import Program, parse_command


@pytest.mark.parametrize(
    ("command", "flags", "name", "is_module", "arguments"),
    [
        ("python -m awslambdaric app.handler", (), "awslambdaric", True, ("app.handler",)),
        ("/var/lang/bin/python3.13 /var/runtime/bootstrap.py", (), "/var/runtime/bootstrap.py", False, ()),
        ("python3 -u -X importtime -Werror run.py -m x", ("-u", "-X", "importtime", "-Werror"), "run.py", False, ("-m", "x")),
        ("python -W error -mawslambdaric a.b", ("-W", "error"), "awslambdaric", True, ("a.b",)),
        ("python3.13 -Bum awslambdaric a.b", ("-Bu",), "awslambdaric", True, ("a.b",)),
        ("./venv/bin/python -I -m a.b c", ("-I",), "a.b", True, ("c",)),
        ("python -uXdev run.py", ("-uXdev",), "run.py", False, ()),
    ],
)
def test_the_program_of_a_python_command_is_found(command, flags, name, is_module, arguments):
    words = command.split()
    assert parse_command(words) == Program(words[0], flags, name, is_module=is_module, arguments=arguments)


@pytest.mark.parametrize(
    "command",
    [
        *("", "node app.js", "/lambda-entrypoint.sh app.handler", "pythonic -m x", "python", "python -", "python -c pass"),
        *("python -uc x", "python --version", "python -m", "python -X", "python -V"),
    ],
)
def test_what_is_no_program_of_python_is_none(command):
    assert parse_command(command.split()) is None
