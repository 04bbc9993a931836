"""Which Python program a command runs: what can be run in a process that exists already. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_WITH_VALUE = "XW"


class Program(NamedTuple):
    """``interpreter flags… (-m module | script) arguments…``.

    Attributes:
        interpreter: as the command names it.
        flags: the interpreter's own options, before the program.
        name: of the module or script.
        is_module: it was given with ``-m``.
        arguments: what follows it.
    """

    interpreter: str
    flags: tuple[str, ...]
    name: str
    is_module: bool
    arguments: tuple[str, ...]


def parse_command(command: Sequence[str]) -> Program | None:  # noqa: PLR0911  # one for each way a command can go
    """The Python program that ``command`` runs; None if it is something else, or Python that gets its program another way."""
    if not command or not _is_python(command[0]):
        return None
    flags: list[str] = []
    words = list(command[1:])
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            return Program(command[0], tuple(flags), word, is_module=False, arguments=tuple(words))
        if word.startswith("--") or word == "-":
            return None  # --help, --version, a program on stdin
        kind, value = _option(word)
        if kind in _WITH_VALUE and kind and not value:
            if not words:
                return None
            flags += [word, words.pop(0)]
        elif kind == "m":
            module = value or (words.pop(0) if words else "")
            if word[1] != "m":
                flags.append(word.partition("m")[0])  # -um app: the letters before it are flags
            return Program(command[0], tuple(flags), module, is_module=True, arguments=tuple(words)) if module else None
        elif kind == "c":
            return None
        else:
            flags.append(word)
    return None


def _is_python(word: str) -> bool:
    """``python``, ``/usr/bin/python3.13`` … No regular expression, whose compilation costs a cold start 1.5 ms."""
    name = word.rpartition("/")[2]
    return name.startswith("python") and not name.removeprefix("python").strip("0123456789.")


def _option(word: str) -> tuple[str, str]:
    """The letter in a cluster of options that takes a value, and the value if it stands in the same word."""
    for at, letter in enumerate(word[1:], 1):
        if letter in "mcXW":
            return letter, word[at + 1 :]
    return "", ""
