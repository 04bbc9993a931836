"""Files that one worker builds and all workers of the execution environment use.

Guarantees:
* Of the workers that ask at the same time one builds; the others wait in the kernel's queue, bounded, and get what it built.
* A build happens in a directory that nobody else looks at, and is published by renaming that directory. So nobody sees a
  half-built file; a build that fails leaves nothing, and the next waiter builds; one that is killed is replaced by a waiter at
  once, because the kernel gives up its lock.
* A path that was told stays valid until its user ends, whatever is built, expires or is evicted meanwhile.

On the disk, below the root::

    shared/KEY/lock                    held exclusively by who builds
    shared/KEY/building-RANDOM/NAME    being built; without the lock it is dead
    shared/KEY/GENERATION/NAME         published, held shared by who uses it (see ``generation``)
"""

from __future__ import annotations

import os
import stat

from perinvoke.environment.disk_usage import is_full
from perinvoke.environment.file_lock import FileLock
from perinvoke.environment.generation import Moment, generations, new_name, remove_unused, unuse, use
from perinvoke.environment.names import BUILDING, ENTRY_LOCK, SHARED
from perinvoke.environment.shared_budget import dead_builds
from perinvoke.errors import PerinvokeError, SharedFileError, SharedFileTooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.environment.file_lock import Home, Owner
    from perinvoke.environment.generation import Generation, User
    from perinvoke.environment.space import Space

# How long who has just published waits for another worker that keeps the budget; that takes a few milliseconds.
_MAX_BUDGET_SECONDS = 1.0


class Request:
    """What is asked for; lives as long as one call.

    Attributes:
        key: names the shared file; a plain name.
        file_name: what the file is called; a plain name.
        build: makes the file at the path it is given.
        tag: what the file is built from, in hexadecimal digits; another tag's file is not what is asked for.
        max_age_seconds: how long after its publication a file is good enough; None for ever.
        expected_bytes: what the file will have at least, as far as it is known before it is built.
    """

    __slots__ = ("asked", "build", "expected_bytes", "file_name", "key", "max_age_seconds", "tag")

    def __init__(
        self, key: str, file_name: str, build: Callable[[str], object], *, tag: str = "0", max_age_seconds: float | None = None
    ) -> None:
        self.key, self.file_name, self.build, self.tag, self.max_age_seconds = key, file_name, build, tag, max_age_seconds
        self.expected_bytes = 0
        self.asked = Moment.now()

    def renew(self) -> None:
        """Find out what is asked for once more: it may have waited long for the lock. For subclasses of what changes."""

    def is_met_by(self, generation: Generation) -> bool:
        """Whether the generation is good enough: right and young enough, or built while this request waited."""
        if generation.tag != self.tag:
            return False
        built = generation.built
        if self.max_age_seconds is None or (built.boot_ns >= self.asked.boot_ns and built.wall_ns >= self.asked.wall_ns):
            return True
        return Moment.now().seconds_since(built) <= self.max_age_seconds


class SharedFiles:
    """The shared files below one root; all it knows is on the disk, so it may be made anew for every call.

    Args:
        root: checked before anything is put in it.
        take: moves a directory away, for removal.
        space: makes room for a build.
        max_bytes: how large a single file may be; None for no limit.
    """

    def __init__(self, root: str, *, take: Callable[[str], bool], space: Space, max_bytes: int | None = None) -> None:
        self._root = root
        self._take = take
        self._space = space
        self._max_bytes = max_bytes

    def get(self, request: Request, home: Home, owner: Callable[[], Owner], user: User) -> str:
        """The file's path, valid until ``user`` ends. Blocks while it is built, here or by another worker.

        Args:
            request: what is asked for.
            home: the root, as its locks lie below it.
            owner: on whose behalf the lock of who builds is taken.
            user: who uses the file.

        Raises:
            LockTimeout: another worker was still building it when the owner could wait no longer.
            SharedFileError: ``build`` made no file where it should.
            SharedFileTooLarge: the file alone has more bytes than all may have.
            ScratchFull: the disk is full.

        What ``build`` raises comes through unchanged.
        """
        home.check()
        entry = os.path.join(self._root, SHARED, request.key)
        found = _usable(entry, request, user)
        if found is not None:
            return found
        with FileLock(f"{entry}/{ENTRY_LOCK}", shared=False, timeout=None, owner=owner, home=home) as lock:
            if lock.count() > 1:
                raise SharedFileError(f"the build of shared file {request.key!r} asks for that file itself", key=request.key)
            request.renew()
            found = _usable(entry, request, user)  # who waited is served by who built
            return found if found is not None else self._built(entry, request, user)

    def _built(self, entry: str, request: Request, user: User) -> str:
        """Build and publish; the lock is held. A build that finds the disk full is repeated when room could be made for it."""
        self._check_budget(request, request.expected_bytes)
        for dead in dead_builds(entry):
            self._take(dead)
        self._space.watch()
        try:
            path = self._tried(entry, request, user)
        except OSError as error:
            if not is_full(error) or not self._space.make_room():
                raise
            try:
                path = self._tried(entry, request, user)
            except OSError:
                self._space.make_room()  # what it left is waste now
                raise
        self._space.keep_budget(max_wait_seconds=_MAX_BUDGET_SECONDS)
        self._space.watch()
        return path

    def _tried(self, entry: str, request: Request, user: User) -> str:
        building, pid = f"{entry}/{BUILDING}{os.urandom(4).hex()}", os.getpid()
        try:
            os.mkdir(building, 0o700)
            _check_return(request, request.build(f"{building}/{request.file_name}"), pid)
            return self._published(entry, building, request, user)
        except BaseException as error:
            if os.getpid() != pid:
                raise  # in a child that the build forked; the directory is its parent's
            full = is_full(error) and not isinstance(error, PerinvokeError)
            told = self._space.full(f"shared file {request.key!r} can't be built") if full else None
            self._take(building)
            if told is not None:
                raise told from error
            raise

    def _check_budget(self, request: Request, size: int) -> None:
        if self._max_bytes is not None and size > self._max_bytes:
            raise SharedFileTooLarge(
                f"shared file {request.key!r} has {size} bytes; PERINVOKE_SHARED_MAX_BYTES allows {self._max_bytes} for all "
                "shared files together. Raise it, or keep the file elsewhere.",
                key=request.key,
                bytes=size,
                max_bytes=self._max_bytes,
            )

    def _published(self, entry: str, building: str, request: Request, user: User) -> str:
        size = _checked_size(building, request)
        self._check_budget(request, size)
        older = generations(entry)
        sequence = older[-1].sequence + 1 if older else 1
        generation = f"{entry}/{new_name(sequence, Moment.now(), size, request.tag)}"
        if not use(building, user, known_as=generation):
            raise SharedFileError(f"the build directory of shared file {request.key!r} was removed meanwhile", key=request.key)
        try:
            os.rename(building, generation)
        except BaseException:
            unuse(generation, user)
            raise
        for superseded in older:
            remove_unused(superseded, self._take)
        return f"{generation}/{request.file_name}"


def _usable(entry: str, request: Request, user: User) -> str | None:
    """The current generation's file, in use from here on; None when there is none, or it is not what is asked for."""
    found = generations(entry)
    if not found or not request.is_met_by(found[-1]) or not use(found[-1].path, user):
        return None
    path = f"{found[-1].path}/{request.file_name}"
    return path if os.path.exists(path) else None  # somebody removed it


def _check_return(request: Request, result: object, pid: int) -> None:
    if os.getpid() != pid:
        raise SharedFileError(f"the build of shared file {request.key!r} returned in a child that it forked", key=request.key)
    if hasattr(result, "__await__"):
        if hasattr(result, "close"):
            result.close()  # a coroutine that never runs would only warn
        raise SharedFileError(
            f"the build of shared file {request.key!r} returned an awaitable; build must be an ordinary function", key=request.key
        )


def _checked_size(building: str, request: Request) -> int:
    """The bytes of all files built.

    Raises:
        SharedFileError: there is no file and no directory where one was asked for.
    """
    try:
        names = os.listdir(building)
        mode = os.lstat(f"{building}/{request.file_name}").st_mode if request.file_name in names else None
    except FileNotFoundError:
        names, mode = [], None
    if mode is None:
        instead = f"instead it wrote {', '.join(sorted(names))} beside it" if names else "nothing is there"
        reason = f"{instead}. It must write to the very path it is given"
    elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "a symbolic link, and what it points to may go" if stat.S_ISLNK(mode) else "no regular file and no directory"
        reason = f"what it made there is {kind}. It must write the file itself"
    else:
        return _size(building)
    raise SharedFileError(
        f"the build of shared file {request.key!r} did not make {building}/{request.file_name}: {reason}.", key=request.key
    )


def _size(directory: str) -> int:
    """The bytes of all regular files below ``directory``."""
    total, directories = 0, [directory]
    while directories:
        with os.scandir(directories.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total
