"""Where PgBouncer works, and how a worker finds it."""

from __future__ import annotations

import json
import os

import pytest

from perinvoke.environment.connections.pgbouncer import Facts, encode_facts, find, is_running, parse_facts, socket_directory
from perinvoke.errors import PgBouncerError, PgBouncerNotRunning, RootError
from perinvoke.pgbouncer.directory import Directory
from perinvoke.pgbouncer.identity import Identity

ME = Identity(os.geteuid(), os.getegid(), changes=False)
FACTS = Facts(
    name="orders",
    socket_directory="/x",
    database="d",
    user="u",
    pool_mode="transaction",
    prepared_statements=False,
    version="1.18.0",
    max_connections=4,
    resets=True,
)


def test_a_worker_finds_what_the_extension_has_noted(tmp_path):
    root = str(tmp_path / "root")
    with Directory(root, "orders", ME) as directory:
        directory.write("facts.json", encode_facts(FACTS))
        found = find(root, "orders")
        assert encode_facts(found) == encode_facts(FACTS)
        assert found.client_arguments() == {
            "host": f"{root}/pgbouncer/orders",
            "port": "6432",
            "dbname": "orders",
            "user": "perinvoke",
        }
    with pytest.raises(PgBouncerNotRunning):
        find(root, "orders")


def test_who_is_not_there_is_told_by_name_and_who_is(tmp_path):
    root = str(tmp_path / "root")
    with pytest.raises(
        PgBouncerNotRunning, match=r"no PgBouncer named 'orders' runs below .*root\. The extension perinvoke-pgbouncer"
    ):
        find(root, "orders")
    with (
        Directory(root, "orders", ME),
        pytest.raises(PgBouncerNotRunning, match=r"named 'other' runs below .*\. There is orders\."),
    ):
        find(root, "other")


def test_looking_at_one_that_is_gone_takes_nothing_from_anybody(tmp_path):
    root = str(tmp_path / "root")
    Directory(root, "orders", ME).close()
    assert not is_running(root, "orders")
    with Directory(root, "orders", ME):
        assert is_running(root, "orders")


def test_a_second_one_of_the_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("perinvoke.pgbouncer.directory._PREDECESSOR_SECONDS", 0.05)
    root = str(tmp_path / "root")
    with Directory(root, "orders", ME), pytest.raises(PgBouncerError, match="a PgBouncer named 'orders' runs below"):
        Directory(root, "orders", ME)


def test_what_a_predecessor_left_is_gone(tmp_path):
    folder = tmp_path / "root" / "pgbouncer" / "orders"
    folder.mkdir(parents=True, mode=0o755)
    tmp_path.joinpath("root").chmod(0o700)
    (folder / "users.txt").symlink_to(tmp_path / "elsewhere")
    (folder / ".s.PGSQL.6432").touch()
    with Directory(str(tmp_path / "root"), "orders", ME) as directory:
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
        directory.write("users.txt", "secret")
        assert (folder / "users.txt").lstat().st_mode == 0o100600
    assert not (tmp_path / "elsewhere").exists()
    assert not folder.exists()


@pytest.mark.parametrize("part", ["pgbouncer", "pgbouncer/orders"])
def test_no_symlink_is_followed(tmp_path, part):
    root = tmp_path / "root"
    (root / part).parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    root.chmod(0o700)
    (tmp_path / "elsewhere").mkdir()
    (root / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RootError, match="is not a directory, or a symbolic link"):
        Directory(str(root), "orders", ME)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_directory_that_others_may_write_to_is_refused(tmp_path):
    root = tmp_path / "root"
    (root / "pgbouncer").mkdir(parents=True)
    root.chmod(0o700)
    (root / "pgbouncer").chmod(0o777)
    with pytest.raises(RootError, match="or others may write to it"):
        Directory(str(root), "orders", ME)


def test_a_path_that_is_too_long_for_a_socket_is_told(tmp_path):
    root = f"{tmp_path}/{'x' * 100}"
    for use in (lambda: socket_directory(root, "orders"), lambda: Directory(root, "orders", ME), lambda: find(root, "orders")):
        with pytest.raises(PgBouncerError, match="Linux allows 107. Set PERINVOKE_ROOT to a shorter one"):
            use()


@pytest.mark.parametrize(
    "text", ["", "[]", "nonsense", "{}", json.dumps({**json.loads(encode_facts(FACTS)), "max_connections": "4"})]
)
def test_a_note_that_is_none(tmp_path, text):
    assert parse_facts(text, "orders", "/x") is None
    root = str(tmp_path / "root")
    with Directory(root, "orders", ME) as directory:
        directory.write("facts.json", text)
        with pytest.raises(PgBouncerError, match="isn't what perinvoke-pgbouncer writes"):
            find(root, "orders")


def test_a_note_of_a_later_version_is_read():
    assert parse_facts(json.dumps({**json.loads(encode_facts(FACTS)), "new": 1}), "orders", "/x") is not None
