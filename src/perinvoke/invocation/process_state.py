"""What a process has only once: environment variables, working directory, umask, ``tempfile.tempdir``.

Noted when an invocation enters. An invocation that had the process to itself gets everything put back when it ends, so that the
next one on this worker starts as this one did. Where several invocations share the process, putting back would pull the ground
from under the others: what changed is left alone and reported.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

_TMPDIR = b"TMPDIR"
# The runtime itself sets it for every invocation, in thread mode while others run.
_PLATFORMS_OWN = b"_X_AMZN_TRACE_ID"


class ProcessState:
    """A note of the process as it is now; lives as long as an invocation.

    Taking it costs about 2 µs: ``os.environ``'s own dictionary is copied, because the mapping in front of it decodes every name
    and value. The umask can't be read without being set: for a moment it is the strictest one. So it is not noted where other
    invocations share the process.
    """

    __slots__ = ("_cwd", "_environ", "_exported", "_names", "_tmpdir", "_umask", "tempdir")

    def __init__(self, *, shared: bool) -> None:
        self._environ = os.environ
        self._names: dict[bytes, bytes] = dict(_raw(os.environ))
        self._cwd = _cwd()
        self._umask = None if shared else _umask()
        self.tempdir = current_tempdir()
        self._exported = False

    def export_tmpdir(self, directory: str) -> None:
        """Set ``TMPDIR`` for child processes, to be put back at the end."""
        self._tmpdir = self._names.get(_TMPDIR)
        self._exported = True
        self._names[_TMPDIR] = raw_directory = os.fsencode(directory)  # what the handler is expected to leave
        # What os.environ does, without encoding both again: the hot path of every invocation.
        _raw(self._environ)[_TMPDIR] = raw_directory
        os.putenv(_TMPDIR, raw_directory)

    def unexport_tmpdir(self) -> None:
        """Give ``TMPDIR`` the value it had before ``export_tmpdir``. Interrupted, it may be called again."""
        if not self._exported:
            return
        if self._tmpdir is None:
            _raw(self._environ).pop(_TMPDIR, None)
            os.unsetenv(_TMPDIR)
            self._names.pop(_TMPDIR, None)
        else:
            _raw(self._environ)[_TMPDIR] = self._tmpdir
            os.putenv(_TMPDIR, self._tmpdir)
            self._names[_TMPDIR] = self._tmpdir
        self._exported = False

    def put_back(self) -> list[str]:
        """Make the process what it was. Returns what the handler had changed, in words.

        Interrupted by a signal handler that raises, it may be called again: what is put back already stays so.
        """
        changed = []
        if os.environ is not self._environ:
            os.environ = self._environ  # noqa: B003  # a handler may bind the name to a copy
        if _raw(self._environ) != self._names:
            names = self._changed_names()
            self._put_back_names()
            changed.append(names)
        self.unexport_tmpdir()
        if self._umask is not None and (umask := os.umask(self._umask)) != self._umask:
            changed.append(f"umask {umask:04o}")
        if (cwd := _cwd()) != self._cwd:
            trouble = self._put_back_cwd()
            changed.append(f"working directory {cwd}{trouble}")
        if (tempdir := current_tempdir()) != self.tempdir:
            sys.modules["tempfile"].tempdir = self.tempdir  # type: ignore[attr-defined]
            changed.append(f"tempfile.tempdir {tempdir}")
        return changed

    def changes(self) -> list[str]:
        """What differs by now, in words; touches nothing. Another invocation of the process may be the one that changed it."""
        changed = []
        if _raw(os.environ) != self._names and (names := self._changed_names()):
            changed.append(names)
        if (cwd := _cwd()) != self._cwd:
            changed.append(f"working directory {cwd}")
        return changed

    def _changed_names(self) -> str:
        now = _raw(os.environ)
        names = [name for name in now.keys() | self._names.keys() if now.get(name) != self._names.get(name)]
        told = sorted(os.fsdecode(name) for name in names if name != _PLATFORMS_OWN)
        return "environment variable " + ", ".join(told) if told else ""

    def _put_back_names(self) -> None:
        # Through os.environb: it shares os.environ's dictionary, and is right too where a test has put a plain one in its place.
        now = dict(_raw(self._environ))
        for name in now.keys() - self._names.keys():
            del os.environb[name]
        for name, value in self._names.items():
            if now.get(name) != value:
                os.environb[name] = value

    def _put_back_cwd(self) -> str:
        if self._cwd is None:
            return ""
        try:
            os.chdir(self._cwd)
        except OSError as error:
            return f", and {self._cwd} can't be entered again: {error.strerror}"
        return ""


def current_tempdir() -> str | None:
    """``tempfile.tempdir``, without importing ``tempfile``."""
    tempdir: str | None = getattr(sys.modules.get("tempfile"), "tempdir", None)
    return tempdir


def _raw(environ: MutableMapping[str, str]) -> MutableMapping[bytes, bytes]:
    """The dictionary behind ``os.environ``; where an implementation has none, the public view of it, ten times slower."""
    return getattr(environ, "_data", os.environb)


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # the directory was removed under us
