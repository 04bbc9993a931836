"""The extension on its own: a process that runs the real PgBouncer, without a Lambda around it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
import pytest

from perinvoke.environment.connections.pgbouncer import Facts, find
from perinvoke.errors import PgBouncerError
from processes import MARK, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from databases import Postgres

SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin:/opt/bin"


class Extension:
    """``perinvoke-pgbouncer`` as a child process. Lives from ``with`` to its end, of which nothing is left."""

    def __init__(self, root: Path, url: str | None, **variables: str) -> None:
        self.root = root
        self.name = variables.get("PERINVOKE_PGBOUNCER_NAME", "default")
        self.mark = os.urandom(8).hex()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PERINVOKE_", "AWS_"))}
        self._env = {**inherited, "PERINVOKE_ROOT": str(root), MARK: self.mark, **variables}
        if url is not None:
            self._env["PERINVOKE_PGBOUNCER_URL"] = url
        self._log = root.with_name(f"{root.name}-{self.mark}.log")
        self.command = [sys.executable, "-m", "perinvoke.pgbouncer"]

    def __enter__(self) -> Self:
        self.start()
        try:
            # Its facts alone could be a predecessor's.
            wait_until(lambda: self.popen.poll() is not None or "is ready as" in self.output(), 20)
            assert self.popen.poll() is None, self.output()
        except BaseException:
            self.popen.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait(10)
        wait_until(lambda: not self.pgbouncers())

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(self.command, env=self._env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def run_to_its_end(self) -> int:
        """For one that is expected to fail: its exit code."""
        self.start()
        try:
            return self.popen.wait(40)
        finally:
            self.popen.kill()

    def is_ready(self) -> bool:
        try:
            return bool(self.facts)
        except PgBouncerError:
            return False

    @property
    def facts(self) -> Facts:
        return find(str(self.root), self.name)

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A client, as a worker is one: without statements prepared on the server where that can't be."""
        facts = self.facts
        threshold = 0 if facts.prepared_statements else None
        options = {"autocommit": True, "connect_timeout": 30, "prepare_threshold": threshold, **options}
        return psycopg.connect(**{**facts.client_arguments(), **options})

    def pgbouncers(self) -> list[int]:
        """The PgBouncers that work in this one's directory."""
        folder = f"{self.root}/pgbouncer/{self.name}"
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if os.readlink(entry / "cwd") == folder and b"pgbouncer.ini" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def kill_pgbouncer(self) -> int:
        """Kill it, and wait until the kernel is through with it."""
        [pid] = self.pgbouncers()
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], 10)[0]
        os.close(pidfd)
        return pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask for the end and wait for it; the exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(20)

    def output(self) -> str:
        return self._log.read_text()

    def records(self) -> list[dict[str, Any]]:
        """The log, where its format is JSON."""
        return [json.loads(line) for line in self.output().splitlines()]


@pytest.fixture(scope="session")
def pgbouncer() -> str:
    """The binary; skips where there is none."""
    path = shutil.which("pgbouncer") or shutil.which("pgbouncer", path=SYSTEM_FOLDERS)
    if path is None:
        pytest.skip("pgbouncer isn't installed: apt-get install pgbouncer")
    return path


@pytest.fixture
def extension(pgbouncer: str, tmp_path: Path) -> Callable[..., Extension]:
    """Makes an extension with a root of its own; its database's URL, or None, comes first."""

    def make(url: str | None, **variables: str) -> Extension:
        return Extension(tmp_path / "root", url, **{"PERINVOKE_PGBOUNCER_PATH": pgbouncer, **variables})

    return make


@pytest.fixture(scope="module")
def shared_extension(pgbouncer: str, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Extension]:
    """One over a single connection, so that each transaction gets what the last one has used."""
    root = tmp_path_factory.mktemp("pgbouncer") / "root"
    variables = {"PERINVOKE_PGBOUNCER_PATH": pgbouncer, "PERINVOKE_PGBOUNCER_MAX_CONNECTIONS": "1"}
    with Extension(root, postgres.url(), **variables) as running:
        yield running
