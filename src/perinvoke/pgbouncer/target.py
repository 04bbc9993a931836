"""The database that PgBouncer connects to: read from a URL, from a secret's fields, or from both. Pure.

No error tells a password, nor what could hold one: of a URL that can't be read only its form is shown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from perinvoke.errors import SecretError, SettingError
from perinvoke.settings import not_allowed

if TYPE_CHECKING:
    from collections.abc import Mapping

URL = "PERINVOKE_PGBOUNCER_URL"
SECRET = "PERINVOKE_PGBOUNCER_SECRET"  # noqa: S105 - the variable's name
TLS_MODE = "PERINVOKE_PGBOUNCER_TLS_MODE"
TLS_MODES = ("disable", "prefer", "require", "verify-ca", "verify-full")

_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require, with what is special written in percent signs"
_SCHEME = re.compile(r"postgres(ql)?(\+\w+)?", re.ASCII)  # a driver may stand in it, as SQLAlchemy writes it
_PARAMETERS = ("sslmode", "sslrootcert", "host", "port")
_DEFAULT_PORT = 5432
_MAX_PORT = 65_535
_MAX_NAME_BYTES = 63  # NAMEDATALEN - 1, PostgreSQL's limit, and PgBouncer's
_MAX_PASSWORD_BYTES = 1_900  # PgBouncer has room for 2,048 in its file, quotes included
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1", re.ASCII)
_ENGINE = re.compile(r"(aurora-)?postgres(ql)?", re.ASCII)  # in RDS's secrets
# What PgBouncer takes for a hash instead of the password itself.
_LIKE_A_HASH = re.compile(r"md5[0-9a-f]{32}|SCRAM-SHA-256\$.*", re.ASCII | re.DOTALL)


class Target(NamedTuple):
    """A database, as far as it is known; None is what isn't. Its ``repr`` doesn't tell the password."""

    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    password: str | None = None
    tls_mode: str | None = None
    tls_ca_file: str | None = None

    def __repr__(self) -> str:
        return f"<Target {self.user}@{self.host}:{self.port}/{self.database}>"


class Database(NamedTuple):
    """A database, complete. Its ``repr`` doesn't tell the password."""

    host: str
    port: int
    database: str
    user: str
    password: str

    def __repr__(self) -> str:
        return f"<Database {self.user}@{self.host}:{self.port}/{self.database}>"

    @property
    def is_unix_socket(self) -> bool:
        """Whether the host is a directory, or an abstract name."""
        return self.host.startswith(("/", "@"))

    @property
    def is_local(self) -> bool:
        """Whether what goes there never leaves the machine."""
        return self.is_unix_socket or bool(_LOOPBACK.fullmatch(self.host.lower()))


def parse_url(url: str) -> Target:
    """What a URL says.

    Raises:
        SettingError: it can't be understood, or says something that PgBouncer can't do.
    """
    try:
        parts = urlsplit(url)
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), errors="strict"))
        host = given.get("host") or _unquoted(parts.hostname)
        target = Target(
            host=host,
            port=_port(given["port"]) if "port" in given else parts.port,
            database=_unquoted(parts.path[1:]),
            user=_unquoted(parts.username),
            password=_unquoted(parts.password),
            tls_mode=given.get("sslmode"),
            tls_ca_file=given.get("sslrootcert"),
        )
    except ValueError:  # an address in brackets that is none, a port that is no number, percent signs that aren't UTF-8
        raise _bad_url(url) from None
    if not _SCHEME.fullmatch(url.partition("://")[0]) or "#" in url or _CONTROL.search(url) or url.endswith(" "):
        raise _bad_url(url)
    _check_parameters(given)
    return target


def parse_secret(secret: str, fields: Mapping[str, object]) -> Target:
    """What a secret of RDS's form says.

    Raises:
        SecretError: a field has a value that isn't allowed, or the secret is another kind of database's.
    """
    engine = fields.get("engine")
    if engine is not None and not (isinstance(engine, str) and _ENGINE.fullmatch(engine)):
        raise bad_field(secret, "engine", "is of another kind of database; PgBouncer speaks with PostgreSQL only")
    try:
        port = None if fields.get("port") is None else _port(fields["port"])
    except ValueError:
        raise bad_field(secret, "port", "is no port, 1 to 65535") from None
    return Target(
        host=_text(secret, fields, "host"),
        port=port,
        database=_text(secret, fields, "dbname"),
        user=_text(secret, fields, "username"),
        password=_text(secret, fields, "password"),
    )


def complete(url: Target | None, secret: Target | None, secret_name: str = "") -> Database:
    """Join both: a secret says who, and the URL where, as far as it does.

    Raises:
        SettingError: both say who, or what is said can't be given to PgBouncer.
        SecretError: the secret is needed and doesn't say enough.
    """
    if url is not None and secret is not None and (url.password is not None or url.user is not None):
        raise SettingError(
            f"{URL} has a user or a password, and {SECRET} names a secret that has them; give one of them. Beside a secret the "
            "URL says where the database is: postgresql://HOST/DATABASE",
            setting=URL,
            value="",
            allowed="a URL without user and password",
        )
    where, there = url or Target(), secret or Target()
    who = where if secret is None else secret

    def needed(name: str, field_name: str, value: str | None) -> str:
        if value is not None:
            return value
        if secret is not None:
            raise bad_field(secret_name, field_name, "is missing" + ("" if url is None else f", and {URL} doesn't say it either"))
        raise SettingError(f"{URL} has no {name}; allowed is {_FORM}.", setting=URL, value="", allowed=_FORM)

    return Database(
        host=_checked_host(needed("host", "host", where.host or there.host)),
        port=where.port or there.port or _DEFAULT_PORT,
        database=_checked_name("database", needed("database", "dbname", where.database or there.database)),
        user=_checked_name("user", needed("user", "username", who.user)),
        # In a URL it may be missing: some servers ask for none.
        password=_checked_password(who.password or "" if secret is None else needed("password", "password", who.password)),
    )


def bad_field(secret: str, name: str, what: str) -> SecretError:
    """The error for a field of a secret."""
    return SecretError(
        f"the field {name!r} of the secret {secret} {what}. {SECRET} names a secret in the form that RDS gives its own: a JSON "
        'object with "username", "password", "host", "port" and "dbname".',
        secret=secret,
        field=name,
    )


def without_password(url: str) -> str:
    """A URL for people to read: what stands before the last ``@`` is left out, and all of it where there is none."""
    scheme, separator, rest = url.partition("://")
    if not separator or "@" not in rest or not _SCHEME.fullmatch(scheme):
        return f"<{len(url)} characters that aren't shown, because a password may be among them>"
    return f"{scheme}://***@{rest.rpartition('@')[2].partition('?')[0]}"


def _bad_url(url: str) -> SettingError:
    return not_allowed(URL, without_password(url), _FORM)


def _unquoted(text: str | None) -> str | None:
    return unquote(text, errors="strict") if text else None


def _check_parameters(given: Mapping[str, str]) -> None:
    unknown = sorted(given.keys() - set(_PARAMETERS))
    if unknown:
        raise SettingError(
            f"{URL} has the parameter {', '.join(unknown)}, which PgBouncer would not pass on; allowed are "
            f"{', '.join(_PARAMETERS)}. What else a session needs can be set for the user: ALTER ROLE … SET.",
            setting=URL,
            value=", ".join(unknown),
            allowed=", ".join(_PARAMETERS),
        )
    mode = given.get("sslmode")
    if mode is not None and mode not in TLS_MODES:
        raise not_allowed(f"sslmode in {URL}", mode, "one of " + ", ".join(TLS_MODES))


def _port(value: object) -> int:
    """A port, as a number or in digits; else a ``ValueError``."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(_MAX_PORT)):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_PORT:
        raise ValueError
    return value


def _text(secret: str, fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise bad_field(secret, name, "is no text, or empty")
    return value


def _checked_host(host: str) -> str:
    if "," in host:
        raise _unusable("host", host, "is a list, and PgBouncer would take turns between its hosts whether they answer or not")
    return _checked_text("host", host)


def _checked_name(what: str, name: str) -> str:
    if len(name.encode(errors="surrogateescape")) > _MAX_NAME_BYTES:
        raise _unusable(what, name, f"has more than {_MAX_NAME_BYTES} bytes, which is PostgreSQL's limit")
    return _checked_text(what, name)


def _checked_text(what: str, text: str) -> str:
    if _CONTROL.search(text):
        raise _unusable(what, text, "has a control character, which PgBouncer's configuration can't hold")
    return text


def _checked_password(password: str) -> str:
    if "\0" in password:
        raise _unusable("password", None, "has a NUL")
    if len(password.replace('"', '""').encode(errors="surrogateescape")) > _MAX_PASSWORD_BYTES:
        raise _unusable("password", None, f"has more than {_MAX_PASSWORD_BYTES} bytes, which is PgBouncer's limit")
    if _LIKE_A_HASH.fullmatch(password):
        raise _unusable("password", None, "looks like a hash, and PgBouncer would take it for one")
    return password


def _unusable(what: str, value: str | None, why: str) -> SettingError:
    shown = "" if value is None else f" {value!r}"
    return SettingError(
        f"the database's {what}{shown} can't be given to PgBouncer: it {why}. Choose another {what}.",
        setting=what,
        value=value,
        allowed=f"another {what}",
    )
