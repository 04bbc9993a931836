"""Reads of an executable what decides where it runs: the machine, the libraries it loads, and how new a glibc it wants.

Source: the System V ABI, "Object files" and "Program loading and dynamic linking"; symbol versions: the Linux Standard Base. Only
what Lambda runs: 64 bits, little-endian. Written here rather than brought by a package: it is one table and one list.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_MACHINES = {62: "x86_64", 183: "arm64", 3: "x86 (32 bits)", 40: "arm (32 bits)", 243: "riscv", 21: "ppc64", 22: "s390x"}
_EXECUTABLE, _SHARED = 2, 3
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_NEEDED, _STRINGS, _SONAME, _FLAGS_1, _VERNEED, _VERNEED_COUNT = 1, 5, 14, 0x6FFFFFFB, 0x6FFFFFFE, 0x6FFFFFFF
_PIE = 0x08000000
_MAX = 10_000  # of anything that a file says it has many of
_GLIBC = re.compile(r"GLIBC_2\.(\d+)(\.\d+)*", re.ASCII)
_RELATIVE_RELOCATIONS = ("GLIBC_ABI_DT_RELR", 36)  # which no function has, and glibc 2.36 is the first to do


@dataclass(frozen=True, kw_only=True)
class Elf:
    """What a file says of itself.

    Attributes:
        machine: as Lambda calls it, or what else it is.
        is_program: it can be run; else it is a library.
        loader: who loads its libraries, such as /lib64/ld-linux-x86-64.so.2; empty in a library and in what needs none.
        needed: names of the libraries it loads.
        glibc_minor: it wants glibc 2 point this, or a newer one; 0 when it wants none.
    """

    machine: str
    is_program: bool
    loader: str
    needed: tuple[str, ...]
    glibc_minor: int


def read_elf(content: bytes) -> Elf:
    """What an ELF file's headers say. Pure.

    Raises:
        ValueError: it is none, or a damaged one, or none for 64 bits.
    """
    if content[:4] != b"\x7fELF":
        raise ValueError("it isn't an ELF file")
    try:
        kind, machine = struct.unpack_from("<HH", content, 16)
        name = _MACHINES.get(machine, f"machine {machine}")
        if content[4:6] != b"\x02\x01":
            raise ValueError(f"it is for {name}, and not for 64 bits")
        if kind not in {_EXECUTABLE, _SHARED}:
            raise ValueError("it is neither a program nor a shared library")
        return _read(content, kind, name)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"its ELF headers are damaged ({error})") from error


def _read(content: bytes, kind: int, machine: str) -> Elf:
    segments = _segments(content)
    dynamic = [entry for kind_, offset, _, size in segments if kind_ == _DYNAMIC for entry in _dynamic(content, offset, size)]
    values = dict(dynamic)
    strings = _offset(segments, values[_STRINGS]) if _STRINGS in values else 0
    needed = tuple(_text(content, strings + value) for tag, value in dynamic if tag == _NEEDED)
    versions: list[str] = []
    if _VERNEED in values:
        versions = _versions(content, _offset(segments, values[_VERNEED]), values.get(_VERNEED_COUNT, 0), strings)
    loader = next((_text(content, offset) for kind_, offset, _, _ in segments if kind_ == _INTERPRETER), "")
    return Elf(
        machine=machine,
        is_program=kind == _EXECUTABLE or bool(loader and _SONAME not in values) or bool(values.get(_FLAGS_1, 0) & _PIE),
        loader=loader,
        needed=needed,
        glibc_minor=max(map(_glibc_minor, versions), default=0),
    )


def _segments(content: bytes) -> list[tuple[int, int, int, int]]:
    """Type, place in the file, address and size in the file of each."""
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    segments = []
    for number in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", content, table + number * size)
        segments.append((kind, offset, address, length))
    return segments


def _dynamic(content: bytes, offset: int, size: int) -> list[tuple[int, int]]:
    entries = []
    for place in range(offset, offset + min(size, 16 * _MAX), 16):
        tag, value = struct.unpack_from("<QQ", content, place)
        if tag == 0:
            break
        entries.append((tag, value))
    return entries


def _offset(segments: list[tuple[int, int, int, int]], address: int) -> int:
    for kind, offset, start, size in segments:
        if kind == _LOAD and start <= address < start + size:
            return offset + address - start
    raise IndexError(f"nothing is loaded at {address:#x}")


def _versions(content: bytes, offset: int, count: int, strings: int) -> list[str]:
    names = []
    for _ in range(min(count, _MAX)):
        _, parts, _, part, following = struct.unpack_from("<HHIII", content, offset)
        place = offset + part
        for _ in range(parts):
            _, _, _, name, next_part = struct.unpack_from("<IHHII", content, place)
            names.append(_text(content, strings + name))
            place += next_part
        offset += following
    return names


def _text(content: bytes, offset: int) -> str:
    end = content.index(0, offset) if offset < len(content) else -1
    if end < 0:
        raise IndexError("a name lies outside the file")
    return content[offset:end].decode()


def _glibc_minor(version: str) -> int:
    if version == _RELATIVE_RELOCATIONS[0]:
        return _RELATIVE_RELOCATIONS[1]
    match = _GLIBC.fullmatch(version)
    return int(match[1]) if match else 0
