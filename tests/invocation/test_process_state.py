from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from perinvoke import isolated, scratch

pytestmark = pytest.mark.usefixtures("root")


def test_environment_variables_are_put_back(monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("REMOVED", "before")
    before = dict(os.environ)

    @isolated
    def handler(event, context):
        os.environ["ADDED"] = "x"
        os.environ["CHANGED"] = "after"
        del os.environ["REMOVED"]
        os.environ["TMPDIR"] = "/elsewhere"
        os.environb[b"BYTES\xff"] = b"\xfe"

    handler({}, None)
    assert dict(os.environ) == before
    # and the process's own environment, which children get, says the same
    seen = subprocess.run(["/usr/bin/env", "-0"], capture_output=True, check=True).stdout
    of_child = dict(line.split(b"=", 1) for line in seen.split(b"\0") if line)
    for name in (b"ADDED", b"CHANGED", b"REMOVED", b"TMPDIR", b"BYTES\xff", b"KEPT"):
        assert of_child.get(name) == os.environb.get(name)


def test_a_rebound_environ_is_put_back():
    before = os.environ

    @isolated
    def handler(event, context):
        os.environ = {"ONLY": "this"}  # type: ignore[assignment]  # noqa: B003  # what some handlers' tests do

    handler({}, None)
    assert os.environ is before


def test_cleared_environment_comes_back():
    before = dict(os.environ)

    @isolated
    def handler(event, context):
        os.environ.clear()

    handler({}, None)
    assert dict(os.environ) == before


def test_working_directory_umask_and_tempdir_are_put_back(tmp_path):
    cwd = Path.cwd()
    umask = os.umask(0o022)
    os.umask(umask)
    tempdir = tempfile.tempdir

    @isolated
    def handler(event, context):
        os.chdir(tmp_path)
        os.umask(0o111)
        tempfile.tempdir = str(tmp_path)
        return tempfile.gettempdir()

    assert handler({}, None) == str(tmp_path)  # what the handler chose holds for it
    assert Path.cwd() == cwd
    assert os.umask(umask) == umask
    assert tempfile.tempdir == tempdir


def test_a_handler_that_removed_its_working_directory_is_brought_back():
    cwd = Path.cwd()

    @isolated
    def handler(event, context):
        gone = scratch() / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    handler({}, None)
    assert Path.cwd() == cwd


def test_what_is_put_back_is_no_warning(caplog):
    @isolated
    def handler(event, context):
        os.environ["ADDED"] = "x"

    with caplog.at_level(logging.DEBUG, "perinvoke"):
        handler({}, None)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert "put back: environment variable ADDED" in caplog.text


def test_a_python_child_and_an_executed_one_get_the_scratch_as_tmpdir(root):
    @isolated
    def handler(event, context):
        subprocess.run(["sh", "-c", 'echo x > "$TMPDIR/from-child"'], check=True)
        os.system('echo x > "$TMPDIR/from-system"')
        return sorted(entry.name for entry in scratch().iterdir())

    assert handler({}, None) == ["from-child", "from-system"]


class TestSharedProcess:
    """Several invocations at once in one process: announced by the platform, or found out."""

    @pytest.fixture(autouse=True)
    def thread_mode(self, monkeypatch):
        monkeypatch.setenv("AWS_LAMBDA_CONCURRENCY_MODE", "thread")
        monkeypatch.setenv("TMPDIR", "/tmp")

    def test_process_wide_things_are_left_alone_and_reported(self, caplog, monkeypatch, tmp_path):
        monkeypatch.chdir(Path.cwd())

        @isolated
        def handler(event, context):
            os.environ["LEFT"] = "x"
            os.chdir(tmp_path)

        handler({}, None)
        assert os.environ.pop("LEFT") == "x"
        assert Path.cwd() == tmp_path
        assert "left changed" in caplog.text
        assert "environment variable LEFT" in caplog.text
        assert f"working directory {tmp_path}" in caplog.text

    def test_children_get_the_scratch_as_tmpdir_and_the_process_does_not(self):
        @isolated
        def handler(event, context):
            assert os.environ["TMPDIR"] == "/tmp"
            print_tmpdir = ["sh", "-c", "printf %s $TMPDIR"]
            outputs = [
                subprocess.check_output(print_tmpdir),
                subprocess.check_output(print_tmpdir, env={**os.environ, "OTHER": "x"}),
                subprocess.check_output("printf %s $TMPDIR", shell=True),
                subprocess.Popen(
                    print_tmpdir, -1, None, None, subprocess.PIPE, None, None, True, False, None, None
                ).communicate()[0],
            ]
            assert subprocess.check_output(print_tmpdir, env={**os.environ, "TMPDIR": "/chosen"}) == b"/chosen"
            return {output.decode() for output in outputs}, str(scratch())

        seen, own = handler({}, None)
        assert seen == {own}
        assert subprocess.check_output(["sh", "-c", "printf %s $TMPDIR"]) == b"/tmp"

    def test_one_that_is_joined_by_another_gives_up_its_claim(self, monkeypatch):
        """Found out, not announced: the first has exported TMPDIR when the second starts."""
        monkeypatch.delenv("AWS_LAMBDA_CONCURRENCY_MODE")
        first_in, second_done = threading.Event(), threading.Event()
        seen: dict[str, object] = {}

        @isolated
        def first(event, context):
            seen["exclusive"] = os.environ["TMPDIR"] == str(scratch())
            first_in.set()
            assert second_done.wait(10)
            seen["after"] = os.environ["TMPDIR"]
            seen["child"] = subprocess.check_output(["sh", "-c", "printf %s $TMPDIR"]).decode() == str(scratch())
            os.environ["FROM_FIRST"] = "x"

        @isolated
        def second(event, context):
            seen["second"] = os.environ["TMPDIR"], tempfile.gettempdir() == str(scratch())

        thread = threading.Thread(target=first, args=({}, None))
        thread.start()
        assert first_in.wait(10)
        second({}, None)
        second_done.set()
        thread.join()
        assert seen == {"exclusive": True, "second": ("/tmp", True), "after": "/tmp", "child": True}
        assert os.environ.pop("FROM_FIRST") == "x"


def test_a_plain_dictionary_in_place_of_the_environment_is_no_obstacle(monkeypatch):
    """unittest.mock.patch("os.environ", {...}) in somebody's test."""
    before = dict(os.environb)
    monkeypatch.setattr(os, "environ", {"ONLY": "this"})

    @isolated
    def handler(event, context):
        os.environ["ADDED"] = "x"
        os.environb[b"ADDED"] = b"x"
        return "answer"

    assert handler({}, None) == "answer"
    assert dict(os.environb) == before
