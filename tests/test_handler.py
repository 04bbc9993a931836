from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import logging
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from conftest import trash_is_empty
from perinvoke import NotInInvocation, current, isolated, scratch, shared_file
from perinvoke.errors import FixConfiguration, HandlerError, HandlerExited, RootError, ScratchFull, SettingError

pytestmark = pytest.mark.usefixtures("root")


def call(handler: Any) -> Any:
    """As the runtime calls it: an async handler too, and no loop is running."""
    return handler({}, None)


def test_the_wrapper_keeps_name_signature_and_the_handler_itself():
    def handler(event: dict[str, Any], context: object) -> str:
        """Answers."""
        return "done"

    wrapped = isolated(handler)
    assert wrapped.__name__ == "handler"
    assert wrapped.__doc__ == "Answers."
    assert inspect.signature(wrapped) == inspect.signature(handler)
    assert wrapped.__wrapped__ is handler  # type: ignore[attr-defined]
    assert isolated(wrapped) is wrapped


def test_it_decorates_with_and_without_brackets():
    @isolated
    def bare(event, context):
        return event

    @isolated()
    def called(event, context):
        return event

    assert bare(1, None) == called(1, None) == 1


@pytest.mark.parametrize("context", [None, MagicMock(), SimpleNamespace(), "nonsense"], ids=str)
def test_a_unit_test_may_pass_any_context(context):
    @isolated
    def handler(event, context):
        return current().request_id, current().deadline.remaining_seconds(), current().deadline.at_epoch_ms

    request_id, remaining, at_epoch_ms = handler({}, context)
    assert len(request_id) == 36
    assert remaining == float("inf")
    assert at_epoch_ms is None


def test_the_invocation_knows_what_the_platform_says(lambda_context):
    @isolated
    def handler(event, context):
        return current().request_id, current().tenant_id, current().deadline.remaining_seconds(), current().deadline.at_epoch_ms

    request_id, tenant_id, remaining, at_epoch_ms = handler({}, context=lambda_context)
    assert request_id == lambda_context.aws_request_id
    assert tenant_id == "tenant-1"
    assert 10 < remaining <= 20
    assert abs(at_epoch_ms - lambda_context._epoch_deadline_time_in_ms) < 5_000


def test_methods_partials_and_callable_objects_are_wrapped_too(lambda_context):
    class Handlers:
        @isolated
        def method(self, event, context):
            return current().request_id

        def plain(self, event, context):
            return current().request_id

        def __call__(self, event, context):
            return current().request_id

    def three(extra, event, context):
        return extra, context.aws_request_id

    request_id = lambda_context.aws_request_id
    assert Handlers().method({}, lambda_context) == request_id
    assert isolated(Handlers().plain)({}, lambda_context) == request_id
    assert isolated(Handlers())({}, lambda_context) == request_id
    assert isolated(functools.partial(three, "x"))({}, lambda_context) == ("x", request_id)


def test_a_callable_that_answers_to_any_name_is_isolated_all_the_same(root):
    class Router:
        def __getattr__(self, name):
            return f"route {name}"

        def __call__(self, event, context):
            return scratch().parent.parent

    assert isolated(Router())({}, None) == root


def test_what_is_not_callable_is_refused_at_init():
    with pytest.raises(HandlerError, match="a callable; got 3"):
        isolated(3)  # type: ignore[call-overload]


def test_outside_an_invocation_there_is_none():
    with pytest.raises(NotInInvocation, match="wrapped with perinvoke.isolated"):
        current()
    with pytest.raises(NotInInvocation):
        scratch()


def test_every_invocation_has_a_private_empty_directory_that_is_gone_afterwards(root):
    seen = []

    @isolated
    def handler(event, context):
        path = scratch()
        assert path == current().scratch
        assert list(path.iterdir()) == []
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (path / "test.txt").write_text("mine")
        seen.append(path)

    for _ in range(5):
        handler({}, None)
    assert len(set(seen)) == 5
    assert trash_is_empty(root)
    assert not any(path.exists() for path in seen)


def test_an_untouched_directory_is_used_again_without_mkdir_or_rmdir(root):
    """In a process of its own: a thread that another test left would be company, and the directory get a new name."""
    script = """
import os
from perinvoke import isolated
handler = isolated(lambda event, context: None)
handler({}, None)
calls = []
for name in ("mkdir", "rmdir", "rename"):
    setattr(os, name, lambda *args, name=name, **kwargs: calls.append(name))
for _ in range(10):
    handler({}, None)
print(calls)
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-u", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_what_the_handler_raises_reaches_the_caller_unchanged(root):
    error = ValueError("no such order")
    seen = []

    @isolated
    def handler(event, context):
        seen.append(scratch())
        (scratch() / "a").touch()
        raise error

    with pytest.raises(ValueError, match="no such order") as caught:
        handler({}, None)
    assert caught.value is error
    assert trash_is_empty(root)
    assert not seen[0].exists()


@pytest.mark.parametrize(
    "raised",
    [
        SystemExit(3),
        SystemExit(),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("g", [SystemExit()]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_what_would_end_the_worker_becomes_an_error_for_the_caller(raised, is_async):
    cleaned: list[str] = []

    @isolated
    def handler(event, context):
        current().defer(cleaned.append, "cleaned")
        raise raised

    @isolated
    async def async_handler(event, context):
        handler.__wrapped__(event, context)  # type: ignore[attr-defined]

    with pytest.raises(HandlerExited, match=type(raised).__name__) as caught:
        (async_handler if is_async else handler)({}, None)
    assert caught.value.exception == type(raised).__name__
    assert cleaned == ["cleaned"]
    assert (async_handler if is_async else handler).__name__  # and the worker lives on
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.exception, str(copy)) == (caught.value.exception, str(caught.value))


def test_the_error_shows_where_in_the_handler_it_came_from():
    @isolated
    def handler(event, context):
        sys.exit("fatal: no configuration")

    with pytest.raises(HandlerExited, match="fatal: no configuration") as caught:
        handler({}, None)
    assert caught.traceback[-1].name == "handler"


def test_deferred_cleanups_run_last_in_first_out_and_see_the_scratch():
    order: list[Any] = []

    @isolated
    def handler(event, context):
        path = scratch()
        current().defer(lambda: order.append(("first", path.exists(), current().request_id)))
        current().defer(order.append, "second")
        order.append("handler")

    handler({}, None)
    assert [item if isinstance(item, str) else item[:2] for item in order] == ["handler", "second", ("first", True)]


@pytest.mark.parametrize("failure", [OSError("pipe"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_failing_cleanup_stops_neither_the_next_one_nor_the_answer(failure, caplog):
    cleaned: list[str] = []

    def fails():
        raise failure

    @isolated
    def handler(event, context):
        current().defer(cleaned.append, "last")
        current().defer(fails)
        current().defer(cleaned.append, "first")
        return "answer"

    assert handler({}, None) == "answer"
    assert cleaned == ["first", "last"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.perinvoke["failed_cleanups"] == [f"{type(failure).__name__}: {failure}"]


def test_a_cleanup_may_defer_another_and_after_the_end_deferring_is_refused():
    cleaned: list[str] = []
    kept = []

    @isolated
    def handler(event, context):
        kept.append(current())
        current().defer(lambda: current().defer(cleaned.append, "inner"))

    handler({}, None)
    assert cleaned == ["inner"]
    with pytest.raises(NotInInvocation, match="would never run"):
        kept[0].defer(cleaned.append, "too late")


def test_a_sync_handlers_cleanup_that_returns_a_coroutine_is_reported(caplog):
    async def close():
        raise AssertionError("never awaited")

    @isolated
    def handler(event, context):
        current().defer(close)

    handler({}, None)
    assert "only an async handler's cleanups are awaited" in caplog.text


def test_nested_invocations_are_isolated_from_each_other(root):
    @isolated
    def inner(event, context):
        assert list(scratch().iterdir()) == []
        (scratch() / "name").write_text("inner")
        os.environ["WHO"] = "inner"
        return current().request_id, scratch(), os.environ["TMPDIR"]

    @isolated
    def outer(event, context):
        (scratch() / "name").write_text("outer")
        os.environ["WHO"] = "outer"
        request_id, path, tmpdir = inner({}, None)
        assert request_id != current().request_id
        assert str(path) == tmpdir != os.environ["TMPDIR"] == str(scratch())
        assert not path.exists() or not list(path.iterdir())
        assert (scratch() / "name").read_text() == "outer"
        assert os.environ["WHO"] == "outer"
        return "done"

    assert outer({}, None) == "done"
    assert "WHO" not in os.environ


def test_async_handlers_run_where_no_loop_runs_and_are_awaited_where_one_does():
    @isolated
    async def inner(event, context):
        await asyncio.sleep(0)
        return current().request_id

    @isolated
    async def outer(event, context):
        return current().request_id, await inner({}, None)

    async def main():
        return await outer({}, None)

    first, second = call(outer)
    assert first != second
    first, second = asyncio.run(main())
    assert first != second


def test_an_async_handler_keeps_its_loop_for_the_next_invocation():
    @isolated
    async def handler(event, context):
        return asyncio.get_running_loop()

    assert handler({}, None) is handler({}, None)


def test_invocations_gathered_in_one_loop_are_isolated_from_each_other(root):
    @isolated
    async def handler(event, context):
        path = scratch()
        (path / "name").write_text(str(event))
        await asyncio.sleep(0.01)
        return path, (path / "name").read_text(), [entry.name for entry in path.iterdir()]

    async def main():
        return await asyncio.gather(*(handler(number, None) for number in range(20)))

    results = asyncio.run(main())
    assert [text for _, text, _ in results] == [str(number) for number in range(20)]
    assert len({path for path, _, _ in results}) == 20
    assert all(names == ["name"] for _, _, names in results)
    assert trash_is_empty(root)
    assert not any(path.exists() for path, _, _ in results)


def test_a_task_left_pending_is_cancelled_and_reported(caplog):
    cancelled = []

    async def stays():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    @isolated
    async def handler(event, context):
        task = asyncio.create_task(stays(), name="poller")
        await asyncio.sleep(0)
        return task.get_name()

    assert call(handler) == "poller"
    assert cancelled == [True]
    assert "cancelled: task poller" in caplog.text


def test_a_task_that_exits_the_process_ends_the_invocation_and_nothing_else():
    finished = []

    async def exits():
        sys.exit(1)

    @isolated
    async def handler(event, context):
        task = asyncio.create_task(exits())
        try:
            await asyncio.sleep(60)
        finally:
            finished.append(task.done())

    with pytest.raises(HandlerExited, match="SystemExit: 1"):
        call(handler)
    assert finished == [True]


def test_async_cleanups_are_awaited_before_the_answer():
    order = []

    async def close(name):
        await asyncio.sleep(0)
        order.append((name, current().scratch.exists()))

    @isolated
    async def handler(event, context):
        current().defer(close, "first")
        current().defer(close, "second")

    call(handler)
    assert order == [("second", True), ("first", True)]


def test_a_sync_function_that_returns_a_coroutine_is_run_too():
    async def handler(event, context):
        return current().request_id

    assert len(call(isolated(lambda event, context: handler(event, context)))) == 36


def test_a_forked_child_that_comes_back_through_the_handler_cleans_up_nothing_of_its_parents(root):
    @isolated
    def handler(event, context):
        path = scratch()
        (path / "parents").write_text("data")
        pid = os.fork()
        if pid == 0:
            return "child"
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        return (path / "parents").read_text()

    answer = handler({}, None)
    if answer == "child":
        os._exit(7)
    assert answer == "data"


def test_a_forked_childs_own_invocations_use_a_directory_of_its_own(root):
    @isolated
    def handler(event, context):
        return scratch()

    def in_child(pipe: int) -> None:
        path = handler({}, None)
        os.write(pipe, str(path.parent).encode())

    parents = handler({}, None).parent
    reader, writer = os.pipe()
    if os.fork() == 0:
        in_child(writer)
        os._exit(0)
    os.wait()
    childs = Path(os.read(reader, 1000).decode())
    assert childs != parents
    assert childs.parent == parents.parent == root


def test_a_signal_that_interrupts_the_cleanup_leaves_no_step_out(root):
    """SIGALRM's handler raises in a deferred cleanup: directory, environment and cwd are put back all the same."""

    def interrupts(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupts)
    cwd = Path.cwd()
    seen = []
    try:

        @isolated
        def handler(event, context):
            seen.append(scratch())
            os.chdir(scratch())
            os.environ["LEAK"] = "1"
            (scratch() / "a").touch()
            current().defer(signal.raise_signal, signal.SIGALRM)
            return "answer"

        assert handler({}, None) == "answer"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert Path.cwd() == cwd
    assert "LEAK" not in os.environ
    assert trash_is_empty(root)
    assert not seen[0].exists()


def test_threads_in_one_process_see_only_their_own_invocation(root):
    foreign = []
    workers = 16
    barrier = threading.Barrier(workers)

    @isolated
    def handler(event, context):
        path = scratch()
        if list(path.iterdir()):
            foreign.append(list(path.iterdir()))
        (path / "same-name").write_text(event)
        if (path / "same-name").read_text() != event:
            foreign.append(event)

    def serve(number: int) -> None:
        barrier.wait()
        for turn in range(50):
            handler(f"{number}-{turn}", None)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert foreign == []
    assert trash_is_empty(root)
    (home,) = root.iterdir()
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_after_somebody_swept_the_root_the_next_invocation_has_a_directory_again(root):
    @isolated
    def handler(event, context):
        (scratch() / "a").write_text("x")
        return (scratch() / "a").read_text()

    assert handler({}, None) == "x"
    os.rename(root, root.with_name("swept"))
    assert handler({}, None) == "x"
    assert handler({}, None) == "x"


class TestRoot:
    def call(self):
        @isolated
        def handler(event, context):
            return str(scratch())

        return handler({}, None)

    def test_it_is_made_with_mode_0700(self, root):
        assert self.call().startswith(str(root))
        assert stat.S_IMODE(root.stat().st_mode) == 0o700

    def test_a_missing_parent_is_named(self, root, monkeypatch):
        monkeypatch.setenv("PERINVOKE_ROOT", str(root / "deeper" / "still"))
        with pytest.raises(RootError, match=r"deeper/still: No such file or directory\. Its parent must exist"):
            self.call()

    def test_a_symlink_is_refused(self, root, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        root.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RootError, match="symbolic link"):
            self.call()

    def test_a_file_is_refused(self, root):
        root.write_text("")
        with pytest.raises(RootError, match="not a directory"):
            self.call()

    def test_one_that_others_may_write_to_is_refused(self, root):
        root.mkdir()
        root.chmod(0o777)
        with pytest.raises(RootError, match=r"mode 0777\)\. Run: chmod go-w"):
            self.call()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
    def test_somebody_elses_is_refused(self, root):
        root.mkdir(mode=0o700)
        os.chown(root, 65534, 65534)
        with pytest.raises(RootError, match="belongs to user 65534"):
            self.call()

    @pytest.mark.parametrize("value", ["", "relative/path", "~"])
    def test_a_value_that_is_no_absolute_path_is_an_error_at_init(self, value, monkeypatch):
        monkeypatch.setenv("PERINVOKE_ROOT", value)
        with pytest.raises(SettingError, match="PERINVOKE_ROOT is .*; allowed is an absolute path") as caught:
            isolated(lambda event, context: None)
        assert (caught.value.setting, caught.value.value) == ("PERINVOKE_ROOT", value)

    def test_an_error_leaves_the_process_ready_for_the_next_invocation(self, root):
        root.write_text("")
        for _ in range(2):
            with pytest.raises(RootError):
                self.call()
        root.unlink()
        assert self.call().startswith(str(root))

    @pytest.mark.parametrize("request_id", ["../../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000, "é\n", ".."])
    def test_a_request_id_is_never_part_of_a_path(self, root, request_id):
        @isolated
        def handler(event, context):
            return current().request_id, scratch()

        answer, path = handler({}, SimpleNamespace(aws_request_id=request_id))
        assert answer == request_id
        assert path.parent.parent == root


def test_a_full_disk_is_no_error_for_a_handler_without_files_and_a_clear_one_for_the_others(root, monkeypatch):
    @isolated
    def without_files(event, context):
        return os.environ["TMPDIR"]

    @isolated
    def with_files(event, context):
        return scratch()

    real = os.mkdir

    def full(path, *args, **kwargs):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(os, "mkdir", full)
    assert not Path(without_files({}, None)).exists()
    with pytest.raises(ScratchFull, match="no space left on device.*Write less at once"):
        with_files({}, None)
    monkeypatch.setattr(os, "mkdir", real)
    assert with_files({}, None).parent.parent == root


def full_disk(path: str | None = None, *more: object) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", path, *more)


class TestFullDisk:
    def handle(self, error: Exception) -> Any:
        @isolated
        def handler(event, context):
            (scratch() / "mine").write_bytes(b"x" * 100_000)
            raise error

        return handler({}, None)

    def test_the_systems_error_becomes_one_that_tells_who_fills_the_disk(self, root):
        error = full_disk()
        with pytest.raises(ScratchFull, match=rf"met OSError: no space left.*worker {os.getpid()} \(this one\) 1") as caught:
            self.handle(error)
        assert caught.value.__cause__ is error
        assert caught.value.path == str(root)
        assert dict(caught.value.largest)[f"worker {os.getpid()} (this one)"] >= 100_000

    def test_that_of_an_async_handler_too(self, root):
        @isolated
        async def handler(event, context):
            await asyncio.to_thread((scratch() / "mine").write_text, "x")
            raise full_disk()

        async def scenario() -> None:
            await handler({}, None)

        with pytest.raises(ScratchFull):
            _ = handler({}, None)
        with pytest.raises(ScratchFull):
            asyncio.run(scenario())

    def test_one_of_another_file_system_stays_as_it_is(self, root):
        error = full_disk("/proc/self/status")
        with pytest.raises(OSError, match="No space left on device: '/proc/self/status'") as caught:
            self.handle(error)
        assert caught.value is error

    def test_one_that_could_be_any_disks_stays_as_it_is_while_this_one_has_space(self, root):
        @isolated
        def handler(event, context):
            with open("/dev/full", "w") as full:
                full.write("x")

        path = shared_file("k", lambda path: path.write_text("x"))
        with pytest.raises(OSError, match="No space left on device") as caught:
            handler({}, None)
        assert type(caught.value) is OSError
        assert path.exists()

    def test_a_group_and_a_tree_that_could_not_be_copied_count(self, root, tmp_path):
        with pytest.raises(ScratchFull):
            self.handle(ExceptionGroup("several", [ValueError(), full_disk()]))
        with pytest.raises(ScratchFull):
            self.handle(shutil.Error([("from", "to", str(full_disk("to")))]))

    def test_the_handlers_own_error_stays_whatever_it_comes_from(self, root):
        error = ValueError("could not be stored")
        error.__cause__ = full_disk()
        with pytest.raises(ValueError, match="could not be stored"):
            self.handle(error)

    def test_a_copy_to_this_file_system_counts_wherever_it_comes_from(self, root):
        with pytest.raises(ScratchFull):
            self.handle(full_disk("/proc/self/status", None, str(root / "copy")))

    @pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), ValueError("no space left on device"), OSError("28")])
    def test_any_other_error_stays_as_it_is(self, root, error):
        with pytest.raises(type(error)) as caught:
            self.handle(error)
        assert caught.value is error

    def test_what_nobody_uses_is_removed_so_that_the_next_may_succeed(self, root):
        @isolated
        def shares(event, context):
            return shared_file("k", lambda path: path.write_text("x"))

        path = shares({}, None)
        assert path.exists()
        with pytest.raises(ScratchFull):
            self.handle(full_disk())
        assert not path.exists()


def test_signals_at_random_moments_of_the_end_leave_nothing_undone(root):
    """A time-out that strikes while an invocation is ending: the next one must find the worker as if nothing had happened."""
    script = """
import logging, os, random, signal
logging.disable()
from perinvoke import isolated, scratch, current, worker
from perinvoke.settings import read_settings
armed = False

def interrupts(signum, frame):
    if armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupts)

@isolated
def handler(event, context):
    (scratch() / "a").write_text("x")
    os.environ["LEAK"] = "1"
    os.chdir(scratch())
    current().defer(id, 1)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 2.5e-4))

cwd, interrupted = os.getcwd(), 0
for _ in range(3000):
    armed = True
    try:
        handler({}, None)
    except BaseException:
        interrupted += 1
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert worker.process.occupancy._running == []
    assert not worker.process.occupancy._lock.locked()
    assert "LEAK" not in os.environ and "TMPDIR" not in os.environ and os.getcwd() == cwd
kept = worker.process.worker(read_settings())
assert kept.trash.wait_empty(10)
left = [folder for folder, _, files in os.walk(os.environ["PERINVOKE_ROOT"]) if files]
# Between the rename into the trash and the note of it an interrupt loses a tree, in any Python code. The next worker finds it.
assert all("/trash/" in folder for folder in left) and len(left) < interrupted // 100, left
print(interrupted)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 300


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_one_nested_in_a_thread_or_task_does_not_touch_what_the_outer_one_does_meanwhile(kind, root):
    go_on = threading.Event()
    seen: dict[str, object] = {}

    @isolated
    def inner(event, context):
        os.environ["OF_INNER"] = "1"
        seen["child"] = subprocess.check_output(["sh", "-c", "printf %s $TMPDIR"]).decode() == str(scratch())
        assert go_on.wait(10)

    @isolated
    async def async_inner(event, context):
        seen["child"] = subprocess.check_output(["sh", "-c", "printf %s $TMPDIR"]).decode() == str(scratch())
        os.environ["OF_INNER"] = "1"
        await asyncio.sleep(0.01)

    def check() -> None:
        seen["mine"] = os.environ.get("MINE"), os.environ["TMPDIR"] == str(scratch())

    @isolated
    def outer(event, context):
        thread = threading.Thread(target=inner, args=({}, None))
        thread.start()
        os.environ["MINE"] = "1"
        go_on.set()
        thread.join()
        check()

    @isolated
    async def async_outer(event, context):
        task = asyncio.create_task(async_inner({}, None))
        await asyncio.sleep(0)
        os.environ["MINE"] = "1"
        await task
        check()

    call(outer if kind == "thread" else async_outer)
    assert seen == {"child": True, "mine": ("1", True)}
    assert "MINE" not in os.environ
    assert "OF_INNER" not in os.environ  # put back by the outer one, whose process it was


def test_one_nested_in_a_thread_that_outlives_the_outer_one_brings_nothing_back(root):
    go_on = threading.Event()
    threads = []

    @isolated
    def inner(event, context):
        assert go_on.wait(10)

    @isolated
    def outer(event, context):
        os.environ["SECRET"] = "of invocation 1"
        threads.append(threading.Thread(target=inner, args=({}, None)))
        threads[0].start()

    outer({}, None)
    go_on.set()
    threads[0].join()
    assert "SECRET" not in os.environ
    assert not os.environ.get("TMPDIR", "/").startswith(str(root))


def test_a_handler_decorated_during_an_invocation_uses_the_same_root(monkeypatch, tmp_path):
    monkeypatch.delenv("PERINVOKE_ROOT")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    handlers: list[Any] = []

    @isolated
    def router(event, context):
        if not handlers:
            handlers.append(isolated(lambda event, context: scratch()))
        return handlers[0](event, context)

    for _ in range(3):
        assert router({}, None).parent.parent == tmp_path / f"perinvoke-{os.geteuid()}"


def test_generators_are_refused_at_init():
    def generator(event, context):
        yield event

    with pytest.raises(HandlerError, match="is a generator"):
        isolated(generator)


def test_a_context_that_raises_when_asked_is_no_obstacle():
    class Context:
        aws_request_id = "r"

        def get_remaining_time_in_millis(self):
            raise RuntimeError("not in a test")

    assert isolated(lambda event, context: current().deadline.remaining_seconds())({}, Context()) == float("inf")


def test_a_cancellation_during_a_cleanup_is_not_swallowed():
    finished: list[str] = []

    @isolated
    async def handler(event, context):
        current().defer(finished.append, "the rest")
        current().defer(asyncio.sleep, 10)

    async def main():
        async with asyncio.timeout(0.1):
            await handler({}, None)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert finished == ["the rest"]


def test_a_task_that_refuses_to_be_cancelled_is_left_running_and_told(caplog):
    async def refuses():
        for _ in range(3):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass

    @isolated
    async def handler(event, context):
        asyncio.create_task(refuses(), name="stubborn")  # noqa: RUF006  # that it is left is the point
        await asyncio.sleep(0)

    thread = threading.Thread(target=call, args=(handler,))  # its loop ends with it, and takes the task along
    thread.start()
    thread.join()
    assert "left running: task stubborn" in caplog.text


def test_a_future_returned_in_a_running_loop_is_a_clear_error():
    async def main():
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(FixConfiguration, match="wrap the async function itself"):
            isolated(lambda event, context: future)({}, None)

    asyncio.run(main())
