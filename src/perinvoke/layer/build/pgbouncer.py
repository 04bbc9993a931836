"""``--with-pgbouncer``: binaries that somebody built, one for each architecture, looked at before they are shipped.

A path is a binary, or a directory with ``bin/pgbouncer``, the libraries it needs in ``lib/`` (Lambda looks for some in /opt/lib),
and its licence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perinvoke.layer.build.elf import Elf, read_elf
from perinvoke.layer.build.entries import Entry
from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from pathlib import Path

    from perinvoke.layer.build.targets import Target

OPTION = "--with-pgbouncer"
_PACKAGE = "pgbouncer"
_LICENCE = re.compile(r"(licen[cs]e|copying|copyright|notice|authors)[^/]*", re.IGNORECASE)
_LIBRARY = re.compile(r"[^/]+\.so(\.[0-9.]+)?", re.ASCII)
# What Amazon Linux has in a function's file system, as far as is known; one more than these may be there.
_C_LIBRARIES = {"libc", "libm", "libpthread", "libdl", "librt", "libresolv", "libutil", "libgcc_s", "libstdc++", "libz"}
_TLS_LIBRARIES = {"3.11": {"libssl.so.10", "libcrypto.so.10"}}
_TLS_LIBRARIES_SINCE_2023 = {"libssl.so.3", "libcrypto.so.3"}


@dataclass(frozen=True, kw_only=True)
class PgBouncerFiles:
    """One binary and what it brings.

    Attributes:
        path: what the option named.
        architecture: what it runs on.
        entries: where its files go.
        glibc_minor: it needs glibc 2 point this.
        needed: libraries that it needs and doesn't bring.
        has_licence: whether its licence is among the entries.
    """

    path: Path
    architecture: str
    entries: list[Entry]
    glibc_minor: int
    needed: tuple[str, ...]
    has_licence: bool


def read_binaries(paths: list[Path], targets: list[Target]) -> dict[str, PgBouncerFiles]:
    """A binary for each architecture of the targets; empty when none is asked for.

    Raises:
        LayerError: one can't be used; or an architecture has none, or two.
    """
    wanted = list(dict.fromkeys(target.architecture for target in targets))
    found: dict[str, PgBouncerFiles] = {}
    for path in paths:
        files = read_binary(path)
        if files.architecture not in wanted:
            names = ", ".join(wanted)
            raise LayerError(f"{OPTION} {path}: it is for {files.architecture}, and the layer for {names}. Change --arch")
        if files.architecture in found:
            raise LayerError(
                f"{OPTION} {path}: {found[files.architecture].path} is for {files.architecture} already; give one of them"
            )
        found[files.architecture] = files
    missing = [name for name in wanted if name not in found]
    if found and missing:
        given = " and ".join(f"{files.path} is for {name}" for name, files in found.items())
        raise LayerError(
            f"there is no pgbouncer for {', '.join(missing)}: {given}. Give one for {missing[0]} too ({OPTION} may be repeated), "
            f"or build for {', '.join(found)} alone: --arch {','.join(found)}"
        )
    return found


def read_binary(path: Path) -> PgBouncerFiles:
    """Look at one binary and its libraries.

    Raises:
        LayerError: it can't be read, or is no program for Linux with 64 bits, or a library is for another architecture.
    """
    binary, libraries, licences = path, [], []
    if path.is_dir():
        binary = path / "bin" / "pgbouncer"
        if not binary.is_file():
            raise LayerError(
                f"{OPTION} {path}: there is no bin/pgbouncer in it. Name a binary, or a directory with bin/pgbouncer"
            )
        libraries = [file for file in sorted(path.glob("lib/*")) if file.is_file() and _LIBRARY.fullmatch(file.name)]
        licences = [file for file in sorted(path.iterdir()) if file.is_file() and _LICENCE.fullmatch(file.name)]
    entries = [_entry(binary, "bin/pgbouncer", executable=True)]
    elf = _elf(binary, entries[0].content)
    if not elf.is_program:
        raise LayerError(f"{OPTION} {binary}: it is a library and can't be run")
    if "musl" in elf.loader:
        raise LayerError(
            f"{OPTION} {binary}: it is built for musl ({elf.loader}), and Lambda has glibc. Link it statically, or to glibc"
        )
    brought: list[Elf] = []
    for library in libraries:
        entries.append(_entry(library, f"lib/{library.name}", executable=False))
        brought.append(_elf(library, entries[-1].content))
        if brought[-1].machine != elf.machine:
            raise LayerError(f"{OPTION} {library}: it is for {brought[-1].machine}, and {binary} for {elf.machine}")
    entries += [_entry(licence, f"perinvoke/licenses/pgbouncer/{licence.name}", executable=False) for licence in licences]
    names = {library.name for library in libraries}
    needed = {name for file in (elf, *brought) for name in file.needed}
    return PgBouncerFiles(
        path=path,
        architecture=elf.machine,
        entries=entries,
        glibc_minor=max(file.glibc_minor for file in (elf, *brought)),
        needed=tuple(sorted(needed - names)),
        has_licence=bool(licences),
    )


def doubts(files: PgBouncerFiles, targets: list[Target]) -> list[str]:
    """What may keep it from running in Lambda, in sentences. Pure."""
    own = [target for target in targets if target.architecture == files.architecture]
    told = []
    if old := [target for target in own if target.glibc_minor < files.glibc_minor]:
        there = ", ".join(f"{target} has 2.{target.glibc_minor}" for target in old)
        told.append(
            f"{files.path} needs glibc 2.{files.glibc_minor}, and {there}: it won't start there. Build it on Amazon Linux"
        )
    if missing := sorted({name for target in own for name in files.needed if not _is_there(name, target)}):
        told.append(
            f"{files.path} needs {', '.join(missing)}, which Lambda's runtime is not known to have. Put them beside it: "
            f"{OPTION} takes a directory with bin/pgbouncer and lib/"
        )
    if not files.has_licence:
        told.append(f"{files.path} comes without its licence, which asks to go with it: put it into the directory as LICENSE")
    return told


def _is_there(library: str, target: Target) -> bool:
    plain = library.partition(".so")[0]
    return (
        plain in _C_LIBRARIES
        or plain.startswith("ld-linux")
        or library in _TLS_LIBRARIES.get(target.python, _TLS_LIBRARIES_SINCE_2023)
    )


def _entry(path: Path, name: str, *, executable: bool) -> Entry:
    try:
        return Entry(name, path.read_bytes(), executable=executable, package=_PACKAGE)
    except OSError as error:
        raise LayerError(f"{OPTION} {path}: it can't be read ({error.strerror or error})") from error


def _elf(path: Path, content: bytes) -> Elf:
    try:
        return read_elf(content)
    except ValueError as error:
        raise LayerError(f"{OPTION} {path}: {error}; a program for Linux on x86_64 or arm64 is expected") from error
