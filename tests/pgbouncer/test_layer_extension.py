"""``extensions/perinvoke-pgbouncer``, the layer's shell script, with the real PgBouncer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import perinvoke

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(perinvoke.__file__).parent
SCRIPT = PACKAGE / "layer" / "build" / "files" / "perinvoke-pgbouncer"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """As it lies in a layer, in a folder with blanks."""
    opt = tmp_path / "a layer of ours"
    (opt / "extensions").mkdir(parents=True)
    (opt / "python").mkdir()
    (opt / "python" / "perinvoke").symlink_to(PACKAGE)
    placed = Path(shutil.copy(SCRIPT, opt / "extensions"))
    placed.chmod(0o755)
    return placed


def test_it_runs_pgbouncer_whatever_the_function_has_in_its_python_path(
    script, extension: Callable[..., Any], postgres, tmp_path, monkeypatch
):
    (tmp_path / "theirs").mkdir()
    for name in ("socket", "logging", "perinvoke"):
        (tmp_path / "theirs" / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path / "theirs")
    made = extension(postgres.url(), PYTHONPATH=str(tmp_path / "theirs"), AWS_LAMBDA_LOG_FORMAT="TEXT")
    made.command = [str(script)]
    with made as running, running.connect() as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        assert len(running.pgbouncers()) == 1


def test_without_a_python_it_says_so(script, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to(str(shutil.which("sh")))
    done = subprocess.run([script], env={"PATH": str(tools)}, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 127
    assert done.stderr == "perinvoke-pgbouncer: there is no Python in /var/lang/bin, nor in the PATH\n"
