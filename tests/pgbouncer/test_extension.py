"""The extension as a process: real PgBouncer, real PostgreSQL, real kills."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from processes import alive, wait_until
from tls_proxy import TlsProxy, make_certificate

NASTY = "p'a\"s\\s w\no\trd;#%$ [x]=ü€%20 ''\"\""


@pytest.fixture
def open_folder():
    """A folder that every user may go through; pytest's own are closed."""
    folder = Path("/tmp", f"perinvoke-test-{os.urandom(6).hex()}")
    folder.mkdir()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def query(connection, statement="SELECT pg_backend_pid()"):
    return connection.execute(statement).fetchone()[0]


# --- what it writes and tells --------------------------------------------------------------------------------------------


def test_its_files_are_its_users_alone_and_gone_afterwards(extension, postgres, tmp_path):
    with extension(postgres.url()) as running:
        directory = tmp_path / "root" / "pgbouncer" / "default"
        modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in directory.iterdir()}
        assert modes == {"facts.json": 0o600, "pgbouncer.ini": 0o600, "users.txt": 0o600, ".s.PGSQL.6432": 0o700}
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
        assert running.stop() == 0
        assert [path.name for path in (tmp_path / "root" / "pgbouncer").iterdir()] == ["default.lock"]
        assert not running.is_ready()


def test_it_listens_on_its_unix_socket_only(extension, postgres):
    with extension(postgres.url()) as running:
        [pid] = running.pgbouncers()
        inodes = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                assert not (f"socket:[{fields[9]}]" in inodes and fields[3] == "0A")


def test_a_nasty_password_works_and_is_nowhere_to_be_seen(extension, postgres):
    user, database = "us\"er '; name", "data 'base\" =ü"
    with postgres.admin() as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(user), sql.Literal(NASTY)))
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    from urllib.parse import quote

    url = f"postgresql://{quote(user, safe='')}:{quote(NASTY, safe='')}@127.0.0.1:{postgres.port}/{quote(database, safe='')}"
    with extension(url) as running:
        with running.connect() as client:
            assert client.execute("SELECT current_user, current_database()").fetchone() == (user, database)
        assert (running.facts.user, running.facts.database) == (user, database)
        postgres.execute(sql.SQL("ALTER ROLE {} PASSWORD 'another'").format(sql.Identifier(user)).as_string(None))
        [pid] = running.pgbouncers()
        told = running.output() + repr(running.facts)
        for process in (pid, running.popen.pid):
            told += Path(f"/proc/{process}/cmdline").read_text()
        told += Path(f"/proc/{pid}/environ").read_text()
        for form in (NASTY, quote(NASTY, safe=""), NASTY.replace('"', '""'), NASTY.splitlines()[0]):
            assert form not in told


def test_what_it_logs_is_json_where_the_functions_log_is(extension, postgres):
    with extension(postgres.url(), AWS_LAMBDA_LOG_FORMAT="JSON") as running:
        running.stop()
        levels = {record["level"] for record in running.records()}
        assert levels == {"INFO"}
        assert "is ready as 'default': up to 4 connections" in running.records()[0]["message"]


# --- the budget, the server ----------------------------------------------------------------------------------------------


def test_many_clients_share_the_servers_connections_and_never_more(extension, postgres):
    from databases import PeakWatch

    wait_until(lambda: postgres.connection_count() == 0)  # those of killed clients of earlier tests end a moment later
    with extension(postgres.url(), PERINVOKE_PGBOUNCER_MAX_CONNECTIONS="3") as running, PeakWatch(postgres) as watch:
        clients = [running.connect() for _ in range(20)]
        threads = [
            threading.Thread(target=lambda client=client: [query(client, "SELECT pg_sleep(0.001)") for _ in range(20)])
            for client in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    assert watch.peak == 3


def test_the_server_knows_soon_that_a_killed_worker_waits_for_nothing(extension, postgres):
    code = "import psycopg, sys; psycopg.connect(sys.argv[1], autocommit=True).execute('SELECT pg_sleep(60)')"
    looking = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
    with extension(postgres.url()) as running, running.connect() as used:
        for _ in range(2):  # over a new connection to the server, and over one that was used
            where = " ".join(f"{name}={value}" for name, value in running.facts.client_arguments().items())
            with subprocess.Popen([sys.executable, "-c", code, where]) as worker:
                wait_until(lambda: postgres.execute(looking) == [(1,)])
                worker.kill()
            wait_until(lambda: postgres.execute(looking) == [(0,)], 30)  # and not after its 60 seconds
            assert query(used)


def test_its_console_tells_who_waits_for_what(extension, postgres):
    with extension(postgres.url()) as running, running.connect() as client:
        assert query(client)
        with running.connect(dbname="pgbouncer", prepare_threshold=None) as console:
            pools = console.execute("SHOW POOLS").fetchall()
    assert ("default", "postgres") in [pool[:2] for pool in pools]


def test_a_wrong_password_is_told_to_the_client_at_once(extension, postgres):
    """And not when it has waited for a connection as long as it may, an hour here: it gives up after thirty seconds itself."""
    with extension(postgres.url(password="wrong"), PERINVOKE_PGBOUNCER_WAIT_SECONDS="3600") as running:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            running.connect()
        wait_until(lambda: "server login failed: FATAL password authentication failed" in running.output())


def test_a_server_that_cannot_be_reached_costs_a_client_seconds(extension):
    with socket.socket() as silent:  # takes connections and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        url = f"postgresql://app:x@127.0.0.1:{silent.getsockname()[1]}/app"
        with extension(url, PERINVOKE_PGBOUNCER_WAIT_SECONDS="1") as running:
            began = time.monotonic()
            with pytest.raises(psycopg.OperationalError, match=r"client_login_timeout \(server down\)|query_wait_timeout"):
                running.connect()
            assert time.monotonic() - began < 25  # the client's own patience lasts thirty seconds


def test_a_server_that_refuses_is_told_of_in_the_log(extension):
    with extension("postgresql://app:x@127.0.0.1:1/app", PERINVOKE_PGBOUNCER_WAIT_SECONDS="1") as running:
        with pytest.raises(psycopg.OperationalError):
            running.connect()
        assert "server: closing because: connect failed" in running.output()


def test_a_server_that_was_restarted_is_used_again(extension, own_postgres):
    with extension(own_postgres.url()) as running, running.connect() as idle:
        before = query(idle)
        own_postgres.restart()
        assert query(idle) != before  # the client's own connection was to PgBouncer, and is whole


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl isn't installed: nothing to make a certificate with")
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_tls_is_used_where_the_server_has_it(extension, postgres, certificate):
    with TlsProxy(certificate, postgres.port) as proxy:
        url = postgres.url().replace(f":{postgres.port}/", f":{proxy.port}/")
        with extension(url) as running, running.connect() as client:
            assert query(client)
            assert proxy.encrypted


def test_with_certificates_the_server_is_checked_by_its_name(extension, postgres, certificate):
    with TlsProxy(certificate, postgres.port) as proxy:
        by_address = postgres.url().replace(f":{postgres.port}/", f":{proxy.port}/")
        variables = {"PERINVOKE_PGBOUNCER_TLS_CA_FILE": str(certificate[0]), "PERINVOKE_PGBOUNCER_WAIT_SECONDS": "1"}
        with extension(by_address.replace("127.0.0.1", "localhost"), **variables) as running, running.connect() as client:
            assert query(client)
        with extension(by_address, **variables) as running, pytest.raises(psycopg.OperationalError):
            running.connect()  # 127.0.0.1 is not in the certificate
        assert "TLS" in running.output()


def test_a_server_without_tls_is_refused_where_it_is_required(extension, postgres):
    required = {"PERINVOKE_PGBOUNCER_TLS_MODE": "require", "PERINVOKE_PGBOUNCER_WAIT_SECONDS": "1"}
    with extension(postgres.url(), **required) as running, pytest.raises(psycopg.OperationalError):
        running.connect()


def test_a_server_on_a_unix_socket(extension, postgres):
    url = f"postgresql://{postgres.user}@/postgres?host={postgres.socket_directory}&port={postgres.port}"
    with extension(url) as running, running.connect() as client:
        assert query(client, "SELECT inet_client_addr() IS NULL") is True


# --- death ---------------------------------------------------------------------------------------------------------------


def test_pgbouncer_is_back_at_once_when_it_was_killed_and_again(extension, postgres):
    with extension(postgres.url(), AWS_LAMBDA_LOG_FORMAT="JSON") as running:
        for _ in range(3):
            running.kill_pgbouncer()
            wait_until(running.pgbouncers)
            wait_until(lambda: accepts(running))  # it takes some 20 ms
            with running.connect() as client:
                assert query(client)
            assert running.is_ready()
        died = [record for record in running.records() if record["level"] == "WARN"]
        assert "pgbouncer was killed by signal 9 (SIGKILL)" in died[0]["message"]


def accepts(running) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(f"{running.facts.socket_directory}/.s.PGSQL.6432")
        except OSError:
            return False
    return True


def test_pgbouncer_does_not_outlive_its_extension(extension, postgres):
    with extension(postgres.url()) as running:
        [pid] = running.pgbouncers()
        running.popen.kill()
        running.popen.wait()
        wait_until(lambda: not alive(pid))
        wait_until(lambda: not running.is_ready())


def test_the_next_extension_takes_over_what_a_killed_one_left(extension, postgres):
    with extension(postgres.url()) as running:
        running.popen.kill()
        with extension(postgres.url()) as after, after.connect() as client:
            assert query(client)


def test_a_pgbouncer_that_dies_again_and_again_ends_the_extension(extension, postgres, pgbouncer, open_folder):
    fragile = open_folder / "pgbouncer"
    fragile.write_text(f'#!/bin/sh\n[ -e {open_folder}/broken ] && echo "FATAL no luck" && exit 3\nexec {pgbouncer} "$@"\n')
    fragile.chmod(0o755)
    with extension(postgres.url(), PERINVOKE_PGBOUNCER_PATH=str(fragile)) as running:
        (open_folder / "broken").touch()
        running.kill_pgbouncer()
        assert running.popen.wait(30) == 1
        assert "ended with exit code 3, the 7th time in a row within a second of its start" in running.output()
        assert "no luck" in running.output()


def test_two_of_one_name_below_one_root_are_refused(extension, postgres):
    with extension(postgres.url()) as running:
        second = extension(postgres.url())
        assert second.run_to_its_end() == 1
        assert "a PgBouncer named 'default' runs below" in second.output()
        with extension(postgres.url(), PERINVOKE_PGBOUNCER_NAME="other") as other:
            assert other.is_ready()
            assert running.is_ready()


# --- the end -------------------------------------------------------------------------------------------------------------


def patient(running):
    """Let it give queries a minute at its end, in place of two seconds, of which a busy machine may take one."""
    code = "import sys; from perinvoke.pgbouncer import extension; extension._STOP_SECONDS = 60.0; sys.exit(extension.main([]))"
    running.command = [sys.executable, "-c", code]
    return running


def test_at_the_end_queries_that_run_come_to_theirs(extension, postgres):
    with patient(extension(postgres.url())) as running, running.connect() as client, postgres.admin() as holder:
        holder.execute("SELECT pg_advisory_lock(42)")
        answer = []
        thread = threading.Thread(target=lambda: answer.append(query(client, "SELECT '42' FROM pg_advisory_xact_lock(42)")))
        thread.start()
        wait_until(lambda: postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'") == [(1,)])
        running.popen.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert running.popen.poll() is None
        holder.execute("SELECT pg_advisory_unlock(42)")
        assert running.popen.wait(20) == 0
        thread.join(10)
        assert answer == ["42"]


def test_at_the_end_no_query_is_waited_for_too_long(extension, postgres):
    with extension(postgres.url()) as running, running.connect() as client:
        failed = []

        def wait_in_vain() -> None:
            try:
                query(client, "SELECT pg_sleep(30)")
            except psycopg.OperationalError as error:
                failed.append(error)

        thread = threading.Thread(target=wait_in_vain)
        thread.start()
        wait_until(
            lambda: postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)'") == [(1,)]
        )
        assert running.stop() == 0
        thread.join(10)
        assert failed
        assert "queries were still running after 2.0 s" in running.output()


def test_a_second_signal_does_not_wait(extension, postgres):
    with patient(extension(postgres.url())) as running, contextlib.closing(running.connect()) as client:
        client.execute("BEGIN")
        assert query(client)
        for seconds in (0.2, 5, 5, 5):  # those that it finds together are one
            running.popen.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.popen.wait(seconds)
        assert running.popen.returncode == 0


# --- users ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_an_ordinary_user_runs_it_as_itself(extension, postgres, open_folder):
    nobody = pwd.getpwnam("nobody")
    os.chown(open_folder, nobody.pw_uid, nobody.pw_gid)
    running = extension(postgres.url(), PERINVOKE_ROOT=str(open_folder / "root"))
    running.root = open_folder / "root"
    change = f"os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})"
    code = f"import os, sys; from perinvoke.pgbouncer.extension import main; {change}; sys.exit(main([]))"
    running.command = [sys.executable, "-c", code]  # that user may not be allowed to read this package: it is imported before
    with running, running.connect() as client:
        assert query(client)
        [pid] = running.pgbouncers()
        assert Path(f"/proc/{pid}").stat().st_uid == Path(f"/proc/{running.popen.pid}").stat().st_uid == nobody.pw_uid
