"""The layer as it is built, and what others' layers would add to it: each made once, for all tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from attaching import Commands
from lambda_server import LambdaServer
from managed_runtime import MOUNTED, ManagedRuntime, why_no_mounts
from perinvoke.cli import main as perinvoke

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FUNCTIONS = Path(__file__).parent / "functions"
# What the layers of others bring, as far as it matters here.
PACKAGES = {
    "powertools": ("aws-lambda-powertools",),
    "opentelemetry": ("opentelemetry-distro", "opentelemetry-instrumentation-aws-lambda"),
    "datadog": ("datadog-lambda",),
    "sentry": ("sentry-sdk",),
}
# Kept beside the virtual environment that runs the tests, so that another run has them already.
_KEPT = Path(sys.prefix) / "layers-of-others"


def readable(folder: Path) -> Path:
    """As in a real layer: for everybody."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else 0))
    return folder


@pytest.fixture(scope="session")
def core_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core layer, built and unpacked."""
    out = tmp_path_factory.mktemp("core-layer")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        code = perinvoke(["layer", "build", "--python", version, "--out", str(out)])
    except OSError as error:
        pytest.fail(str(error))
    if code != 0:
        without_network("the layer can't be built")
    [built] = out.glob("*.zip")
    opt = out / "opt"
    with zipfile.ZipFile(built) as file:
        file.extractall(opt)
        for info in file.infolist():
            (opt / info.filename).chmod(info.external_attr >> 16)
    return readable(opt)


def without_network(reason: str) -> None:
    """Skip; in CI, where it must run, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def layer_of(name: str) -> Path:
    """The packages of somebody else's layer, installed by pip; kept for the next run."""
    kept = _KEPT / name
    _KEPT.mkdir(exist_ok=True)
    with (_KEPT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_dir():
            new = _KEPT / f"{name}.new"
            shutil.rmtree(new, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
            done = subprocess.run(
                [*pip, "--only-binary", ":all:", "--target", str(new), *PACKAGES[name]],
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            if done.returncode != 0:
                without_network(f"{name} can't be installed: {done.stderr[-300:]}")
            subprocess.run([sys.executable, "-m", "compileall", "-q", str(new)], capture_output=True, check=False)
            readable(new).rename(kept)
    return kept


@pytest.fixture
def managed(core_layer: Path, tmp_path: Path) -> Callable[..., ManagedRuntime]:
    """Makes the managed runtime with the core layer and others."""

    def make(place: str = MOUNTED, others: tuple[str, ...] = ()) -> ManagedRuntime:
        reason = why_no_mounts() if place == MOUNTED else None
        if reason is not None:
            without_network(f"the layer can't be put at /opt: {reason}")
        runtime = ManagedRuntime(tmp_path / "managed", mounts=place == MOUNTED).make()
        shutil.copytree(core_layer, runtime.opt, dirs_exist_ok=True)
        for name in others:
            for package in layer_of(name).iterdir():
                if not (runtime.opt / "python" / package.name).exists():
                    add(package, runtime.opt / "python" / package.name)
        return runtime

    return make


def add(source: Path, target: Path) -> None:
    """A copy that takes no time: hard links, where the file system is the same."""
    link: Callable[[str, str], object] = os.link
    if source.stat().st_dev != target.parent.stat().st_dev:
        link = shutil.copy2
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
    else:
        link(str(source), str(target))


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """The function's code; a test may add to it."""
    folder = tmp_path / "task"
    shutil.copytree(FUNCTIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return readable(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[LambdaServer]:
    """A Lambda of the module's own."""
    with LambdaServer() as server:
        yield server


@pytest.fixture
def command(
    server: LambdaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Commands:
    """``perinvoke layer attach`` and ``detach``, there."""
    return Commands(server, tmp_path, monkeypatch, capsys)
