"""A function whose invocations do a bit of everything; each looks for what others left and for what is only half there."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from perinvoke import file_lock, isolated, scratch, shared_file

SIZE = 20_000
CHUNK = 4_000
KEYS = 5
COUNTERS = 3
FOR_EVER = "for ever"
SHORT_LIVED = "short-lived"
DIRECTORY = "directory"
_FILES = 3  # of a shared directory


def content(key: str) -> bytes:
    """What the shared file of that key holds."""
    return (key.encode() * SIZE)[:SIZE]


def build(path: Path) -> None:
    """In pieces, so that a kill finds it half built."""
    with path.open("wb", buffering=0) as file:
        whole = content(path.name)
        for start in range(0, SIZE, CHUNK):
            file.write(whole[start : start + CHUNK])


def build_directory(path: Path) -> None:
    """The same, with several files."""
    path.mkdir()
    for number in range(_FILES):
        (path / str(number)).write_bytes(content(f"{path.name}{number}"))


class Deeds:
    """What one invocation does and finds; lives as long as the invocation."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.number: int = event["number"]
        self.counters = Path(event["counters"])
        self.findings: list[str] = []
        self.counted: str | None = None

    def nothing(self) -> None:
        """Not even ask for scratch."""

    def file(self) -> None:
        """One file, of a name that all invocations use."""
        self._expect_empty()
        own = f"{self.number:08d}" * 500
        (scratch() / "test.txt").write_text(own)
        with tempfile.NamedTemporaryFile("w+") as other:
            other.write(own)
            other.seek(0)
            self._expect(other.read() == own, "foreign bytes in a temporary file")
        self._expect((scratch() / "test.txt").read_text() == own, "foreign bytes in test.txt")
        self._expect(os.listdir(scratch()) == ["test.txt"], f"foreign names in scratch: {os.listdir(scratch())}")

    def subdirectory(self) -> None:
        """More than is removed in place."""
        self._expect_empty()
        folder = Path(tempfile.gettempdir()) / "sub" / "sub"
        folder.mkdir(parents=True)
        for name in range(8):
            (folder / str(name)).write_text(f"{self.number} {name}")
        found = {name: (folder / name).read_text() for name in os.listdir(folder)}
        self._expect(found == {str(name): f"{self.number} {name}" for name in range(8)}, f"foreign files: {found}")

    def count(self) -> None:
        """Increment a counter that all workers share."""
        self.counted = f"counter-{self.number % COUNTERS}"
        with file_lock(self.counted):
            holder = self.counters / f"{self.counted}.holder"
            holder.write_text(str(self.number))
            fd = os.open(self.counters / self.counted, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.pwrite(fd, b"%08d" % (int(os.pread(fd, 8, 0) or 0) + 1), 0)
            finally:
                os.close(fd)
            self._expect(holder.read_text() == str(self.number), f"two holders of {self.counted}")

    def share(self) -> None:
        """A file that is built once."""
        self._expect_whole(shared_file(f"{FOR_EVER} {self.number % KEYS}", build))

    def share_for_a_moment(self) -> None:
        """One that is built anew again and again; the path must stay valid to the end."""
        path = shared_file(SHORT_LIVED, build, max_age_seconds=0.005)
        self._expect_whole(path)
        time.sleep(0.02)
        self._expect_whole(path)

    def share_directory(self) -> None:
        """A shared directory."""
        path = shared_file(f"{DIRECTORY} {self.number % KEYS}", build_directory, max_age_seconds=0.2)
        found = {name: (path / name).read_bytes() for name in os.listdir(path)}
        self._expect(found == {str(n): content(f"{path.name}{n}") for n in range(_FILES)}, f"incomplete: {path} {list(found)}")

    def child(self) -> None:
        """A child process; some are left running."""
        self._expect_empty()
        subprocess.run(["sh", "-c", 'echo $$ > "$TMPDIR/child"'], check=True)
        self._expect(os.listdir(scratch()) == ["child"], f"foreign names in scratch: {os.listdir(scratch())}")
        if self.number % 3 == 0:
            subprocess.Popen(["sleep", "0.3"])

    def _expect_empty(self) -> None:
        self._expect(os.listdir(scratch()) == [], f"foreign names at the start: {os.listdir(scratch())}")

    def _expect_whole(self, path: Path) -> None:
        found = path.read_bytes()
        self._expect(found == content(path.name), f"shared file {path} has {len(found)} bytes of {SIZE}, or foreign ones")

    def _expect(self, condition: bool, otherwise: str) -> None:  # noqa: FBT001  # reads as an assertion
        if not condition:
            self.findings.append(otherwise)


# What most invocations do costs little, so that twenty thousand fit in a minute; a child process costs as much as ten of those.
TABLE = [
    *[Deeds.nothing, Deeds.count, Deeds.share, Deeds.nothing] * 5,
    *[Deeds.file, Deeds.share_for_a_moment, Deeds.nothing] * 4,
    *[Deeds.subdirectory, Deeds.share_directory] * 2,
    Deeds.child,
]


@isolated
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Do what the event's number says, and tell what was found."""
    deeds = Deeds(event)
    deed = TABLE[deeds.number % len(TABLE)]
    deed(deeds)
    time.sleep(event.get("pause_seconds", 0))
    home = None if deed is Deeds.nothing else str(scratch().parent)
    return {"pid": os.getpid(), "home": home, "findings": deeds.findings, "counted": deeds.counted}


_LOOP = "while :; do echo x >> {}; sleep 0.02; done"
_PLAIN = {"PATH": os.environ.get("PATH", "/bin:/usr/bin")}  # without TMPDIR


def _forked(log: Path) -> int:
    pid = os.fork()
    while pid == 0:
        with log.open("a") as file:
            file.write("x\n")
        time.sleep(0.02)
    return pid


def _child(how: str) -> int:
    """A child process that goes on writing to ``log`` in this invocation's scratch; its pid."""
    log = scratch() / "log"
    log.touch()
    match how:
        case "knows it by TMPDIR":
            return subprocess.Popen(["sh", "-c", _LOOP.format('"$TMPDIR/log"')], cwd="/").pid
        case "works in it":
            return subprocess.Popen(["sh", "-c", _LOOP.format("log")], cwd=scratch(), env=_PLAIN).pid
        case "has a file open":
            with log.open("a") as file:
                return subprocess.Popen(["sh", "-c", _LOOP.format("/dev/stdout")], cwd="/", env=_PLAIN, stdout=file).pid
        case "was forked":
            return _forked(log)
        case _:
            raise ValueError(how)


@isolated
def parent(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Start a child, tell where it writes, and be killed; or, without being told how, only serve."""
    if "how" in event:
        pid = _child(event["how"])
        told = Path(event["told"])
        told.with_suffix(".part").write_text(f"{pid} {scratch() / 'log'}")
        told.with_suffix(".part").rename(told)
        os.kill(os.getpid(), signal.SIGKILL)
    (scratch() / "served").write_text("x")
    return {"pid": os.getpid()}
