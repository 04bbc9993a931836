"""What is imported when: the arrows between the rooms, and what a worker pays at init."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "perinvoke"

# Who may import whom; a room may always import itself. Everything may import errors.
ALLOWED = {
    "__init__": {"handler", "invocation", "sharing"},
    "errors": set(),
    "settings": set(),
    "stdlib_resource": set(),
    "clock": {"settings"},
    "invocation": {"clock", "settings", "stdlib_resource"},
    "environment": {"clock", "settings"},
    "worker": {"invocation", "environment", "settings", "clock"},
    "sharing": {"worker", "invocation", "environment", "settings", "clock"},
    "fleet": {"sharing", "aws_credentials", "aws_refusals"},
    "full_disk": {"invocation", "environment"},
    "handler": {"worker", "full_disk", "invocation", "environment", "settings", "clock"},
    "local": {"exit_code"},
    "exit_code": set(),
    "runtime": {"environment", "settings", "stdlib_resource", "exit_code"},
    "pgbouncer": {"environment", "settings", "exit_code"},
    "demo": {"local", "__init__"},
    "layer": {"__init__", "exit_code", "aws_credentials", "aws_refusals"},
    "aws_credentials": {"aws_refusals"},
    "aws_refusals": set(),
    "cli": {"local", "demo", "fleet", "layer", "__init__"},
    "__main__": {"cli"},
}
HEAVY = {
    "boto3",
    "filelock",
    "contextvars_extras",
    "asyncio",
    "sqlalchemy",
    "typing",
    "pathlib",
    "dataclasses",
    "inspect",
    "tempfile",
    "subprocess",
}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "perinvoke":
            names |= {
                f"perinvoke.{alias.name}" if (SOURCE / f"{alias.name}.py").exists() else "perinvoke" for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] == "perinvoke"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows_run_downward_only(path):
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert here in ALLOWED, f"a new room: say in ALLOWED what {here} may import"
    wrong = {name for name in imports_of(path) if room(name) not in ALLOWED[here] | {here, "errors"}}
    assert wrong == set()


def modules_after(statement: str) -> set[str]:
    script = f"import awslambdaric.__main__, sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    return set(subprocess.check_output([sys.executable, "-c", script], text=True).split())


@pytest.mark.parametrize("statement", ["import perinvoke", "from perinvoke import isolated, current, scratch"])
def test_the_import_brings_nothing_heavy(statement):
    loaded = {name.split(".")[0] for name in modules_after(statement)}
    assert loaded & HEAVY == set()
    assert "perinvoke" in loaded


def test_every_public_name_can_be_had():
    script = "import perinvoke; assert all(getattr(perinvoke, name) for name in perinvoke.__all__); assert dir(perinvoke)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'isolate'"):
        exec("import perinvoke; perinvoke.isolate")
