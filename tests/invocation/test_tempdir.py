from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import gettempdir as imported_by_name

import pytest

from conftest import trash_is_empty
from perinvoke import isolated, scratch

pytestmark = pytest.mark.usefixtures("root")


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_everything_of_tempfile_points_into_the_scratch(mode, monkeypatch):
    monkeypatch.setenv("AWS_LAMBDA_CONCURRENCY_MODE", mode)

    @isolated
    def handler(event, context):
        own = scratch()
        assert tempfile.gettempdir() == imported_by_name() == str(own)
        assert tempfile.gettempdirb() == os.fsencode(own)
        with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryDirectory() as directory:
            assert Path(file.name).parent == Path(directory).parent == own
        handle, name = tempfile.mkstemp()
        os.close(handle)
        assert Path(name).parent == own
        assert Path(tempfile.mkdtemp()).parent == own
        assert Path(os.fsdecode(tempfile.mkdtemp(b"bytes"))).parent == own
        with tempfile.TemporaryFile() as file:
            file.write(b"x")

    before = tempfile.gettempdir()
    handler({}, None)
    assert tempfile.gettempdir() == before


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_in_threads_and_tasks_too_and_afterwards_it_is_the_systems(mode, monkeypatch):
    monkeypatch.setenv("AWS_LAMBDA_CONCURRENCY_MODE", mode)
    go_on = threading.Event()
    seen = []

    @isolated
    def handler(event, context):
        def later() -> None:
            assert go_on.wait(10)
            seen.append(tempfile.gettempdir())

        late = threading.Thread(target=later)
        late.start()
        with ThreadPoolExecutor(1) as pool:
            asked = [pool.submit(tempfile.gettempdir).result(), asyncio.run(asyncio.to_thread(tempfile.gettempdir))]
        return asked, str(scratch()), late

    system = tempfile.gettempdir()
    asked, own, late = handler({}, None)
    assert asked == [own, own]
    go_on.set()
    late.join()
    assert seen == [system]


def test_a_module_loaded_by_the_handler_itself_points_into_the_scratch_too(root):
    """Where nobody has imported tempfile at init, importing perinvoke must not either: it takes 12 ms."""
    script = """
import os, sys
from perinvoke import isolated, scratch
assert "tempfile" not in sys.modules

@isolated
def handler(event, context):
    import tempfile
    return tempfile.gettempdir() == str(scratch()), tempfile.gettempdir()

@isolated
def thrown(event, context):
    import tempfile
    return tempfile.gettempdir()

ok, first = handler({}, None)
assert ok
ok, second = handler({}, None)
assert ok and second != first
import tempfile
assert tempfile.gettempdir() == sys.argv[1], tempfile.gettempdir()
"""
    environment = {**os.environ, "TMPDIR": str(root.parent)}
    run = subprocess.run(
        [sys.executable, "-c", script, str(root.parent)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert not root.exists() or list(root.iterdir()) == []  # a process that ends in order leaves nothing


def test_multiprocessings_own_directory_outlives_the_invocation_that_made_it(monkeypatch):
    """multiprocessing.util keeps its directory for the process, with the sockets of its servers."""
    from multiprocessing.connection import Client, Listener

    root = tempfile.mkdtemp(prefix="p", dir="/tmp")  # a socket's path holds 107 bytes; pytest's own directory is too deep
    monkeypatch.setenv("PERINVOKE_ROOT", root)

    @isolated
    def handler(event, context):
        with Listener(family="AF_UNIX") as listener:
            assert not str(listener.address).startswith(str(scratch()))  # the process's, not the invocation's
            with Client(listener.address) as client, listener.accept() as accepted:
                client.send("x")
                return accepted.recv()

    assert [handler({}, None), handler({}, None)] == ["x", "x"]
    assert trash_is_empty(Path(root))
    shutil.rmtree(root)


def test_processes_and_servers_of_multiprocessing_work_in_every_invocation(root):
    """The fork server (Python 3.14's default) outlives the invocation that starts it, and so must its socket."""
    script = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from perinvoke import isolated

@isolated
def handler(event, context):
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        return pool.submit(abs, -event).result()

if __name__ == "__main__":
    import multiprocessing.util
    print([handler(number, None) for number in (1, 2, 3)])
"""
    file = root.parent / "uses_forkserver.py"
    file.write_text(script)
    run = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False, timeout=60)
    assert run.stdout == "[1, 2, 3]\n", run.stderr


def test_a_fork_server_of_a_multiprocessing_that_an_invocation_loads_ends_with_it(root, monkeypatch):
    """It was made before anybody could keep its socket out of the scratch; the next invocation starts another one."""
    script = """
import multiprocessing, os, sys
from perinvoke import isolated

@isolated
def handler(event, context):
    process = multiprocessing.get_context("forkserver").Process(target=abs, args=(event,))
    process.start()
    process.join()
    server = sys.modules["multiprocessing.forkserver"]._forkserver
    return process.exitcode, server._forkserver_pid

if __name__ == "__main__":
    assert "multiprocessing.util" not in sys.modules
    codes, pids = zip(*[handler(number, None) for number in (1, 2, 3)])
    print(codes, pids[0] != pids[1], pids[1] == pids[2], os.path.exists(f"/proc/{pids[0]}"))
"""
    file = root.parent / "loads_it_late.py"
    file.write_text(script)
    short = tempfile.mkdtemp(prefix="p", dir="/tmp")  # as above
    monkeypatch.setenv("PERINVOKE_ROOT", short)
    run = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False, timeout=60)
    assert run.stdout == "(0, 0, 0) True True False\n", run.stderr
    shutil.rmtree(short)


def test_on_a_full_disk_a_child_of_a_shared_process_that_needs_no_file_still_runs(monkeypatch):
    monkeypatch.setenv("AWS_LAMBDA_CONCURRENCY_MODE", "thread")

    @isolated
    def handler(event, context):
        with monkeypatch.context() as patched:
            patched.setattr(os, "mkdir", full)
            return subprocess.run(["true"], check=False).returncode

    def full(path, *args, **kwargs):
        raise OSError(28, "No space left on device", path)

    assert handler({}, None) == 0
