"""Where the examples are, and how a mistake is put into one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of all examples."""
    return EXAMPLES


@pytest.fixture(scope="session")
def with_mistake(tmp_path_factory: pytest.TempPathFactory):
    """Copies a folder of the examples, and replaces one text in one of its files, which must be there once."""

    def copy(folder: str, file: str, right: str, wrong: str) -> Path:
        to = tmp_path_factory.mktemp("mistake") / folder
        shutil.copytree(EXAMPLES / folder, to)
        text = (to / file).read_text(encoding="utf-8")
        assert text.count(right) == 1, f"{right!r} stands {text.count(right)} times in {file}"
        (to / file).write_text(text.replace(right, wrong), encoding="utf-8")
        return to

    return copy
