"""What a layer is built for: versions of Python and architectures, checked, and what pip calls them."""

from __future__ import annotations

from typing import NamedTuple

from perinvoke.layer.errors import LayerError
from perinvoke.layer.limits import ARCHITECTURES, PYTHONS

# What others call them, and what is often typed.
_ALSO = {
    "aarch64": "arm64",
    "armv8": "arm64",
    "arm": "arm64",
    "amd64": "x86_64",
    "x64": "x86_64",
    "x86": "x86_64",
    "x86-64": "x86_64",
}
_MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
# glibc's minor version, all 2.x: the runtime of 3.11 is built on Amazon Linux 2, later ones on Amazon Linux 2023.
_GLIBC_MINORS = {"3.11": 26}
_GLIBC_MINOR = 34
# The first glibc for which wheels are tagged: PEP 600 knows 2.5 on x86_64; 64-bit ARM begins with 2.17.
_FIRST_GLIBC_MINORS = {"x86_64": 5, "arm64": 17}
_OLD_TAGS = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


class Target(NamedTuple):
    """One version of Python on one architecture, in Lambda's words."""

    python: str
    architecture: str

    def __str__(self) -> str:
        return f"python{self.python} {self.architecture}"

    @property
    def glibc_minor(self) -> int:
        """The runtime has glibc 2 point this."""
        return _GLIBC_MINORS.get(self.python, _GLIBC_MINOR)

    @property
    def pip_options(self) -> list[str]:
        """Have pip choose the wheels that the runtime of this target could install; the best ones first."""
        platforms = []
        machine = _MACHINES[self.architecture]
        for minor in range(self.glibc_minor, _FIRST_GLIBC_MINORS[self.architecture] - 1, -1):
            platforms.append(f"manylinux_2_{minor}_{machine}")
            if minor in _OLD_TAGS:
                platforms.append(f"{_OLD_TAGS[minor]}_{machine}")
        abi = "cp" + self.python.replace(".", "")
        options = ["--only-binary=:all:", "--python-version", self.python, "--implementation", "cp"]
        options += [word for name in (abi, "abi3", "none") for word in ("--abi", name)]
        return options + [word for name in platforms for word in ("--platform", name)]


def all_targets() -> list[Target]:
    """Everything a layer can be built for."""
    return [Target(python, architecture) for python in PYTHONS for architecture in ARCHITECTURES]


def parse_targets(pythons: str, architectures: str) -> list[Target]:
    """What ``--python`` and ``--arch`` say, in the order of Lambda's lists and not in theirs.

    Raises:
        LayerError: one doesn't exist, is empty, or is there twice.
    """
    asked_pythons = _names(pythons, "--python", PYTHONS)
    asked_architectures = _names(architectures, "--arch", ARCHITECTURES)
    return [target for target in all_targets() if target.python in asked_pythons and target.architecture in asked_architectures]


def _names(text: str, option: str, known: tuple[str, ...]) -> set[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name:
            raise LayerError(f"{option} {text!r}: a name is missing; write it like {option} {','.join(known[-2:])}")
        if name not in known:
            meant = _meant(name, known)
            hint = f"Did you mean {meant}? " if meant else ""
            raise LayerError(f"{option} {text!r}: there is no {name!r}. {hint}Choose from {', '.join(known)}")
        if names.count(name) > 1:
            raise LayerError(f"{option} {text!r}: {name} is there twice")
    return set(names)


def _meant(name: str, known: tuple[str, ...]) -> str | None:
    """What somebody who typed that had in mind. Pure."""
    plain = name.lower().removeprefix("python").removeprefix("cp")
    by_digits = {version.replace(".", ""): version for version in known}
    guesses = (plain, _ALSO.get(plain), by_digits.get(plain), ".".join(plain.split(".")[:2]))
    return next((guess for guess in guesses if guess in known), None)
