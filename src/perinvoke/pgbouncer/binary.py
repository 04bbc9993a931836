"""PgBouncer's binary: where it is, and which version."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from perinvoke.errors import PgBouncerError
from perinvoke.pgbouncer.config import PATH

if TYPE_CHECKING:
    from collections.abc import Mapping

# After the PATH: where a layer puts it, and where Debian does, which isn't in every user's PATH.
_FOLDERS = ("/opt/bin", "/usr/sbin", "/usr/local/sbin", "/usr/local/bin")
_FILE = "pgbouncer"
_VERSION = re.compile(r"PgBouncer (\d+)\.(\d+)\S*", re.ASCII)
_OLDEST = (1, 16)  # with max_db_connections that holds, TLS, SCRAM and tcp_user_timeout; older ones aren't tried
_PREPARES_SINCE = (1, 21)
_VERSION_SECONDS = 5.0  # a thousand times what it takes


class Binary(NamedTuple):
    """A PgBouncer that can be used."""

    path: str
    version: str
    numbers: tuple[int, int]

    @property
    def prepares_statements(self) -> bool:
        """Whether prepared statements work where transactions share connections."""
        return self.numbers >= _PREPARES_SINCE


def find_binary(path: str | None, environ: Mapping[str, str] | None = None) -> Binary:
    """The binary at ``path``, or the one that is found. Runs it once to ask for its version.

    Raises:
        PgBouncerError: there is none, or it can't be used; the message says how to get one.
    """
    found = path if path is not None else _look_for(os.environ if environ is None else environ)
    if found is None:
        raise PgBouncerError(
            f"there is no pgbouncer, neither in the PATH nor in {', '.join(_FOLDERS)}. Install it (apt-get install pgbouncer), "
            f"put it into the layer or image as /opt/bin/pgbouncer, or say where it is with {PATH}",
            path=None,
        )
    if not os.path.isfile(found):  # noqa: PTH113 - a text, as everywhere here
        raise _unusable(
            found,
            "is not there (apt-get install pgbouncer brings one, as /usr/sbin/pgbouncer)"
            if not os.path.lexists(found)
            else "is not a file",
        )
    if not os.access(found, os.X_OK):
        raise _unusable(found, f"is not executable. Run: chmod +x {found}")
    return _with_version(found)


def _look_for(environ: Mapping[str, str]) -> str | None:
    folders = [*filter(os.path.isabs, environ.get("PATH", "").split(os.pathsep)), *_FOLDERS]
    files = (f"{folder}/{_FILE}" for folder in folders)
    return next((file for file in files if os.path.isfile(file) and os.access(file, os.X_OK)), None)  # noqa: PTH113


def _with_version(path: str) -> Binary:
    try:
        done = subprocess.run(  # noqa: S603 - it is what is going to be run
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_VERSION_SECONDS,
            check=False,
            env=child_variables(os.environ),
        )
    except subprocess.TimeoutExpired:
        raise _unusable(path, f"has not told its version within {_VERSION_SECONDS:g} s") from None
    except OSError as error:
        raise _unusable(path, f"can't be run: {error.strerror}. Is it built for this machine?") from error
    printed = done.stdout.decode(errors="replace").strip()
    version = _VERSION.match(printed)
    if version is None:
        raise _unusable(path, f"is no PgBouncer, or one that lacks a library: asked for its version it said {printed[:200]!r}")
    numbers = int(version[1]), int(version[2])
    if numbers < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise _unusable(path, f"is PgBouncer {version[0].split()[1]}, and {oldest} is the oldest that can be used")
    return Binary(path, version[0].split()[1], numbers)


def child_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What PgBouncer may know of the environment: where libraries are, and neither passwords nor credentials."""
    kept = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "RES_OPTIONS", "LOCALDOMAIN")
    return {name: environ[name] for name in kept if name in environ}


def _unusable(path: str, why: str) -> PgBouncerError:
    return PgBouncerError(f"{path} can't be used as pgbouncer: it {why}. {PATH} says where another one is.", path=path)
