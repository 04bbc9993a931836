from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from perinvoke.environment.connections.network_end import CLOSE_SECONDS, NetworkEnd, closed_in_order, open_at_server


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request):
    """A client's socket and a server's."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        listener = socket.create_server((request.param, 0), family=family)
    except OSError:
        pytest.skip(f"{request.param} can't be listened at here")
    with listener, socket.create_connection(listener.getsockname()[:2]) as client:
        server, _ = listener.accept()
        with server:
            yield client, server


def test_the_kernels_table_tells_how_far_a_connection_has_got(pair):
    client, server = pair
    endpoints = NetworkEnd(client.fileno()).endpoints
    assert open_at_server(endpoints) is True
    client.close()
    assert open_at_server(endpoints) is True  # the server has its end
    server.close()
    assert open_at_server(endpoints) is False


def test_nothing_is_known_of_what_is_not_tcp():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert NetworkEnd(ours.fileno()).endpoints == ""
        assert open_at_server("") is None
    assert open_at_server("0100007F:0001 0100007F:0002") is None


def test_what_is_no_socket_has_no_end():
    with open(os.devnull, "rb") as file:
        assert NetworkEnd.of(file.fileno()) is None
    assert NetworkEnd.of(None) is None
    assert NetworkEnd.of(99_999) is None


def test_news_are_what_the_server_says_or_its_end(pair):
    client, server = pair
    end = NetworkEnd(client.fileno())
    assert not end.has_news()
    server.sendall(b"x")
    assert end.has_news()
    client.recv(1)
    assert not end.has_news()
    server.close()
    assert end.has_news()


def test_a_descriptor_that_is_another_files_by_now_is_left_alone(pair, tmp_path):
    client, _ = pair
    end = NetworkEnd(client.fileno())
    fd = client.fileno()
    client.close()
    path = tmp_path / "file"
    path.touch()
    taken = [os.open(path, os.O_RDWR)]
    while taken[-1] != fd:
        assert taken[-1] < 1_000
        taken.append(os.open(path, os.O_RDWR))
    assert not end.is_there()
    assert end.has_news()
    end.sever()
    end.cut()
    assert os.fstat(fd).st_ino == path.stat().st_ino
    for each in taken:
        os.close(each)


def test_closing_waits_until_the_server_has_closed(pair):
    client, server = pair
    closed_at = []

    def close_late() -> None:
        time.sleep(0.2)
        closed_at.append(time.monotonic())
        server.close()

    thread = threading.Thread(target=close_late)
    thread.start()
    closed_in_order(client.fileno(), client.close, 60)
    assert time.monotonic() >= closed_at[0]
    thread.join()


def test_closing_does_not_wait_for_ever(pair):
    client, _ = pair
    started = time.monotonic()
    closed_in_order(client.fileno(), client.close)
    assert CLOSE_SECONDS <= time.monotonic() - started < 30
    closed_in_order(None, lambda: None)


def test_who_waits_in_a_connection_that_is_cut_hears_its_end(pair):
    client, _ = pair
    end = NetworkEnd(client.fileno())
    heard = []
    thread = threading.Thread(target=lambda: heard.append(client.recv(1)))
    thread.start()
    time.sleep(0.05)
    end.cut()
    thread.join(10)
    assert heard == [b""]


def test_what_is_severed_says_nothing_to_the_server(pair):
    client, server = pair
    pid = os.fork()
    if not pid:
        NetworkEnd(client.fileno()).sever()
        os.write(client.fileno(), b"bye")
        client.close()
        os._exit(0)
    os.waitpid(pid, 0)
    client.sendall(b"still here")
    assert server.recv(100) == b"still here"
