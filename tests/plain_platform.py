"""A platform as plain as can be, besides the one in perinvoke.local: a thread for each connection.

It never looks whether anybody still is at the other end of one before it hands an invocation out, as no HTTP server does. So an
invocation that is lost with a worker stays lost, and shows.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from processes import wait_until

WRAPPER = Path(sys.executable).with_name("perinvoke-exec")
NEXT = "/2018-06-01/runtime/invocation/next"
_RECORD = '{"timestamp": '
_POLL_SECONDS = 0.01  # how long an end takes at most; by default half a second, which hundreds of tests would wait for


class Platform:
    """Lives as long as one execution environment.

    Attributes:
        answers: of each request id, the one that was taken: ``response`` or ``error``, and the payload.
        refused: request ids for which something was posted when they had their answer already, or that nobody knows.
        init_errors: what was posted as such.
        polls: how many times a worker has asked.
        fails_next: how many of the next ones are answered with an error.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, Any]] = {}
        self.refused: list[str] = []
        self.init_errors: list[Any] = []
        self.polls = 0
        self.fails_next = 0
        self._waiting: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._handed_out: set[str] = set()
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        ThreadingHTTPServer.request_queue_size = 256  # all workers connect at once
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.runtime: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), daemon=True).start()
        return self

    def vanish(self) -> None:
        """Close every connection, and take no other."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended
                continue

    def __exit__(self, *_: object) -> None:
        if self.runtime is not None and self.runtime.poll() is None:
            self.stop()
        self._server.shutdown()
        self._server.server_close()

    def start(self, command: list[str], *, directory: Path, workers: int | str | None, log: Path, **env: str) -> None:
        """Start the runtime behind the wrapper."""
        variables = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": self.address,
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "AWS_LAMBDA_LOG_FORMAT": "JSON",
            "LAMBDA_TASK_ROOT": str(directory),
            **env,
        }
        if workers is not None:
            variables["AWS_LAMBDA_MAX_CONCURRENCY"] = str(workers)
        self.log_path = log
        with log.open("ab") as output:
            self.runtime = subprocess.Popen(
                [str(WRAPPER), *command], cwd=directory, env=variables, stdout=output, stderr=output, start_new_session=True
            )

    def start_python(self, handler: str, **options: Any) -> None:
        self.start([sys.executable, "-m", "awslambdaric", handler], **options)

    def records(self) -> list[dict[str, Any]]:
        """What the wrapper logged."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        # Before a record there may stand what a worker has printed, if it hasn't ended the line yet.
        parsed = [json.loads(line[line.index(_RECORD) :]) for line in lines if _RECORD in line]
        return [record for record in parsed if record.get("logger") == "perinvoke"]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 10.0) -> int:
        assert self.runtime is not None
        self.runtime.send_signal(number)
        try:
            return self.runtime.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.runtime.pid, signal.SIGKILL)
            self.runtime.wait()
            raise

    def workers(self) -> list[int]:
        """The processes that the runtime's parent has forked, zombies excepted."""
        assert self.runtime is not None
        return [pid for pid in children_of(self.runtime.pid) if not is_zombie(pid)]

    def invoke(self, **event: Any) -> str:
        request_id = str(uuid4())
        self._waiting.put((request_id, json.dumps(event).encode()))
        return request_id

    def answer(self, request_id: str, seconds: float = 20.0) -> tuple[str, Any]:
        """Wait for the answer of an invocation."""
        wait_until(lambda: request_id in self.answers, seconds)
        return self.answers[request_id]

    def call(self, **event: Any) -> tuple[str, Any]:
        return self.answer(self.invoke(**event))

    def _take(self, request_id: str, kind: str, payload: bytes) -> bool:
        with self._lock:
            if request_id not in self._handed_out or request_id in self.answers:
                self.refused.append(request_id)
                return False
            self.answers[request_id] = (kind, json.loads(payload))
            return True

    def _handler(platform) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # the handler's self is another
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else the body, a packet of its own, waits 40 ms for the head's acknowledgement

            def setup(self) -> None:
                super().setup()
                platform._connections.append(self.connection)

            def do_GET(self) -> None:
                assert self.path == NEXT, self.path
                with platform._lock:
                    platform.polls += 1
                request_id, event = platform._waiting.get()
                with platform._lock:
                    fails = platform.fails_next > 0
                    platform.fails_next -= fails
                if fails:
                    platform._waiting.put((request_id, event))
                    self.send_response(500)
                    self._send(b"no!")
                    return
                platform._handed_out.add(request_id)
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", request_id)
                self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + 30) * 1000)))
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:0:function:f")
                self.send_header("Content-Type", "application/json")
                self._send(event)

            def do_POST(self) -> None:
                payload = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                what = self.path.removeprefix("/2018-06-01/runtime/")
                if what == "init/error":
                    platform.init_errors.append(json.loads(payload))
                    self.send_response(202 if len(platform.init_errors) == 1 else 403)
                else:
                    request_id, _, kind = what.removeprefix("invocation/").partition("/")
                    self.send_response(202 if platform._take(request_id, kind, payload) else 400)
                self._send(b"{}")

            def _send(self, body: bytes) -> None:
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def sockets_of(pid: int) -> set[str]:
    """The inodes of the sockets that a process has open."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:  # closed meanwhile
            continue
    return {target for target in found if target.startswith("socket:")}


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
