"""PgBouncer and what watches over it: started, started again when it dies, drained at the end.

One thread and one ``poll``: PgBouncer's log, its end, a signal, the platform's event, a new password. While none of them has
come, it sleeps.
"""

from __future__ import annotations

import os
import select
import signal
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Self

from perinvoke.environment.connections.pgbouncer import FACTS, Facts, encode_facts
from perinvoke.errors import PgBouncerError, RootError
from perinvoke.exit_code import describe_exit
from perinvoke.pgbouncer.config import TLS_CA_FILE, tls_mode_for
from perinvoke.pgbouncer.directory import Directory
from perinvoke.pgbouncer.identity import identity_for_pgbouncer
from perinvoke.pgbouncer.ini import CERTIFICATES, INI, USERS, ini_text, users_text
from perinvoke.pgbouncer.log import Lines
from perinvoke.pgbouncer.process import Process
from perinvoke.pgbouncer.restarts import Restarts
from perinvoke.pgbouncer.rotation import Rotation

if TYPE_CHECKING:
    from perinvoke.pgbouncer.binary import Binary
    from perinvoke.pgbouncer.config import Config
    from perinvoke.pgbouncer.log import Log
    from perinvoke.pgbouncer.target import Database

_START_SECONDS = 10.0  # a thousand times what PgBouncer takes
_LOOK_SECONDS = 0.005  # how often its socket is tried meanwhile
_LAST_WORDS_SECONDS = 0.1  # for what it has written, when it has ended: the pipe's end comes with the process's
_MOST_READS = 16  # of its log at a time, 64 KiB each: there is more to do than to read
_MAX_CERTIFICATES_BYTES = 4_194_304  # RDS's bundle of all regions has 165 KB


class Cause(Enum):
    """Why ``serve`` has returned."""

    EVENT = auto()  # the platform's
    SIGNAL = auto()  # SIGTERM, SIGINT or SIGHUP


class Service:
    """One PgBouncer; lives as long as the extension. A context manager: its end leaves no process and no file.

    Raises:
        PerinvokeError: from entering: something it needs isn't there or isn't allowed.
    """

    def __init__(self, config: Config, database: Database, binary: Binary, log: Log, signals: int) -> None:
        self._config, self._database, self._binary, self._log = config, database, binary, log
        self._signals = signals  # becomes readable with each signal
        self._identity = identity_for_pgbouncer()
        self._restarts = Restarts()
        self._process: Process | None = None
        self._lines: Lines | None = None
        self._started_at = 0.0
        self._start_at: float | None = None  # when the next is to be started
        self._rotation = Rotation(config.secret, config.url, log)

    def __enter__(self) -> Self:
        self._directory = Directory(self._config.root, self._config.name, self._identity)
        try:
            self._write_files()
            self._start()
            self._wait_until_it_accepts()
            self._directory.write(FACTS, encode_facts(self.facts))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def facts(self) -> Facts:
        """What workers are told."""
        return Facts(
            name=self._config.name,
            socket_directory=self._directory.path,
            database=self._database.database,
            user=self._database.user,
            pool_mode=self._config.pool_mode,
            # In session mode the connection stays the client's own, whatever the version.
            prepared_statements=self._binary.prepares_statements or self._config.pool_mode == "session",
            version=self._binary.version,
            max_connections=self._config.max_connections,
            resets=self._config.resets,
        )

    def serve(self, event: int | None) -> Cause:
        """Watch until a signal comes, or the descriptor ``event`` becomes readable.

        Raises:
            PgBouncerError: it dies each time it is started.
        """
        while True:
            readable = self._wait(event, self._start_at)
            if self._signals in readable and _terminates(os.read(self._signals, 512)):
                return Cause.SIGNAL
            if event is not None and event in readable:
                return Cause.EVENT
            self._attend(readable)

    def drain(self, seconds: float) -> None:
        """Let queries that run come to their end, but no longer than ``seconds``; another signal ends the wait."""
        until = time.monotonic() + seconds
        process = self._process
        if process is None:
            return
        process.signal(signal.SIGINT)
        while not process.reap() and time.monotonic() < until:
            readable = self._wait(None, until)
            self._take_lines()
            if self._signals in readable and _terminates(os.read(self._signals, 512)):
                break
        if process.exit_code is None:
            self._log.write("WARN", f"queries were still running after {seconds:.1f} s of draining; they are cut off")

    def close(self) -> None:
        """End everything. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._forget_process()
        self._rotation.close()
        self._directory.close()

    # --- what happens ------------------------------------------------------------------------------------------------

    def _wait(self, event: int | None, until: float | None) -> set[int]:
        """The descriptors that have become readable; none when it is time for something else."""
        poll = select.poll()
        lines = None if self._lines is None else self._lines.fd
        for fd in (self._signals, event, lines, self._rotation.fd):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        times = [at for at in (until, self._rotation.until()) if at is not None]
        ready = poll.poll(max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else None)
        return {fd for fd, _ in ready}

    def _attend(self, readable: set[int]) -> None:
        self._take_lines()
        if self._process is not None and self._process.reap():
            self._died(self._process)
        if self._start_at is not None and time.monotonic() >= self._start_at:
            self._start_again()
        database = self._rotation.take(readable)
        if database is not None and database != self._database:
            self._change_to(database)

    def _died(self, process: Process) -> None:
        lived = time.monotonic() - self._started_at
        self._restarts.died(lived)
        how = describe_exit(process.exit_code or 0)
        if self._restarts.are_too_many():
            raise PgBouncerError(
                f"pgbouncer {how}, the {self._restarts.early_deaths}th time in a row within a second of its start. "
                f"Its last words: {self._log.last_lines()}",
                name=self._config.name,
            )
        delay = self._restarts.delay_seconds()
        when = "at once" if not delay else f"in {delay:g} s"
        self._log.write("WARN", f"pgbouncer {how} after {lived:.1f} s; it is started again {when}", event="pgbouncer_died")
        self._forget_process()
        self._start_at = time.monotonic() + delay

    def _start_again(self) -> None:
        try:
            self._start()
            self._start_at = None
        except OSError as error:  # no process, no descriptor, no memory for one: as if it had died at once
            self._restarts.died(0.0)
            if self._restarts.are_too_many():
                raise
            self._log.write("WARN", f"pgbouncer can't be started: {error}")
            self._start_at = time.monotonic() + self._restarts.delay_seconds()

    def _take_lines(self) -> None:
        if self._lines is None:
            return
        refused = False
        for _ in range(_MOST_READS):
            lines = self._lines.read()
            for line in lines:
                refused |= self._log.take(line)
            if not lines:
                break
        if self._lines.ended:
            self._lines = None
        if refused:
            self._rotation.login_refused()

    def _forget_process(self) -> None:
        if self._process is not None:
            self._take_lines()
            self._process.close()
        self._process = self._lines = None

    # --- start -------------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        has_certificates = self._config.tls_ca_file is not None
        tls_mode = tls_mode_for(self._database, self._config.tls_mode, has_ca_file=has_certificates)
        if self._config.tls_ca_file is not None:
            # A copy: PgBouncer's user may not be allowed to read it, nor its parser to have such a path.
            self._directory.write(CERTIFICATES, _certificates(self._config.tls_ca_file))
        self._directory.write(USERS, users_text(self._database))
        self._directory.write(INI, ini_text(self._config, self._database, self._binary, tls_mode))

    def _start(self) -> None:
        self._process = Process(self._binary, self._directory, self._identity)
        self._lines = Lines(self._process.output)
        self._started_at = time.monotonic()

    def _wait_until_it_accepts(self) -> None:
        assert self._process is not None
        until = self._started_at + _START_SECONDS
        while not self._process.accepts():
            if self._process.reap() or time.monotonic() > until:
                self._hear_last_words()
                code = self._process.exit_code
                how = (
                    f"takes no connections after {_START_SECONDS:g} s" if code is None else f"{describe_exit(code)} at its start"
                )
                raise PgBouncerError(f"pgbouncer {how}: {self._log.last_lines()}", name=self._config.name)
            time.sleep(_LOOK_SECONDS)
            self._take_lines()

    def _hear_last_words(self) -> None:
        until = time.monotonic() + _LAST_WORDS_SECONDS
        while self._lines is not None and time.monotonic() < until:
            self._take_lines()
            time.sleep(_LOOK_SECONDS)

    def _change_to(self, database: Database) -> None:
        """The secret says something else than before."""
        self._log.hide(database.password)
        self._database = database
        self._rotation.found_new()
        self._write_files()
        self._directory.write(FACTS, encode_facts(self.facts))
        if self._process is not None:
            self._process.signal(signal.SIGHUP)  # it reads its files again
        self._log.write("INFO", f"the secret {self._config.secret} has changed; pgbouncer uses what it says now")


def _terminates(numbers: bytes) -> bool:
    """Whether a signal among them asks for the end; the others only wake up."""
    return any(number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) for number in numbers)


def _certificates(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, encoding="ascii", errors="surrogateescape") as file:
            text = file.read(_MAX_CERTIFICATES_BYTES + 1)
    except OSError as error:
        raise RootError(
            f"{TLS_CA_FILE} is {path!r}, which can't be read: {error.strerror}. Check the path.", path=path
        ) from error
    if "-----BEGIN" not in text or len(text) > _MAX_CERTIFICATES_BYTES:
        raise RootError(f"{TLS_CA_FILE} is {path!r}, which holds no certificates in PEM form.", path=path)
    return text
