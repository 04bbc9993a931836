"""Every example of the README and its pages does what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from perinvoke.cli import build_parser
from perinvoke.settings import KNOWN

HOME = Path(__file__).parents[1]
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^\$ perinvoke (.*?)(?:\s+#.*)?$", TEXT, re.MULTILINE)


# For each example: what its handler is called with, and what that prints.
EXAMPLES = [
    ([{"user": "ann"}, {"user": "bob"}], ["done with ann", "['ann', True]", "done with bob", "['bob', True]"]),
    ([{"n": 1}, {"n": 41}], ["2", "42"]),
    ([{"revenue": 7}, {"revenue": 8}], ["7", "8"]),
    ([{"detail": {"id": "a", "amount": 5}}] * 2, ["charged a", "{'charged': 5}", "{'charged': 5}"]),
    ([{"id": "ann"}] * 2, ["10", "20"]),
    ([{"name": "ann"}] * 2, ["10", "20"]),
]


TABLES = {"coordination", "accounts"}


@pytest.mark.parametrize(
    ("example", "events", "printed"), [(block, *example) for block, example in zip(PYTHON_BLOCKS, EXAMPLES, strict=True)]
)
def test_the_examples_work_as_written(example, events, printed, root, tmp_path, dynamodb, monkeypatch):  # noqa: PLR0917
    for name, value in dynamodb.variables().items():
        monkeypatch.setenv(name, value)
    pages = dynamodb.client().get_paginator("list_tables").paginate()  # of a hundred each: other tests have made many
    for table in TABLES.difference(*(page["TableNames"] for page in pages)):
        dynamodb.table(name=table)
    calls = "\n".join(f"print(handler({event!r}, None))" for event in events)
    script = f"{example.replace('/tmp/orders.db', f'{tmp_path}/orders.db')}\n{calls}"
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.splitlines() == printed


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command):
    assert build_parser().parse_args(command.split()).command


def test_there_are_commands_to_check():
    assert len(COMMANDS) == 16


def test_every_setting_is_explained():
    assert set(re.findall(r"^\| `(PERINVOKE_\w+)`", TEXT, re.MULTILINE)) == KNOWN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in TEXT.splitlines() if line[:1] == "#"
    }
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        assert target.startswith("https://") or (page.parent / path).exists(), target
        assert not heading or heading in headings, target


def test_every_page_is_linked_from_the_readme():
    readme = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []
