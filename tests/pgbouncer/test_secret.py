"""Secrets of Secrets Manager: moto's server, and one that refuses; read in the extension's way, by a child of a process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from processes import wait_until

PASSWORD = "hunter2-and-more"
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_REGION": "eu-central-1",
    "AWS_DEFAULT_REGION": "eu-central-1",
}
READ = """
import sys
from perinvoke.errors import PerinvokeError
from perinvoke.pgbouncer.secret import read_secret
from perinvoke.pgbouncer.target import complete, parse_secret
for name in sys.argv[1:]:
    try:
        print(complete(None, parse_secret(name, read_secret(name)), name))
    except PerinvokeError as error:
        print(f"{type(error).__name__}: {error}")
print("boto3" in sys.modules)
"""


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def secrets(endpoint):
    """Moto's client of Secrets Manager."""
    return boto3.client(
        "secretsmanager", endpoint_url=endpoint, region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x"
    )


def fields(**changes):
    complete = {
        "username": "app",
        "password": PASSWORD,
        "host": "127.0.0.1",
        "port": 5432,
        "dbname": "orders",
        "engine": "postgres",
    }
    return {name: value for name, value in {**complete, **changes}.items() if value is not None}


def read(endpoint, *names, **variables):
    """What reading each of these secrets comes to; the last is whether boto3 stayed in the process."""
    env = {"PATH": "/usr/bin:/bin", **VARIABLES, "AWS_ENDPOINT_URL": endpoint, **variables}
    done = subprocess.run([sys.executable, "-c", READ, *names], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert PASSWORD not in done.stdout
    return done.stdout.splitlines()


def test_a_secret_of_rdss_form_is_read_and_boto3_is_not_kept(endpoint, secrets):
    arn = secrets.create_secret(Name="good", SecretString=json.dumps(fields()))["ARN"]
    # An ARN tells its region, whatever the environment's is.
    assert read(endpoint, "good", arn, AWS_REGION="us-east-1", AWS_DEFAULT_REGION="eu-central-1")[1:] == [
        "<Database app@127.0.0.1:5432/orders>",
        "False",
    ]
    assert read(endpoint, "good") == ["<Database app@127.0.0.1:5432/orders>", "False"]


def test_a_bad_secret_is_told_by_its_name_and_field_and_never_by_what_it_holds(endpoint, secrets):
    secrets.create_secret(Name="no-json", SecretString=PASSWORD)
    secrets.create_secret(Name="no-user", SecretString=json.dumps(fields(username=None)))
    secrets.create_secret(Name="binary", SecretBinary=PASSWORD.encode())
    no_json, no_user, binary, missing, _ = read(endpoint, "no-json", "no-user", "binary", "missing")
    assert no_json.startswith("SecretError: the secret no-json, which PERINVOKE_PGBOUNCER_SECRET names, must be a JSON object")
    assert no_user.startswith("SecretError: the field 'username' of the secret no-user is missing")
    assert binary.endswith("it is binary.")
    assert (
        "the secret missing, which PERINVOKE_PGBOUNCER_SECRET names, can't be read: there is no such secret in eu-central-1"
        in missing
    )


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"__type": "AccessDeniedException", "Message": "User: someone is not authorized"}).encode()
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_secret_that_may_not_be_read_and_one_that_nobody_answers_for():
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        [line, _] = read(f"http://127.0.0.1:{server.server_port}", "denied")
        server.shutdown()
    assert "reading it is denied. Allow the function's role secretsmanager:GetSecretValue on it" in line
    [line, _] = read("http://127.0.0.1:1", "nobody")
    assert "can't be read: Could not connect to the endpoint URL" in line


def test_without_boto3_the_extra_is_named(endpoint, tmp_path):
    (tmp_path / "boto3.py").write_text("raise ImportError('not here')")
    [line, _] = read(endpoint, "any", PYTHONPATH=str(tmp_path))
    assert line.startswith("MissingExtra: PERINVOKE_PGBOUNCER_SECRET needs boto3")
    assert "pip install 'perinvoke[aws]'" in line


def test_a_password_that_was_changed_is_used_without_a_restart(extension, postgres, endpoint, secrets):
    postgres.execute("CREATE ROLE rotated LOGIN PASSWORD 'first password'")
    where = {"host": "127.0.0.1", "port": str(postgres.port), "dbname": "postgres", "username": "rotated"}
    secrets.create_secret(Name="rotated", SecretString=json.dumps(fields(**where, password="first password")))
    variables = {**VARIABLES, "AWS_ENDPOINT_URL": endpoint, "PERINVOKE_PGBOUNCER_SECRET": "rotated"}
    with extension(None, **variables) as running:
        [pgbouncer] = running.pgbouncers()
        with running.connect() as client:
            assert client.execute("SELECT current_user").fetchone() == ("rotated",)
            # As Secrets Manager does it with two users in turn.
            postgres.execute("CREATE ROLE rotated_clone LOGIN PASSWORD 'second'; ALTER ROLE rotated PASSWORD 'nobody knows'")
            secrets.put_secret_value(
                SecretId="rotated", SecretString=json.dumps(fields(**{**where, "username": "rotated_clone"}, password="second"))
            )
            postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'")
            wait_until(lambda: user_of(running) == "rotated_clone")
        assert running.pgbouncers() == [pgbouncer]
        assert running.facts.user == "rotated_clone"
        assert "the secret rotated has changed" in running.output()
        assert "second" not in running.output() + Path(f"/proc/{pgbouncer}/cmdline").read_text()


def user_of(running) -> object:
    """Who a new client is, or None while the server lets nobody in."""
    import psycopg

    try:
        with running.connect() as client:
            return client.execute("SELECT current_user").fetchone()[0]
    except psycopg.OperationalError:
        return None
