"""Where a worker finds the PgBouncer that runs beside it, and what that one can do.

Below the root, ``pgbouncer/NAME/`` holds its unix socket and a note of its facts; ``pgbouncer/NAME.lock`` is locked for as long
as it, or the extension that watches over it, lives. Whoever can open the socket is let in: the same Unix user.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re

from perinvoke.environment.kernel_lock import LOCK_FILE
from perinvoke.errors import PgBouncerError, PgBouncerNotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIRECTORY = "pgbouncer"  # below the root
FACTS = "facts.json"
LOCK_SUFFIX = ".lock"
PORT = 6432  # only a part of the socket's name
SOCKET = f".s.PGSQL.{PORT}"  # as libpq forms it
MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less its final NUL
# Whom a client says it is, without a password: always the same, because a secret may name another database user tomorrow.
CLIENT_USER = "perinvoke"
POOL_MODES = ("transaction", "session")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,48}")
_RESERVED = "pgbouncer"  # the name of its console
_MAX_FACTS_BYTES = 65_536


class Facts:
    """One running PgBouncer, as the extension noted it down. Immutable; may be out of date as soon as it is read.

    Attributes:
        name: of the pool: also the database that a client has to ask PgBouncer for.
        socket_directory: what libpq calls the host.
        port: what libpq calls the port.
        database: the server's database behind it.
        user: the database's, who sessions belong to. A client calls itself otherwise: see ``client_arguments``.
        pool_mode: ``transaction`` or ``session``.
        prepared_statements: whether a driver may prepare statements on the server.
        version: PgBouncer's, such as ``1.24.1``.
        max_connections: to the server, at most.
        resets: after each transaction the session is as new; in session mode, when a client disconnects.
    """

    __slots__ = (
        "database",
        "max_connections",
        "name",
        "pool_mode",
        "port",
        "prepared_statements",
        "resets",
        "socket_directory",
        "user",
        "version",
    )
    name: str
    socket_directory: str
    port: int
    database: str
    user: str
    pool_mode: str
    prepared_statements: bool
    version: str
    max_connections: int
    resets: bool

    def __init__(
        self,
        *,
        name: str,
        socket_directory: str,
        database: str,
        user: str,
        pool_mode: str,
        prepared_statements: bool,
        version: str,
        max_connections: int,
        resets: bool,
    ) -> None:
        self.name = name
        self.socket_directory = socket_directory
        self.port = PORT
        self.database = database
        self.user = user
        self.pool_mode = pool_mode
        self.prepared_statements = prepared_statements
        self.version = version
        self.max_connections = max_connections
        self.resets = resets

    def __repr__(self) -> str:
        return f"Facts({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"

    def client_arguments(self) -> dict[str, str]:
        """What a client of libpq connects with, as its keywords."""
        return {"host": self.socket_directory, "port": str(self.port), "dbname": self.name, "user": CLIENT_USER}


# What the note holds, and of which type; the rest is told by where it lies.
_NOTED = {
    "database": str,
    "user": str,
    "pool_mode": str,
    "prepared_statements": bool,
    "version": str,
    "max_connections": int,
    "resets": bool,
}


def encode_facts(facts: Facts) -> str:
    """The note; ``parse_facts`` reads it."""
    return json.dumps({name: getattr(facts, name) for name in _NOTED})


def parse_facts(text: str, name: str, directory: str) -> Facts | None:
    """The facts of a note, or None where it is none. What a later version adds is left alone."""
    try:
        noted = json.loads(text)
    except ValueError:
        return None
    if not isinstance(noted, dict) or any(type(noted.get(field)) is not kind for field, kind in _NOTED.items()):
        return None
    fields: dict[str, Any] = {field: noted[field] for field in _NOTED}
    return Facts(name=name, socket_directory=directory, **fields)


def check_name(name: str) -> None:
    """See that a pool can have this name.

    Raises:
        PgBouncerError: it can't.
    """
    if not _NAME.fullmatch(name) or name == _RESERVED:
        raise PgBouncerError(
            f"a PgBouncer can't be named {name!r}; allowed are letters, digits, '-' and '_', up to 48 of them, and not "
            f"{_RESERVED!r}, which is its console. PERINVOKE_PGBOUNCER_NAME names it, 'default' unless set.",
            name=name,
        )


def socket_directory(root: str, name: str) -> str:
    """The directory of the unix socket of that name. Touches nothing.

    Raises:
        PgBouncerError: the name isn't allowed, or the path is too long for a unix socket.
    """
    check_name(name)
    directory = f"{root}/{DIRECTORY}/{name}"
    length = len(os.fsencode(f"{directory}/{SOCKET}"))
    if length > MAX_SOCKET_PATH_BYTES:
        raise PgBouncerError(
            f"the unix socket {directory}/{SOCKET} would have a path of {length} bytes, and Linux allows "
            f"{MAX_SOCKET_PATH_BYTES}. Set PERINVOKE_ROOT to a shorter one.",
            name=name,
        )
    return directory


def find(root: str, name: str) -> Facts:
    """The PgBouncer of that name that runs below the root. A few system calls; doesn't block, and doesn't connect.

    One that was killed counts as running while the extension starts it again: for that moment connections are refused.

    Raises:
        PgBouncerNotRunning: there is none; the message names those that there are.
        PgBouncerError: the name isn't allowed, or the path is too long for a unix socket.
    """
    directory = socket_directory(root, name)
    if not is_running(root, name):
        raise _not_running(root, name)
    text = _read(f"{directory}/{FACTS}")
    if text is None:
        raise _not_running(root, name)  # it is about to start, or to end
    facts = parse_facts(text, name, directory)
    if facts is None:
        raise PgBouncerError(
            f"{directory}/{FACTS} isn't what perinvoke-pgbouncer writes. Is the extension of another version than the workers?",
            name=name,
        )
    return facts


def is_running(root: str, name: str) -> bool:
    """Whether the extension lives, or its PgBouncer still does. Doesn't block."""
    try:
        fd = os.open(f"{root}/{DIRECTORY}/{name}{LOCK_SUFFIX}", LOCK_FILE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    try:
        # Shared: two workers that look at the same time must not take each other for the extension.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _not_running(root: str, name: str) -> PgBouncerNotRunning:
    try:
        found = sorted(
            entry.removesuffix(LOCK_SUFFIX) for entry in os.listdir(f"{root}/{DIRECTORY}") if entry.endswith(LOCK_SUFFIX)
        )
    except OSError:
        found = []
    others = [other for other in found if other != name and is_running(root, other)]
    there = f" There is {', '.join(others)}." if others else ""
    return PgBouncerNotRunning(
        f"no PgBouncer named {name!r} runs below {root}.{there} The extension perinvoke-pgbouncer starts one, under the name "
        "that PERINVOKE_PGBOUNCER_NAME says and below the same PERINVOKE_ROOT; locally: perinvoke run --extension pgbouncer",
        name=name,
        root=root,
    )


def _read(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, _MAX_FACTS_BYTES).decode(errors="replace")
    finally:
        os.close(fd)
