"""``pool``: connections of any kind, here to a small server of the test's own."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from perinvoke import isolated, pool
from perinvoke.errors import PoolError, PoolTimeout
from processes import Process, wait_until
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Echo:
    """A server that tells each client how many it has now."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.clients: list[socket.socket] = []
        self.peak = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.clients.append(client)
            self.peak = max(self.peak, len(self.clients))
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        while data := client.recv(100):
            client.sendall(data)
        self.clients.remove(client)
        client.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for client in list(self.clients):
            client.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: not self.clients)


@pytest.fixture
def echo(root: object) -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def new_pool(echo: Echo) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def new(**options: Any) -> Any:
        create = functools.partial(socket.create_connection, echo.address)
        made.append(pool(create, **{"max_connections": 1, "name": f"echo-{len(made)}", **options}))
        return made[-1]

    yield new
    for each in made:
        each.dispose()
    wait_until(lambda: all(each.stats().open == 0 for each in made))


def invoke(work: Callable[[], Any], *, remaining_ms: int | None = None) -> Any:
    context = SimpleNamespace(aws_request_id="r", get_remaining_time_in_millis=lambda: remaining_ms)
    return isolated(lambda _event, _context: work())({}, context)


def say(used: Any, what: bytes = b"x") -> bytes:
    with used.connection() as client:
        client.sendall(what)
        return bytes(client.recv(100))


def test_a_connection_is_kept_and_counted(echo, new_pool):
    used = new_pool()
    assert [invoke(lambda: say(used)) for _ in range(5)] == [b"x"] * 5
    stats = used.stats()
    assert (stats.connects, stats.open, stats.in_use, stats.max_connections) == (1, 1, 0, 1)
    assert (len(echo.clients), echo.peak) == (1, 1)


@repeated_after_a_stall
def test_another_process_counts_too(echo, new_pool):
    used = new_pool()
    code = f"import socket\np = pool(lambda: socket.create_connection({echo.address!r}), max_connections=1, name='echo-0')\n"
    code += "with p.connection():\n    print('has', flush=True); time.sleep(60)"
    with Process(code) as other:
        assert other.line() == "has"
        with pytest.raises(PoolTimeout, match="no connection of echo-0"):
            invoke(lambda: say(used), remaining_ms=700)
    assert invoke(lambda: say(used), remaining_ms=10_000) == b"x"
    assert echo.peak == 1


def test_what_was_forgotten_is_closed_and_reported(echo, new_pool, caplog):
    used = new_pool()
    invoke(lambda: used.connection().__enter__())
    (record,) = caplog.records
    assert "given back: connection of echo-0, taken at" in record.getMessage()
    wait_until(lambda: not echo.clients)
    assert invoke(lambda: say(used)) == b"x"


def test_a_connection_is_reset_between_invocations_and_replaced_where_that_fails(echo, new_pool):
    resets = []

    def reset(client: socket.socket) -> None:
        resets.append(client)
        if len(resets) == 2:
            raise OSError("no")

    used = new_pool(reset=reset)
    for _ in range(3):
        invoke(lambda: [say(used), say(used)])
    assert len(resets) == 3
    assert used.stats().connects == 2


@pytest.mark.parametrize("verdict", [False, OSError("gone")])
def test_a_connection_is_tried_out_after_idleness(verdict, echo, new_pool):
    checked = []

    def check(client: socket.socket) -> bool:
        checked.append(client)
        if isinstance(verdict, Exception):
            raise verdict
        return bool(verdict)

    used = new_pool(check=check, check_after_seconds=0)
    assert [say(used), say(used)] == [b"x"] * 2
    assert len(checked) == 1
    assert used.stats().reconnects == 1


def test_a_server_that_hung_up_is_seen_without_a_check(echo, new_pool):
    used = new_pool(check=lambda _client: False)
    say(used)
    echo.clients[0].shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not echo.clients)
    assert say(used) == b"x"


def test_close_is_the_callers_or_the_connections_own(echo, new_pool):
    closed = []

    def close(client: socket.socket) -> None:
        closed.append(client)
        client.close()

    used = new_pool(close=close, idle_seconds=0)
    say(used)
    wait_until(lambda: used.stats().open == 0)
    assert len(closed) == 1


@repeated_after_a_stall
def test_connections_without_a_socket_are_counted_too(root):
    used = pool(dict, max_connections=1, name="dicts", idle_seconds=0.05)
    with used.connection() as mine:
        assert mine == {}
        with pytest.raises(PoolTimeout):
            invoke(lambda: used.connection().__enter__(), remaining_ms=500)
    wait_until(lambda: used.stats().open == 0)


def test_without_a_name_the_budget_is_where_create_is_defined(root):
    def create() -> dict[str, int]:
        return {}

    assert repr(pool(create, max_connections=1)) == repr(pool(create, max_connections=1))
    with pytest.raises(PoolError, match=r"test_pool.*create.*has 1"):
        pool(create, max_connections=2)


@pytest.mark.parametrize("what", ["create", "close", "check", "reset"])
def test_what_is_no_function_is_named(what, root):
    options: dict[str, Any] = {"create": dict, "max_connections": 1, "name": "p", what: 7}
    with pytest.raises(PoolError, match=f"{what} of pool p is of type int"):
        pool(**options)


def test_a_create_that_returns_nothing_is_told_so(root):
    with pytest.raises(PoolError, match="returned None"), pool(lambda: None, max_connections=1, name="none").connection():
        pass
    with pool(dict, max_connections=1, name="none").connection():
        pass  # the slot was given back


@pytest.mark.parametrize("name", ["", 5, b"x", ["x"], "\ud800", "x" * 201])
def test_a_name_must_be_text(name, root):
    with pytest.raises(PoolError, match="a pool's name is"):
        pool(dict, max_connections=1, name=name)


def test_a_loan_is_entered_once(root):
    used = pool(dict, max_connections=2, name="twice")
    loan = used.connection()
    with loan, pytest.raises(PoolError, match="entered before"), loan:
        pass


def test_a_close_that_raises_anything_does_not_end_the_keeper(root):
    used = pool(dict, close=lambda _connection: sys.exit(1), max_connections=1, name="exits", idle_seconds=0)
    for _ in range(3):
        with used.connection():
            pass
        wait_until(lambda: used.stats().open == 0)


def test_a_connection_that_is_idle_elsewhere_is_had_soon_each_time(echo, new_pool):
    """Each process hears of what others want of slots that it has only just got."""
    used = new_pool()
    code = f"import socket\np = pool(lambda: socket.create_connection({echo.address!r}), max_connections=1, name='echo-0')\n"
    code += "while True:\n    input()\n    with p.connection(): pass\n    print('idle', flush=True)"
    waits = []
    with Process(code) as other:
        for _ in range(6):
            print(file=other.popen.stdin, flush=True)
            assert other.line() == "idle"
            started = time.monotonic()
            assert invoke(lambda: say(used), remaining_ms=20_000) == b"x"
            waits.append(time.monotonic() - started)
    assert sorted(waits)[3] < 3  # without it, all but the first take four seconds


def test_what_create_raises_comes_through_and_costs_no_slot(root):
    def create() -> None:
        raise ConnectionRefusedError("nobody there")

    used = pool(create, max_connections=1, name="refused")
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError, match="nobody there"):
            invoke(lambda: used.connection().__enter__(), remaining_ms=2_000)
    assert used.stats().open == 0


def test_a_thread_that_outlives_its_invocation_borrows_as_the_process(echo, new_pool):
    used = new_pool()
    go, said = threading.Event(), []

    def late() -> None:
        go.wait(10)
        said.append(say(used))

    thread = threading.Thread(target=late)
    invoke(thread.start)
    go.set()
    thread.join(10)
    assert said == [b"x"]
    assert used.stats().in_use == 0


def test_a_thread_whose_invocation_ends_while_it_waits_gets_none(echo, new_pool):
    used = new_pool()
    errors: list[Exception] = []

    def wait() -> None:
        try:
            say(used)
        except Exception as error:
            errors.append(error)

    def start() -> None:
        thread.start()
        time.sleep(0.1)

    with used.connection():
        thread = threading.Thread(target=wait)
        invoke(start)
    thread.join(10)
    assert [type(error).__name__ for error in errors] == ["NotInInvocation"]
    assert say(used) == b"x"


def test_metrics_are_told_on_stdout(echo, root):
    script = f"""
import socket, sys
from perinvoke import isolated, pool
p = pool(lambda: socket.create_connection({echo.address!r}), max_connections=2, name="echo")
@isolated
def handler(event, context):
    with p.connection():
        pass
handler({{}}, None); handler({{}}, None)
"""
    env = {**os.environ, "PERINVOKE_METRICS": "emf", "AWS_LAMBDA_FUNCTION_NAME": "orders"}
    output = subprocess.check_output([sys.executable, "-c", script], text=True, env=env, timeout=30)
    (line,) = output.splitlines()
    told = json.loads(line)
    assert (told["FunctionName"], told["Pool"], told["Connects"]) == ("orders", "echo", 1)


@pytest.mark.parametrize("threads", [1, 3])
@repeated_after_a_stall
def test_waiting_workers_take_turns(threads, echo, root):
    """Processes over one connection, one of them with several threads: each gets it, again and again."""
    code = f"""
import socket
p = pool(lambda: socket.create_connection({echo.address!r}), max_connections=1, name='fair')
import threading
until, turns = time.monotonic() + 2, []
def work():
    while time.monotonic() < until:
        with p.connection() as client:
            client.sendall(b'x'); client.recv(1); turns.append(1)
threads = [threading.Thread(target=work) for _ in range(THREADS)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(turns), flush=True)
"""
    others = [Process(code.replace("THREADS", str(threads if number == 0 else 1))) for number in range(4)]
    started = time.monotonic()
    try:
        turns = [int(other.line().split()[0]) for other in others]
    finally:
        for other in others:
            other.__exit__()
    assert time.monotonic() - started < 30
    assert min(turns) * 20 > max(turns)
    assert echo.peak == 1


INTERRUPTED = """
import random, signal, sys
from types import SimpleNamespace
from perinvoke.errors import *

class Boom(BaseException):
    pass

armed = [False]

def on_alarm(number, frame):
    if armed[0]:
        armed[0] = False
        raise Boom

signal.signal(signal.SIGALRM, on_alarm)
p = pool(dict, reset=dict.clear, max_connections=2, name="interrupted")

def work():
    with p.connection() as one:
        with p.connection() as two:
            one["a"] = two["b"] = 1

@isolated
def handler(event, context):
    armed[0] = True
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 300e-6))
    while True:
        work()

@isolated
def check(event, context):
    work()

for number in range(400):
    try:
        handler({}, None)
    except (Boom, HandlerExited):
        pass
    armed[0] = False
    check({}, SimpleNamespace(aws_request_id="c", get_remaining_time_in_millis=lambda: 3_000))
print("all slots are there", flush=True)
"""


def test_no_slot_is_lost_to_interrupts_at_any_place(root):
    with Process(INTERRUPTED) as other:
        assert other.line() == "all slots are there"
