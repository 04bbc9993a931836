"""What the extension goes by: one frozen, checked ``Config``, read from the environment once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from perinvoke.environment.connections.pgbouncer import POOL_MODES, check_name
from perinvoke.errors import SettingError
from perinvoke.pgbouncer.target import SECRET, TLS_MODE, TLS_MODES, URL, parse_url
from perinvoke.settings import not_allowed, read_settings, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perinvoke.pgbouncer.target import Database, Target

_PREFIX = "PERINVOKE_PGBOUNCER_"
NAME = _PREFIX + "NAME"
MAX_CONNECTIONS = _PREFIX + "MAX_CONNECTIONS"
POOL_MODE = _PREFIX + "POOL_MODE"
RESET = _PREFIX + "RESET"
PATH = _PREFIX + "PATH"
TLS_CA_FILE = _PREFIX + "TLS_CA_FILE"
IDLE_SECONDS = _PREFIX + "IDLE_SECONDS"
WAIT_SECONDS = _PREFIX + "WAIT_SECONDS"

RESETS = ("always", "never")
# Arbitrary: a quarter of the workers that one vCPU has by default.
_DEFAULT_CONNECTIONS = 4
_MOST_CONNECTIONS = 1_000  # more than one PgBouncer, which is a single thread, keeps busy
# A minute, as for the connections that workers keep themselves.
_DEFAULT_IDLE_SECONDS = 60
# For a server that can't be reached, or connections that are all in use. Less than what callers wait, more than a failover within
# a cluster's proxy takes.
_DEFAULT_WAIT_SECONDS = 10
_MOST_SECONDS = 86_400


class Config(NamedTuple):
    """Lives as long as the extension. A tuple: the module ``dataclasses`` loads two MiB, which would stay beside the workers.

    Attributes:
        name: of the pool.
        root: the folder below which perinvoke keeps its files; not yet checked.
        url: what the URL says, if one is given.
        secret: the name or ARN of a secret, if one is given; a URL, or a secret, or both are.
        max_connections: to the server.
        pool_mode: ``transaction`` or ``session``.
        resets: a session is made as new after each transaction.
        path: PgBouncer's binary; None: it is looked for.
        tls_mode: None: as ``tls_mode_for`` decides.
        tls_ca_file: certificates to check the server's by, or None.
        idle_seconds: after so long an idle connection to the server is closed.
        wait_seconds: after so long a client that waits for a connection is told so.
        api_address: of the extensions API, ``host:port``; None where nobody plays Lambda.
        logs_as_json: the function's log format is JSON.
        log_level: the function's log level.
    """

    name: str
    root: str
    url: Target | None
    secret: str | None
    max_connections: int
    pool_mode: str
    resets: bool
    path: str | None
    tls_mode: str | None
    tls_ca_file: str | None
    idle_seconds: int
    wait_seconds: int
    api_address: str | None
    logs_as_json: bool
    log_level: str


def read_config(environ: Mapping[str, str] | None = None) -> Config:
    """Read it.

    Raises:
        SettingError: a value isn't allowed, or neither a URL nor a secret is given.
        PgBouncerError: the name isn't allowed.
    """
    environ = os.environ if environ is None else environ
    name = environ.get(NAME, "default")
    check_name(name)
    url, secret = environ.get(URL), environ.get(SECRET)
    if not url and not secret:
        raise SettingError(
            f"{URL} is not set, and neither is {SECRET}. Set the first to postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or the "
            "second to the name or ARN of a secret of Secrets Manager that RDS keeps.",
            setting=URL,
            value=url,
            allowed="a URL, or a secret instead",
        )
    target = parse_url(url) if url else None
    sslmode, sslrootcert = (target.tls_mode, target.tls_ca_file) if target else (None, None)
    return Config(
        name=name,
        root=read_settings(environ).root,
        url=target,
        secret=secret or None,
        max_connections=_number(environ, MAX_CONNECTIONS, "connections", _DEFAULT_CONNECTIONS, _MOST_CONNECTIONS),
        pool_mode=_one_of(environ, POOL_MODE, POOL_MODES) or POOL_MODES[0],
        resets=(_one_of(environ, RESET, RESETS) or RESETS[0]) == RESETS[0],
        path=_absolute(environ, PATH),
        tls_mode=_agreed(TLS_MODE, _one_of(environ, TLS_MODE, TLS_MODES), "sslmode", sslmode),
        tls_ca_file=_agreed(TLS_CA_FILE, _absolute(environ, TLS_CA_FILE), "sslrootcert", sslrootcert),
        idle_seconds=_number(environ, IDLE_SECONDS, "seconds", _DEFAULT_IDLE_SECONDS, _MOST_SECONDS),
        wait_seconds=_number(environ, WAIT_SECONDS, "seconds", _DEFAULT_WAIT_SECONDS, _MOST_SECONDS),
        api_address=environ.get("AWS_LAMBDA_RUNTIME_API") or None,
        logs_as_json=environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON",
        log_level=environ.get("AWS_LAMBDA_LOG_LEVEL", ""),
    )


def tls_mode_for(database: Database, asked: str | None, *, has_ca_file: bool) -> str:
    """How the way to the server is protected, where nothing else is asked for.

    Encrypted wherever it leaves the machine: a password and data must not cross a network in the open because nobody thought of
    it. Who the server is can be checked only against certificates, and those of RDS are in no system's own store: with a file of
    them it is checked, too.

    Raises:
        SettingError: the server is to be checked, and there is nothing to check it by.
    """
    if database.is_unix_socket:
        return "disable"
    if asked in ("verify-ca", "verify-full") and not has_ca_file:
        raise SettingError(
            f"{TLS_MODE} is {asked!r}, and {TLS_CA_FILE} doesn't say by which certificates. For RDS it is the file "
            "global-bundle.pem, which AWS publishes.",
            setting=TLS_CA_FILE,
            value=None,
            allowed="the path of a file with certificates",
        )
    if asked is not None:
        return asked
    if has_ca_file:
        return "verify-full"
    return "prefer" if database.is_local else "require"


def _number(environ: Mapping[str, str], name: str, unit: str, default: int, most: int) -> int:
    number = whole_number(environ, name, unit, default, least=1)
    if number > most:
        raise not_allowed(name, environ[name], f"a whole number of {unit} from 1 to {most}")
    return number


def _one_of(environ: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str | None:
    value = environ.get(name)
    if value is not None and value not in allowed:
        raise not_allowed(name, value, "one of " + ", ".join(allowed))
    return value


def _absolute(environ: Mapping[str, str], name: str) -> str | None:
    value = environ.get(name)
    if value is not None and (not value.startswith("/") or "\0" in value):
        raise not_allowed(name, value, "an absolute path")
    return value


def _agreed(name: str, value: str | None, parameter: str, in_url: str | None) -> str | None:
    """What the variable and the URL's parameter say; a contradiction is an error, lest the weaker one win."""
    if value is not None and in_url is not None and value != in_url:
        raise SettingError(
            f"{name} is {value!r}, and {parameter} in {URL} is {in_url!r}; give one of them.",
            setting=name,
            value=value,
            allowed=repr(in_url),
        )
    return value if value is not None else in_url
