"""The databases that the tests start for themselves: they behave as said, and leave nothing."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from databases import PeakWatch, Postgres
from processes import wait_until
from server_process import processes_in

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def restarted() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def connect(server: Postgres, **options: object) -> psycopg.Connection:
    keywords = {"host": "127.0.0.1", "port": server.port, "user": server.user, "dbname": "postgres", "password": server.password}
    return psycopg.connect(**{**keywords, **options})  # type: ignore[arg-type]


def test_a_wrong_password_is_refused_over_tcp_and_none_is_asked_for_on_the_socket(postgres):
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(postgres, password="wrong")
    with connect(postgres, host=postgres.socket_directory, password="") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_peak_is_seen_and_the_watch_itself_isnt(restarted):
    with PeakWatch(restarted) as watch:
        for _ in range(2):
            with connect(restarted), connect(restarted):
                assert restarted.connection_count() == 2
                wait_until(lambda: watch.peak)
            wait_until(lambda: restarted.connection_count() == 0)
            restarted.restart()
    assert watch.peak == 2
    assert watch.samples > 10


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_ends_the_connections_and_keeps_port_and_data(mode, restarted):
    restarted.execute(f"CREATE TABLE kept_{mode} AS SELECT 1 AS value")
    restarted.execute("CHECKPOINT")
    with connect(restarted) as connection:
        restarted.restart(mode)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with connect(restarted) as connection:
        assert connection.execute(f"SELECT value FROM kept_{mode}").fetchone() == (1,)


def test_a_paused_server_doesnt_answer_until_it_is_resumed(restarted):
    restarted.pause()
    with socket.create_connection(("127.0.0.1", restarted.port), timeout=5) as client:
        client.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")  # SSLRequest
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        restarted.resume()
        client.settimeout(10)
        assert client.recv(1) == b"N"


def test_nothing_is_left_of_a_closed_server():
    with Postgres() as server:
        assert list(processes_in(server.directory))
    assert not server.directory.exists()
    assert not list(processes_in(server.directory))


def test_nothing_is_left_of_a_server_whose_starter_is_killed():
    code = "from databases import *\nserver = Postgres()\nserver.start()\nprint(server.directory, flush=True)\ninput()"
    command = [sys.executable, "-c", f"import sys\nsys.path[:0] = {sys.path}\n{code}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        directory = Path(starter.stdout.readline().strip())
        assert list(processes_in(directory))
        starter.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while directory.exists():
        assert time.monotonic() < until, list(processes_in(directory))
        time.sleep(0.01)
    assert not list(processes_in(directory))


def test_mariadb_asks_for_its_password(mariadb):
    pymysql = pytest.importorskip("pymysql")
    keywords = {"host": "127.0.0.1", "port": mariadb.port, "user": mariadb.user, "database": "test"}
    with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
        pymysql.connect(**keywords, password="wrong")
    with pymysql.connect(**keywords, password=mariadb.password) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT VERSION()")
        assert "MariaDB" in cursor.fetchone()[0]
