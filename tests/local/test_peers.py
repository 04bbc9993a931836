from __future__ import annotations

import os
import socket

from perinvoke.local.peers import owner_of


def test_the_process_at_the_other_end_of_a_connection_is_found_also_behind_many_descriptors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server_port = server.getsockname()[1]
        with socket.create_connection(server.getsockname()) as client:
            port = client.getsockname()[1]
            me = os.getpid()
            assert owner_of(port, server_port, likely=[me], possible=[]) == me
            assert owner_of(port, server_port, likely=[1, os.getppid()], possible=[me]) == me
            newer = [os.dup(0) for _ in range(40)]
            try:
                assert owner_of(port, server_port, likely=[me], possible=[]) is None
                assert owner_of(port, server_port, likely=[me], possible=[me]) == me
            finally:
                for fd in newer:
                    os.close(fd)


def test_what_cannot_be_told_is_none() -> None:
    assert owner_of(1, 1, likely=[os.getpid()], possible=[os.getpid()]) is None
