from __future__ import annotations

import subprocess
import sys

import pytest

from perinvoke.errors import PgBouncerError
from perinvoke.pgbouncer.binary import child_variables, find_binary


def script(tmp_path, text, mode=0o755):
    path = tmp_path / "pgbouncer"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return str(path)


def test_the_real_one_tells_its_version(pgbouncer):
    binary = find_binary(pgbouncer)
    assert binary.numbers >= (1, 16)
    assert binary.version.startswith("{}.{}".format(*binary.numbers))


def test_it_is_looked_for_in_the_path_first(tmp_path):
    script(tmp_path, "echo PgBouncer 1.99.5rc1")
    found = find_binary(None, {"PATH": f"relative:/nowhere:{tmp_path}"})
    assert (found.path, found.version, found.numbers) == (f"{tmp_path}/pgbouncer", "1.99.5rc1", (1, 99))


@pytest.mark.parametrize(("version", "prepares"), [("1.18.0", False), ("1.20.1", False), ("1.21.0", True), ("2.0.0", True)])
def test_prepared_statements_work_from_1_21_on(tmp_path, version, prepares):
    assert find_binary(script(tmp_path, f"echo PgBouncer {version}")).prepares_statements is prepares


def test_where_there_is_none_it_is_told_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr("perinvoke.pgbouncer.binary._FOLDERS", ("/opt/nowhere",))
    with pytest.raises(PgBouncerError, match=r"there is no pgbouncer.*apt-get install pgbouncer.*PERINVOKE_PGBOUNCER_PATH"):
        find_binary(None, {"PATH": str(tmp_path)})


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("echo PgBouncer 1.18.0", 0o644, "is not executable. Run: chmod"),
        ("echo PgBouncer 1.15.0", 0o755, "is PgBouncer 1.15.0, and 1.16 is the oldest that can be used"),
        ("echo psql 18", 0o755, "is no PgBouncer, or one that lacks a library.*it said 'psql 18'"),
        ("echo error while loading shared libraries >&2; exit 127", 0o755, "it said 'error while loading shared libraries'"),
    ],
)
def test_one_that_cannot_be_used(tmp_path, text, mode, told):
    with pytest.raises(PgBouncerError, match=told):
        find_binary(script(tmp_path, text, mode))


def test_one_that_is_not_there_or_built_for_another_machine(tmp_path):
    with pytest.raises(PgBouncerError, match="is not there"):
        find_binary(f"{tmp_path}/nowhere")
    with pytest.raises(PgBouncerError, match="is not a file"):
        find_binary(str(tmp_path))
    path = tmp_path / "pgbouncer"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(0o755)
    with pytest.raises(PgBouncerError, match="can't be run: .*Is it built for this machine"):
        find_binary(str(path))


def test_one_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("perinvoke.pgbouncer.binary._VERSION_SECONDS", 0.1)
    with pytest.raises(PgBouncerError, match="has not told its version within 0.1 s"):
        find_binary(script(tmp_path, "exec sleep 60"))


def test_pgbouncer_knows_no_passwords_from_the_environment():
    environ = {"PATH": "/bin", "TZ": "UTC", "PERINVOKE_PGBOUNCER_URL": "postgresql://u:p@h/d", "AWS_SECRET_ACCESS_KEY": "x"}
    assert child_variables(environ) == {"PATH": "/bin", "TZ": "UTC"}


def test_the_command_answers_what_it_is_and_takes_no_arguments():
    command = [sys.executable, "-m", "perinvoke.pgbouncer"]
    assert "perinvoke " in subprocess.check_output([*command, "--version"], text=True)
    assert "PERINVOKE_PGBOUNCER_URL" in subprocess.check_output([*command, "--help"], text=True)
    wrong = subprocess.run([*command, "start"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "takes no arguments, and was given start" in wrong.stderr) == (2, True)


def test_it_stays_small():
    loaded = "import perinvoke.pgbouncer.extension, sys; print(*sys.modules)"
    modules = set(subprocess.check_output([sys.executable, "-c", loaded], text=True).split())
    heavy = {
        "boto3",
        "asyncio",
        "http.client",
        "ssl",
        "dataclasses",
        "inspect",
        "importlib.metadata",
        "email",
        "argparse",
        "pathlib",
    }
    assert modules & heavy == set()
