"""Asking for invocations over a real socket: answers of every form, whole and in pieces, and what the parent finds."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from perinvoke.runtime.mailbox import CONNECTED, POLLS, Mailbox, headers_of, host_and_port
from perinvoke.runtime.runtime_api import drained
from perinvoke.runtime.worker_record import Stage, WorkerRecord
from processes import wait_until

ID = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"lambda-runtime-aws-request-id: {ID}", *lines, "", ""]).encode()


class Api:
    """One connection of a runtime API, played by hand."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.record = WorkerRecord()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.mailbox = Mailbox(f"127.0.0.1:{self.server.getsockname()[1]}", self.record, theirs, None, "agent")
        self.got: list[Any] = []
        self.theirs = theirs

    def ask(self) -> threading.Thread:
        def ask() -> None:
            try:
                self.got.append(self.mailbox.next())
            except BaseException as error:
                self.got.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        return thread

    def accept(self) -> socket.socket:
        connection, _ = self.server.accept()
        return connection

    def exchange(self, connection: socket.socket, *parts: bytes) -> Any:
        """Let the mailbox ask, answer in parts, and give what it made of it."""
        thread = self.ask()
        assert connection.recv(4096).startswith(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: 127.0.0.1:")
        for part in parts:
            connection.sendall(part)
            time.sleep(0.01)
        thread.join(10)
        return self.got.pop()


@pytest.fixture
def api():
    api = Api()
    yield api
    for end in (api.server, api.control, api.theirs):
        end.close()
    api.mailbox._hang_up()
    api.record.close()
    for fd in (api.mailbox._left, api.mailbox._leave):
        os.close(fd)


@pytest.fixture
def connection(api):
    api.ask()
    with api.accept() as connection:
        connection.recv(4096)
        connection.sendall(head("Content-Length: 2") + b"{}")
        wait_until(lambda: api.got)
        api.got.clear()
        yield connection


@pytest.mark.parametrize(
    "parts",
    [
        (head("Content-Length: 7") + b'{"a":1}',),
        (head("Content-Length: 7"), b'{"a":1}'),
        (head("Content-Length: 7")[:30], head("Content-Length: 7")[30:-2], b"\r\n" + b'{"a"', b":1}"),
        (head("Transfer-Encoding: chunked"), b'3\r\n{"a\r\n', b'4\r\n":1}\r\n0\r\n\r\n'),
        (head("Content-Length: 7", "Connection: keep-alive") + b'{"a":1}',),
    ],
)
def test_an_answer_is_read_however_it_comes(parts, api, connection):
    body, headers = api.exchange(connection, *parts)
    assert body == b'{"a":1}'
    assert headers["Lambda-Runtime-Aws-Request-Id"] == ID
    assert (api.record.stage, api.record.served) == (Stage.SERVING, (ID, ""))
    assert api.exchange(connection, head("Content-Length: 1") + b"1")[0] == b"1"


def test_a_large_event_comes_whole(api, connection):
    event = os.urandom(6 << 20)
    thread = api.ask()
    connection.recv(4096)
    connection.sendall(head(f"Content-Length: {len(event)}") + event)
    thread.join(10)
    assert api.got.pop()[0] == event


def test_a_connection_that_closes_with_the_answer_is_followed_by_another(api, connection):
    body, _ = api.exchange(connection, head("Content-Length: 2", "Connection: close") + b"{}")
    assert body == b"{}"
    api.ask()
    with api.accept() as second:
        second.recv(4096)
        second.sendall(head("Content-Length: 1") + b"2")
        wait_until(lambda: api.got)
        assert api.got.pop()[0] == b"2"
    fds = [fd for _ in range(2) for fd in socket.recv_fds(api.control, 16, 1)[1]]
    assert len(fds) == 2  # the parent holds a duplicate of each
    for fd in fds:
        os.close(fd)


def serve_over_another(api: Api) -> None:
    """Whatever became of the first connection, an invocation that comes over a second one is taken."""
    with api.accept() as second:
        second.recv(4096)
        second.sendall(head("Content-Length: 1") + b"2")
        wait_until(lambda: api.got)
        assert api.got.pop()[0] == b"2"


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nLambda-Run", head("Content-Length: 3") + b"{"])
def test_a_connection_that_the_platform_closes_is_followed_by_another(part, api, connection):
    api.ask()
    connection.recv(4096)
    connection.sendall(part)
    connection.shutdown(socket.SHUT_RDWR)
    serve_over_another(api)


def test_also_one_that_it_closed_while_nobody_asked(api, connection):
    connection.shutdown(socket.SHUT_RDWR)
    time.sleep(0.05)
    api.ask()
    serve_over_another(api)


@pytest.mark.parametrize("answer", [head("Content-Length: 3", status="500 Oops") + b"no!", b"nonsense\r\n\r\n"])
def test_an_answer_that_is_none_is_an_error_and_no_invocation(answer, api, connection):
    error = api.exchange(connection, answer)
    assert isinstance(error, RuntimeError)
    assert str(error).startswith("Failed to get next: ")
    assert api.record.stage is Stage.ANSWERED, "a replacement would wait for an answer that nobody owes"


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:9001", ("127.0.0.1", 9001)),
        ("localhost", ("localhost", 80)),
        ("[::1]:9001", ("::1", 9001)),
        ("[::1]", ("::1", 80)),
    ],
)
def test_the_address_is_host_and_port(address, parts):
    assert host_and_port(address) == parts


def test_a_platform_that_is_not_there_is_an_error(api):
    api.server.close()
    with pytest.raises(RuntimeError, match="Failed to get next: .*refused"):
        api.mailbox.next()


def test_whoever_is_to_leave_leaves_the_connection_to_the_next_one(api, connection):
    thread = api.ask()
    assert connection.recv(4096)
    wait_until(lambda: api.record.stage is Stage.POLLING)
    api.mailbox.leave()
    api.mailbox.leave()
    thread.join(10)
    assert isinstance(api.got.pop(), SystemExit)
    assert api.record.stage is Stage.POLLING
    _, [fd], _, _ = socket.recv_fds(api.control, 16, 1)
    successor = Mailbox(api.mailbox._address, api.record, api.theirs, socket.socket(fileno=fd), "agent")
    connection.sendall(head("Content-Length: 1") + b"1")
    assert successor.next()[0] == b"1"
    assert api.control.recv(16) == POLLS
    successor._hang_up()
    for fd in (successor._left, successor._leave):
        os.close(fd)


def test_the_parent_has_the_connection_before_anything_is_asked_over_it(api):
    api.ask()
    with api.accept() as connection:
        assert connection.recv(4096)
        message, fds, _, _ = socket.recv_fds(api.control, 16, 1)
        assert message == CONNECTED
        os.close(fds[0])


def test_what_lies_in_given_up_connections_is_found_and_one_that_is_silent_costs_a_moment():
    pairs = [socket.socketpair() for _ in range(20)]
    for ours, _ in pairs[:2]:
        ours.sendall(head("Lambda-Runtime-Invocation-Id: 7", "Content-Length: 2") + b"{}")
    pairs[2][0].sendall(b"HTTP/1.1 200 OK\r\nhalf")
    pairs[3][0].close()
    began = time.monotonic()
    assert drained([theirs for _, theirs in pairs]) == [(ID, "7"), (ID, "7")]
    assert time.monotonic() - began < 5
    assert all(theirs.fileno() == -1 for _, theirs in pairs)
    for ours, _ in pairs:
        ours.close()


HEADERS = {
    "as on Lambda": [
        "Lambda-Runtime-Deadline-Ms: 1795409197397",
        "Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:0:function:f",
        "Lambda-Runtime-Trace-Id: Root=1-5759e988;Parent=53995c3f42cd8ad8;Sampled=1",
        "Content-Type: application/json",
    ],
    "all of them": [
        "Lambda-Runtime-Deadline-Ms: 1",
        "Lambda-Runtime-Invoked-Function-Arn: arn",
        "Lambda-Runtime-Trace-Id: trace",
        'Lambda-Runtime-Client-Context: {"custom": {"a": "b: c"}}',
        'Lambda-Runtime-Cognito-Identity: {"cognitoIdentityId": "x"}',
        "Lambda-Runtime-Aws-Tenant-Id: tenant",
        "Lambda-Runtime-Invocation-Id: invocation",
        "Content-Type: application/json",
    ],
    "in capitals": ["LAMBDA-RUNTIME-DEADLINE-MS: 123", "CONTENT-TYPE: text/plain", "Lambda-Runtime-Trace-Id: "],
}


@pytest.mark.parametrize("kind", HEADERS)
def test_what_it_gives_is_what_the_runtimes_own_client_gives(kind, api, connection):
    answer = head(*HEADERS[kind], "Content-Length: 2") + b"{}"
    script = "import runtime_client as r; r.initialize_client('agent'); print(r.next())"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        env = {**os.environ, "AWS_LAMBDA_RUNTIME_API": address}
        original = subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)
        with original, server.accept()[0] as accepted:
            accepted.recv(4096)
            accepted.sendall(answer)
            told, _ = original.communicate(timeout=30)
    assert api.exchange(connection, answer) == ast.literal_eval(told)


@pytest.mark.parametrize("value", ["", "abc", "-5", "12.5", "\u0661"])
def test_a_deadline_that_is_none_is_zero(value):
    lines = ["HTTP/1.1 200 OK", f"Lambda-Runtime-Deadline-Ms: {value}"]
    assert headers_of("\r\n".join(lines).encode())["Lambda-Runtime-Deadline-Ms"] == 0


def test_a_signal_does_not_disturb_a_worker_that_waits(api):
    """Its handler runs in the main thread, where a worker of ordinary Lambda waits."""
    hits: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: hits.append(number))
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()

        def answer() -> None:
            with api.accept() as connection:
                connection.recv(4096)
                wait_until(lambda: hits)
                connection.sendall(head("Content-Length: 1") + b"1")
                time.sleep(0.2)

        thread = threading.Thread(target=answer)
        thread.start()
        assert api.mailbox.next()[0] == b"1"
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
