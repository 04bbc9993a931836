"""What PgBouncer is told: its configuration and its file of users, as text. Pure.

The password stands only in the file of users: PgBouncer repeats lines of its configuration in its log. Its parsers know no escape
for a line's end, in either file's quotes: in the users' file it may stand as it is, in the configuration it can't, so
``target.complete`` refuses it in what goes there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perinvoke.environment.connections.pgbouncer import CLIENT_USER, PORT
from perinvoke.environment.connections.server_side import DEAD_CLIENT_CHECK_MS

if TYPE_CHECKING:
    from perinvoke.pgbouncer.binary import Binary
    from perinvoke.pgbouncer.config import Config
    from perinvoke.pgbouncer.target import Database

# Names within the directory in which PgBouncer works.
INI = "pgbouncer.ini"
USERS = "users.txt"
CERTIFICATES = "ca.pem"

# Clients, of all workers together. PgBouncer takes two KiB for each when they are needed, and a file descriptor.
MAX_CLIENTS = 2_000
# A connection to the server, its TLS and its login; across regions it takes half of one.
_CONNECT_SECONDS = 3
# PgBouncer's own 15 s would let callers wait that long for a server which is back. It takes fractions.
_RETRY_SECONDS = 0.1
# Of the time that a client waits for a server that was never reached: PgBouncer then says that it is down, and not only that the
# client has waited.
_LOGIN_SHARE = 0.95
# As the connections that workers keep themselves: load balancers want them to end now and then.
_MAX_AGE_SECONDS = 1_800
# A peer that is gone without a word is noticed after 25 s of silence, or when data is not acknowledged for 15 s.
_KEEP_ALIVE = {"tcp_keepalive": 1, "tcp_keepidle": 10, "tcp_keepintvl": 5, "tcp_keepcnt": 3, "tcp_user_timeout": 15_000}
# How many statements a connection keeps prepared. PgBouncer's own default since 1.24.
_PREPARED_STATEMENTS = 200

# How often PostgreSQL, from 14 on, looks whether anybody still waits for the statement that it runs. PgBouncer hangs up on the
# server when a worker dies in the middle of one, and connects anew; until the server notices, it has one connection more. It
# refuses this on other systems than Linux.
_CHECK = "client_connection_check_interval"
_CHECK_CLIENT = (
    f"CASE WHEN pg_catalog.current_setting('{_CHECK}', true) IS NOT NULL AND pg_catalog.version() LIKE '%linux%' "
    f"THEN pg_catalog.set_config('{_CHECK}', '{DEAD_CLIENT_CHECK_MS}', false) END"
)

# What DISCARD ALL does, in pieces, less its plans. RESET ALL comes first: were there a statement_timeout, it would hold for what
# follows. In one transaction: PgBouncer looks at nothing but whether one is left open, so where a piece fails it must be.
# Without plans because PgBouncer, where it can, keeps a driver's prepared statements, and knows which connection has which.
_RESET = (
    "BEGIN",
    "RESET ALL",
    "SET SESSION AUTHORIZATION DEFAULT",
    "CLOSE ALL",
    "UNLISTEN *",
    f"SELECT pg_catalog.pg_advisory_unlock_all(), {_CHECK_CLIENT}",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
)
_RESET_PLANS = "DEALLOCATE ALL"


def ini_text(config: Config, database: Database, binary: Binary, tls_mode: str) -> str:
    """The configuration, for a PgBouncer that works in the directory of its files.

    Paths are relative, because where the extension runs as root, PgBouncer doesn't, and can't go through the root's folders.
    """
    seconds = config.wait_seconds
    settings: dict[str, object] = {
        "unix_socket_dir": ".",
        "unix_socket_mode": "0700",
        "listen_port": PORT,  # of the socket's name; there is no listen_addr, and so nothing listens on TCP
        # Who can open the socket is the same Unix user. A password would cost each connection some milliseconds of hashing.
        "auth_type": "trust",
        "auth_file": USERS,
        "admin_users": CLIENT_USER,
        "pool_mode": config.pool_mode,
        "default_pool_size": config.max_connections,
        "max_db_connections": config.max_connections,
        "max_client_conn": MAX_CLIENTS,
        "server_reset_query": reset_query(config, binary),
        "server_reset_query_always": int(config.resets),
        "server_idle_timeout": config.idle_seconds,
        "server_lifetime": _MAX_AGE_SECONDS,
        "server_connect_timeout": _CONNECT_SECONDS,
        "server_login_retry": _RETRY_SECONDS,
        "dns_nxdomain_ttl": 1,
        "query_wait_timeout": seconds,
        "client_login_timeout": round(seconds * _LOGIN_SHARE, 2),
        # JDBC and others send it; the server's own value prints floats in full. Others change what a session does, and leaving
        # them out in silence would be worse than PgBouncer's error.
        "ignore_startup_parameters": "extra_float_digits",
        "log_connections": 0,
        "log_disconnections": 1,  # why one to the server could not be had is told nowhere else
        "log_stats": 0,
        "server_tls_sslmode": tls_mode,
        **_KEEP_ALIVE,
    }
    if tls_mode in ("verify-ca", "verify-full"):
        settings["server_tls_ca_file"] = CERTIFICATES
    if binary.prepares_statements:
        settings["max_prepared_statements"] = _PREPARED_STATEMENTS
    where = {"host": database.host, "port": database.port, "dbname": database.database, "user": database.user}
    first = {"connect_query": f"SELECT {_CHECK_CLIENT}"}
    connection = " ".join(f"{key}={_quoted(str(value))}" for key, value in {**where, **first}.items())
    lines = ["[databases]", f"{config.name} = {connection}", "[pgbouncer]", *(f"{key} = {settings[key]}" for key in settings)]
    return "\n".join([*lines, ""])


def reset_query(config: Config, binary: Binary) -> str:
    """What makes a session as new; one simple query."""
    keeps_plans = binary.prepares_statements and config.pool_mode == "transaction"
    return "; ".join([*_RESET, *(() if keeps_plans else (_RESET_PLANS,)), "COMMIT"])


def users_text(database: Database) -> str:
    """The file of users: the database's with the password, and whom clients call themselves."""
    users = {CLIENT_USER: "", database.user: database.password}
    return "".join(f"{_double_quoted(user)} {_double_quoted(password)}\n" for user, password in users.items())


def _double_quoted(value: str) -> str:
    doubled = value.replace('"', '""')
    return f'"{doubled}"'


def _quoted(value: str) -> str:
    """A value of a connection string. Its only special character is the quote."""
    doubled = value.replace("'", "''")
    return f"'{doubled}'"
