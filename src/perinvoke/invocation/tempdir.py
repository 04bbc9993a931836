"""``tempfile`` and child processes' ``TMPDIR`` answer for the invocation that asks.

* Every function of ``tempfile`` asks ``tempfile._gettempdir`` for its directory. It is replaced by one that looks at the
  context first: right in every thread and task, and also for code that imported ``gettempdir`` by name. It is private, so its
  absence is survived: then the public two are replaced, which all of ``tempfile`` itself goes through as well.
* A child process takes ``TMPDIR`` from the process's environment. While one invocation has the process to itself, it is set
  there. Where invocations share the process, ``subprocess.Popen`` adds it to the environment of the child.
"""

from __future__ import annotations

import contextvars
import os
import signal
import sys

from perinvoke.errors import NotInInvocation
from perinvoke.invocation.context import running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import Popen
    from types import ModuleType
    from typing import Any

    from perinvoke.invocation.context import Invocation

# Where env stands among Popen's arguments after self; its order is part of its documentation and hasn't changed since 3.0.
_POSITION_OF_ENV = 10


def follow_invocations() -> None:
    """Make ``tempfile`` answer per invocation, if it is loaded; idempotent. Importing it here would cost a worker 12 ms."""
    _keep_multiprocessing_out()
    tempfile = sys.modules.get("tempfile")
    if tempfile is None or getattr(tempfile, "_follows_perinvoke", False):
        return
    try:
        tempfile.gettempdir()  # pinned now, while TMPDIR is still the process's own
    except OSError:
        pass  # no usable temp directory: the scratch may still be one
    names = ("_gettempdir",) if hasattr(tempfile, "_gettempdir") else ("gettempdir", "gettempdirb")
    for name in names:
        setattr(tempfile, name, _per_invocation(tempfile, getattr(tempfile, name)))
    tempfile._follows_perinvoke = True  # type: ignore[attr-defined]  # noqa: SLF001  # on the module, so it goes with a reload


def unpin(directory: str | None) -> None:
    """Let ``tempfile`` look for its directory again, if it found ``directory`` before it was taught to follow invocations."""
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None and directory is not None and tempfile.tempdir == directory:
        tempfile.tempdir = None


def _keep_multiprocessing_out() -> None:
    """Have ``multiprocessing`` make the directory that it keeps for the whole process outside any invocation's scratch."""
    util = sys.modules.get("multiprocessing.util")
    original = getattr(util, "get_temp_dir", None)
    if original is None or getattr(original, "_follows_perinvoke", False):
        return

    def get_temp_dir() -> Any:
        return contextvars.Context().run(original)  # an empty context, which belongs to no invocation

    get_temp_dir._follows_perinvoke = True  # type: ignore[attr-defined]  # noqa: SLF001
    util.get_temp_dir = get_temp_dir  # type: ignore[union-attr]


def follow_invocations_in_children() -> None:
    """Make ``subprocess`` hand each child its invocation's ``TMPDIR``; idempotent. For shared processes only."""
    import subprocess  # noqa: PLC0415  # cold start: 11 ms that a worker with a process to itself doesn't pay

    if getattr(subprocess.Popen, "_follows_perinvoke", False):
        return
    subprocess.Popen.__init__ = _with_tmpdir(subprocess.Popen.__init__)  # type: ignore[method-assign]
    subprocess.Popen._follows_perinvoke = True  # type: ignore[attr-defined]  # noqa: SLF001


def forget_directories_below(scratch: str) -> None:
    """Make ``multiprocessing`` forget the directory that it keeps for the whole process, if it lies in a scratch that goes now.

    Its util.get_temp_dir makes it once, for sockets, and removes it when the process exits. All of that is private; where it is
    otherwise, nothing happens.
    """
    module = sys.modules.get("multiprocessing.util")
    if module is None:
        return
    config = getattr(module.process.current_process(), "_config", {})
    directory = config.get("tempdir")
    if isinstance(directory, str) and directory.startswith(scratch + "/"):
        _end_forkserver(directory)
        del config["tempdir"]
        for finalizer in list(getattr(module, "_finalizer_registry", {}).values()):
            if directory in (getattr(finalizer, "_args", None) or ()):
                finalizer.cancel()


def _end_forkserver(directory: str) -> None:
    """End the fork server (Python 3.14's default) whose socket goes now: it would live on, and nobody could reach it."""
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    address = getattr(server, "_forkserver_address", None)
    if not isinstance(address, str) or not address.startswith(directory + "/"):
        return
    # It ends by itself when nobody holds its pipe any more; a child that was forked meanwhile does. Waiting for it has no bound.
    for step in (lambda: _kill_child(server._forkserver_pid), server._stop):  # noqa: SLF001
        try:
            step()
        except OSError:  # it is gone, and was waited for
            continue
    server._forkserver_pid = server._forkserver_address = None  # noqa: SLF001


def _kill_child(pid: int) -> None:
    if os.waitpid(pid, os.WNOHANG) == (0, 0):
        os.kill(pid, signal.SIGKILL)


def _per_invocation(tempfile: ModuleType, original: Callable[[], Any]) -> Callable[[], Any]:
    def gettempdir() -> Any:
        invocation = running()
        if invocation is None or _handler_chose(invocation, tempfile.tempdir):
            return original()
        try:
            path = invocation.scratch_directory.path()
        except NotInInvocation:  # it has just ended, and this thread outlives it
            return original()
        return os.fsencode(path) if original.__name__ == "gettempdirb" else path

    gettempdir.__name__ = original.__name__
    return gettempdir


def _handler_chose(invocation: Invocation, tempdir: str | None) -> bool:
    """Whether ``tempfile.tempdir`` was set by this handler: it holds for the invocation, and is put back when that ends."""
    state = invocation.process_state
    return invocation.claims_process and state is not None and tempdir != state.tempdir


def _with_tmpdir(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Popen[Any], *args: Any, **kwargs: Any) -> None:  # noqa: N807  # takes the place of Popen.__init__
        invocation = running()
        shared = invocation is not None and not invocation.claims_process
        if invocation is not None and shared:
            given = args[_POSITION_OF_ENV] if len(args) > _POSITION_OF_ENV else kwargs.get("env")
            env = dict(os.environ if given is None else given)
            if env.get("TMPDIR") == os.environ.get("TMPDIR"):  # else the handler chose one for its child
                env["TMPDIR"] = invocation.scratch_directory.path_for_child()
                if len(args) > _POSITION_OF_ENV:
                    args = (*args[:_POSITION_OF_ENV], env, *args[_POSITION_OF_ENV + 1 :])
                else:
                    kwargs["env"] = env
        original(self, *args, **kwargs)
        if invocation is not None and shared:
            invocation.processes.append(self.pid)

    return __init__
