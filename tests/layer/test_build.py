"""``perinvoke layer build``, with pip's real wheels: fetched once, then taken from a folder."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import perinvoke
from perinvoke.cli import main
from perinvoke.layer.build.downloads import downloaded
from perinvoke.layer.build.interpreters import find_interpreter
from perinvoke.layer.build.locks import read_locks
from perinvoke.layer.build.targets import Target
from perinvoke.layer.errors import LayerError
from perinvoke.layer.limits import PYTHONS
from perinvoke.layer.zips import read_layer_zip

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = "{}.{}".format(*sys.version_info)
VERSION = "0.1.0"
NOBODY = 65534
ONE = ("--python", PYTHON, "--arch", "x86_64")
SOURCE = Path(perinvoke.__file__).parent


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the core layer's wheels, which are pure Python: those of one target are those of all."""
    folder = tmp_path_factory.mktemp("wheels")
    target = Target(PYTHON, "x86_64")
    try:
        with downloaded({target: read_locks(["core"], PYTHON)}, lambda: None) as found:
            for wheel in found[target]:
                shutil.copy(wheel, folder)
    except LayerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return folder


@pytest.fixture
def offline(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip looks into the folder and nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    for name, value in {"CONSTRAINT": "nowhere", "REQUIREMENT": "nowhere"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)  # what is set for installations, which mustn't matter
    return wheels


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], offline: Path):
    """Runs the command in this process and in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def build(*arguments: str) -> Done:
        return Done(main(["layer", "build", *arguments]), *capsys.readouterr())

    return build


@pytest.fixture(scope="session")
def core(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core layer for all targets."""
    out = tmp_path_factory.mktemp("core")
    done = in_process(wheels, "--out", str(out))
    assert done.returncode == 0, done.stderr
    [path] = out.iterdir()
    return path


def in_process(wheels: Path, *arguments: str, python: str = sys.executable, before: tuple[str, ...] = (), **options) -> Done:
    variables = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    variables |= {name: os.environ[name] for name in ("HOME", "PYENV_ROOT") if name in os.environ} | options.pop("env", {})
    command = [*before, python, "-m", "perinvoke", "layer", "build", *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100, check=False, **options)
    return Done(done.returncode, done.stdout, done.stderr)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def missing_in(path: Path) -> set[str]:
    """What packages in the zip need, and isn't in it in a version that they can use."""
    layer = read_layer_zip(path)
    missing = set()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".dist-info/METADATA"):
                for text in message_from_bytes(archive.read(name)).get_all("Requires-Dist") or ():
                    needed = Requirement(text)
                    there = layer.packages.get(canonicalize_name(needed.name))
                    for python in layer.pythons:
                        where = {"python_version": python, "sys_platform": "linux", "platform_machine": "aarch64", "extra": ""}
                        if needed.marker is None or needed.marker.evaluate({**where, "implementation_name": "cpython"}):
                            missing |= set() if there and needed.specifier.contains(there) else {text}
    return missing


def test_where_all_is_pure_python_one_zip_is_for_every_target(core):
    assert core.name == f"perinvoke-{VERSION}.zip"
    layer = read_layer_zip(core)
    assert (layer.name, layer.perinvoke, layer.parts) == ("perinvoke", VERSION, ("core",))
    assert (layer.pythons, layer.architectures) == (("3.13", "3.14"), ("x86_64", "arm64"))
    assert layer.sha256 == sha256(core)
    assert set(layer.packages) == {"perinvoke", "contextvars-extras", "filelock", "sentinel-value"}
    assert missing_in(core) == set()
    assert layer.packed_bytes == core.stat().st_size < 1_000_000


def test_names_times_and_modes_are_in_order(core):
    with zipfile.ZipFile(core) as archive:
        infos = archive.infolist()
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {oct(info.external_attr >> 16) for info in infos if info.filename != "perinvoke/exec"} == {"0o100644"}
    assert oct(next(info for info in infos if info.filename == "perinvoke/exec").external_attr >> 16) == "0o100755"


def test_licences_are_in_it_and_nothing_that_speaks_of_an_installation(core):
    names = names_in(core)
    described = {name.split("/")[1] for name in names if name.endswith(".dist-info/METADATA")}
    licensed = {name.split("/")[1] for name in names if "LICENSE" in name}
    assert len(described) == 4
    assert described == licensed
    wrong = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "entry_points.txt", ".pyc", ".pth")
    assert [name for name in names if name.endswith(wrong)] == []
    with zipfile.ZipFile(core) as archive:
        everything = b"".join(map(archive.read, names))
    assert str(SOURCE.parent).encode() not in everything


def test_what_a_function_has_no_use_for_stays_away_and_nothing_that_is_there_needs_it(core):
    modules = {
        name.removeprefix("python/") for name in names_in(core) if name.startswith("python/perinvoke/") and name.endswith(".py")
    }
    rooms = {module.split("/")[1] for module in modules}
    assert rooms & {"local", "check", "layer", "demo", "cli.py", "__main__.py"} == set()
    assert {"handler.py", "runtime", "pgbouncer", "fleet"} <= rooms
    assert not any(module.startswith("perinvoke/fleet/table/") for module in modules)
    there = {module.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for module in modules}
    imported = set()
    for module in modules:
        for node in ast.walk(ast.parse((SOURCE.parent / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("perinvoke"):
                imported.add(node.module)
                imported |= {name for alias in node.names if (name := f"{node.module}.{alias.name}") in there}
    assert imported - there == set()
    # A module at the top that nobody in the layer imports belongs to what was left out.
    assert {name for name in there if name.count(".") == 1} - imported <= {
        f"perinvoke.{name}" for name in ("handler", "runtime", "pgbouncer", "fleet", "sharing", "invocation", "environment")
    }


@pytest.mark.parametrize("version", PYTHONS)
def test_from_the_zip_alone_everything_can_be_imported_or_says_what_is_missing(core, tmp_path, version):
    try:
        python = find_interpreter(version).path
    except LayerError:
        pytest.skip(f"there is no Python {version} here")
    with zipfile.ZipFile(core) as archive:
        archive.extractall(tmp_path)
    script = """if True:
        import importlib, importlib.metadata, pkgutil, sys
        sys.path.insert(0, sys.argv[1])
        import perinvoke
        from perinvoke.errors import MissingExtra
        assert perinvoke.__file__.startswith(sys.argv[1])
        assert all(getattr(perinvoke, name) for name in perinvoke.__all__)
        for room in ("runtime", "pgbouncer", "invocation", "sharing"):
            package = importlib.import_module("perinvoke." + room)
            for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
        from perinvoke.fleet import dynamodb, sql
        for use in (lambda: dynamodb.LeaseLock, lambda: perinvoke.boto3_client("s3"), lambda: getattr(sql, sql.__all__[-1])):
            try:
                use()
            except MissingExtra as error:
                print(error)
        print(importlib.metadata.version("perinvoke"), *importlib.metadata.requires("perinvoke"))
    """
    done = subprocess.run(
        [python, "-I", "-S", "-B", "-c", script, str(tmp_path / "python")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("boto3, which isn't installed: pip install 'perinvoke[aws]'") == 2
    assert f"{VERSION} contextvars-extras>=0.7 filelock>=3.12" in done.stdout


def test_the_report_has_sizes_beside_limits_the_largest_parts_the_hash_and_the_next_command(run, tmp_path):
    done = run("--python", "3.13", "--arch", "arm64")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "dist" / f"perinvoke-{VERSION}.zip"
    lines = done.stdout.splitlines()
    assert lines[0] == f"dist/perinvoke-{VERSION}.zip"
    assert lines[1] == "  for       Python 3.13 on arm64"
    assert lines[2].endswith(" MB of 50 MB for a direct upload")
    assert lines[3].endswith(" MB of 250 MB for a function and its layers")
    assert "perinvoke 0.1.0 " in lines[4]
    assert "filelock " in lines[4]
    assert lines[5] == f"  sha256    {sha256(path)}"
    assert lines[6:] == ["next: perinvoke layer publish"]
    assert done.stderr == "fetching what goes into the layer ...\nwriting ...\n"


def test_versions_and_architectures_may_be_given_one_by_one(run, tmp_path):
    done = run("--python", "3.12", "--python", "3.11", "--arch", "arm64", "--arch", "x86_64")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "  for       Python 3.11, 3.12 on x86_64, arm64"


def test_an_earlier_zip_of_that_name_is_replaced_and_others_are_left_and_told(run, tmp_path):
    out = tmp_path / "a folder"
    out.mkdir()
    (out / f"perinvoke-{VERSION}.zip").write_text("old")
    (out / f"perinvoke-{VERSION}-sql-python3.13-arm64.zip").write_text("other")
    done = run(*ONE, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert read_layer_zip(out / f"perinvoke-{VERSION}.zip").pythons == (PYTHON,)
    assert (out / f"perinvoke-{VERSION}-sql-python3.13-arm64.zip").read_text() == "other"
    assert f"also in {out}, from earlier builds: perinvoke-{VERSION}-sql-python3.13-arm64.zip" in done.stdout
    assert done.stdout.endswith(f"next: perinvoke layer publish '{out}/perinvoke-{VERSION}.zip'\n")


def test_a_zip_has_the_mode_that_any_new_file_would_have(wheels, tmp_path):
    done = in_process(wheels, *ONE, "--out", str(tmp_path), umask=0o027)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"perinvoke-{VERSION}.zip").stat().st_mode & 0o777 == 0o640


def other_pythons() -> list[str]:
    """Of the virtual environments beside this one."""
    others = (path for path in Path(sys.prefix).parent.glob(".venv*/bin/python") if not path.is_relative_to(sys.prefix))
    ready = "import perinvoke.layer.build.command, pip"
    return [str(path) for path in others if subprocess.run([path, "-c", ready], capture_output=True, check=False).returncode == 0]


def as_nobody() -> tuple[str, ...]:
    """What runs a command as another user, who may read what only this one may; empty where that can't be."""
    capability = "+dac_override"
    words = (
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        f"--inh-caps={capability}",
        f"--ambient-caps={capability}",
    )
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return ()
    return words if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0 else ()


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--compile",)], ids=["plain", "compiled"])
def test_folders_times_umasks_users_locales_and_pythons_change_no_byte(wheels, tmp_path, options):
    before, home = as_nobody(), tmp_path / "home"
    shutil.copytree(wheels, home / "wheels")
    (tmp_path / "pip.py").write_text("raise SystemExit('this is somebody else')")  # where the command is typed
    for path in (home, *home.rglob("*")):
        os.chown(path, *(2 * [NOBODY] if before else (os.geteuid(), os.getegid())))
    one_env = {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}
    other_env = {"TZ": "Asia/Kathmandu", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "2", "SOURCE_DATE_EPOCH": "1700000000"}
    first = {"cwd": tmp_path, "umask": 0o022, "env": one_env}
    second = {"cwd": "/", "umask": 0o077, "before": before, "env": {**other_env, "PYTHONOPTIMIZE": "1", "TMPDIR": str(home)}}
    runs = [first, second, *({**first, "python": python} for python in other_pythons())]
    hashes = []
    for number, how in enumerate(runs):
        out = tmp_path / ("x" * 10 * number or "y") / "dist"
        done = in_process(wheels, *ONE, *options, "--out", str(out), **how)
        assert done.returncode == 0, done.stderr
        [path] = out.iterdir()
        assert path.stat().st_uid == (NOBODY if before and how is second else os.geteuid())
        hashes.append(sha256(path))
    assert len(set(hashes)) == 1


def test_compiled_modules_are_taken_without_a_look_at_the_source(run, tmp_path):
    done = run(*ONE, "--compile")
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "dist").iterdir()
    assert path.name == f"perinvoke-{VERSION}-compiled-python{PYTHON}.zip"
    layer = read_layer_zip(path)
    assert (layer.name, layer.parts) == (f"perinvoke-compiled-python{PYTHON.replace('.', '_')}", ("core", "compiled"))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
        assert json.loads(archive.read("perinvoke/layer.json"))["compiled_by"] == "{}.{}.{}".format(*sys.version_info)
    for source in (tmp_path / "python").rglob("*.py"):
        source.write_text("raise AssertionError")
    script = "import sys; sys.path.insert(0, sys.argv[1]); import perinvoke.handler, filelock, contextvars_extras"
    subprocess.run([sys.executable, "-I", "-S", "-c", script, str(tmp_path / "python")], check=True)


def test_with_pgbouncer_the_binary_and_its_extension_can_be_run(run, tmp_path):
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0)
    (tmp_path / "pgbouncer").write_bytes(header)
    done = run("--arch", "arm64", "--with-pgbouncer", "pgbouncer")
    assert done.returncode == 0, done.stderr
    assert "note: pgbouncer comes without its licence" in done.stdout
    [path] = (tmp_path / "dist").iterdir()
    assert path.name == f"perinvoke-{VERSION}-pgbouncer-arm64.zip"
    layer = read_layer_zip(path)
    assert (layer.pythons, layer.architectures, layer.parts) == (("3.13", "3.14"), ("arm64",), ("core", "pgbouncer"))
    with zipfile.ZipFile(path) as archive:
        modes = {info.filename: oct(info.external_attr >> 16) for info in archive.infolist() if info.external_attr >> 16 & 0o100}
    assert modes == dict.fromkeys(("bin/pgbouncer", "extensions/perinvoke-pgbouncer", "perinvoke/exec"), "0o100755")


def test_without_a_python_that_could_compile_it_says_how_to_get_one(run, tmp_path, monkeypatch):
    wanted = next(version for version in PYTHONS if version != PYTHON)
    interpreters(
        tmp_path / "shims", {f"python{wanted}": None, "python3": f"pypy {wanted}.1", "python": f"cpython {wanted}.0 alpha"}
    )
    monkeypatch.setenv("PATH", str(tmp_path / "shims"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    done = run("--python", wanted, "--compile")
    assert done.returncode == 2
    assert f"--compile needs Python {wanted} itself, and there is none" in done.stderr
    assert f"pyenv install {wanted}" in done.stderr
    assert not (tmp_path / "dist").exists()


def test_a_user_without_a_home_is_told_the_same():
    wanted = next(version for version in PYTHONS if version != PYTHON)
    if not as_nobody():
        pytest.skip("only root can be another user")
    setpriv, *words = (word.replace(f"reuid={NOBODY}", "reuid=60123") for word in as_nobody())
    build = f"-m perinvoke layer build --python {wanted} --compile".split()
    command = [shutil.which(setpriv) or setpriv, *words, sys.executable, *build]
    done = subprocess.run(command, env={"PATH": "/nowhere"}, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"--compile needs Python {wanted} itself" in done.stderr


def test_of_several_versions_the_newest_compiles(tmp_path, monkeypatch):
    wanted = next(version for version in PYTHONS if version != PYTHON)
    for patch in (9, 10):
        interpreters(tmp_path / "versions" / f"{wanted}.{patch}" / "bin", {f"python{wanted}": f"cpython {wanted}.{patch}"})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert find_interpreter(wanted).version == f"{wanted}.10"


def interpreters(folder: Path, says: dict[str, str | None]) -> None:
    """What calls itself so when it is asked; None: pyenv's shim of a version that isn't installed."""
    folder.mkdir(parents=True)
    for name, text in says.items():
        words = [*(text or "").split(), "final"][:3]
        answer = f"echo {' '.join(words)} plain /usr/bin/{name}" if text else f"echo 'pyenv: {name}: not found' >&2; exit 127"
        (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--python", "3.15"), "--python '3.15': there is no '3.15'. Choose from 3.11, 3.12, 3.13, 3.14"),
        (("--python", "3.9,3.13"), "there is no '3.9'"),
        (("--python", "313"), "Did you mean 3.13?"),
        (("--python", "python3.13"), "Did you mean 3.13?"),
        (("--python", "3.13.1"), "Did you mean 3.13?"),
        (("--python", ""), "a name is missing"),
        (("--python", "3.13,,3.14"), "a name is missing"),
        (("--python", "3.13,3.13"), "3.13 is there twice"),
        (("--arch", "arm"), "--arch 'arm': there is no 'arm'. Did you mean arm64? Choose from x86_64, arm64"),
        (("--arch", "aarch64"), "Did you mean arm64?"),
        (("--arch", "amd64"), "Did you mean x86_64?"),
        (("--arch", "sparc"), "there is no 'sparc'. Choose"),
        (("--arch", "arm64,arm64"), "arm64 is there twice"),
        (("--out", "file"), "--out file: file is not a directory; name another"),
        (("--out", "file/below"), "file/below is not a directory; name another"),
        (("--out", "/proc/nowhere"), "--out /proc/nowhere can't be written (No such file or directory)"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_fetched(run, tmp_path, arguments, message):
    (tmp_path / "file").touch()
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "fetching" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_somebody_else_is_told(wheels, tmp_path):
    if os.geteuid() == 0 and not as_nobody():
        pytest.skip("root may write everywhere")
    nobody = tuple(word.replace("dac_override", "dac_read_search") for word in as_nobody())
    (tmp_path / "theirs").mkdir(mode=0o555)
    done = in_process(wheels, *ONE, "--out", str(tmp_path / "theirs"), before=nobody, cwd=tmp_path)
    assert done.returncode == 2
    assert "theirs can't be written (Permission denied); name another" in done.stderr


def test_a_full_disk_is_told_and_leaves_the_old_zip_as_it_was(wheels, tmp_path):
    """The limit on a file's size stands for the disk: the wheels are below it, and the zip above."""
    old = tmp_path / f"perinvoke-{VERSION}.zip"
    old.write_text("old")
    limit = 400_000
    assert max(path.stat().st_size for path in wheels.iterdir()) < limit
    full = ("prlimit", f"--fsize={limit}")
    if shutil.which("prlimit") is None:
        pytest.skip("there is no prlimit (util-linux)")
    done = in_process(wheels, *ONE, "--out", str(tmp_path), before=full)
    assert done.returncode == 2
    assert "the zip can't be written (File too large); what was there before is as it was. Make room" in done.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(old.name, "old")]


def test_a_wheel_with_another_hash_is_refused_and_the_old_zip_stays(run, wheels, tmp_path, monkeypatch):
    assert run(*ONE).returncode == 0
    [old] = (tmp_path / "dist").iterdir()
    before = sha256(old)
    tampered = tmp_path / "tampered"
    shutil.copytree(wheels, tampered)
    [wheel] = tampered.glob("filelock-*")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("filelock/more.py", "print('hello')")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tampered))
    done = run(*ONE)
    assert done.returncode == 2
    assert "filelock==" in done.stderr
    assert "another file than the one that is locked" in done.stderr
    assert [sha256(path) for path in (tmp_path / "dist").iterdir()] == [before]


def test_a_wheel_that_is_nowhere_is_told_with_the_target(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    done = run("--python", "3.11", "--arch", "arm64")
    assert done.returncode == 2
    assert "pip finds no wheel of contextvars-extras==0.7.0 for python3.11 arm64, whose glibc is 2.26" in done.stderr


def test_a_relative_folder_of_wheels_is_one_where_the_command_is_typed(run, wheels, tmp_path, monkeypatch):
    shutil.copytree(wheels, tmp_path / "folder")
    monkeypatch.setenv("PIP_FIND_LINKS", "folder")
    done = run(*ONE)
    assert done.returncode == 0, done.stderr


def test_a_configuration_that_pip_does_not_understand_is_told(run, monkeypatch):
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    done = run(*ONE)
    assert done.returncode == 2
    assert "timeout" in done.stderr
    assert "'soon'" in done.stderr


class _Denied(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def index(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://me:secret@127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()


def test_an_index_that_does_not_answer_is_told_without_its_password(run, monkeypatch):
    with index(_Denied) as url:
        pass  # closed again
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.delenv("PIP_FIND_LINKS")
    done = run(*ONE)
    assert done.returncode == 2
    assert "pip can't reach the package index: [Errno 111] Connection refused. Check the network" in done.stderr
    assert "secret" not in done.stderr


def test_an_index_that_says_no_is_told_without_its_password(run, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.delenv("PIP_FIND_LINKS")
    with index(_Denied) as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        done = run(*ONE)
    assert done.returncode == 2
    assert "secret" not in done.stderr
    assert "contextvars-extras==0.7.0" in done.stderr or "403" in done.stderr


@pytest.mark.slow
def test_what_is_built_for_one_machine_gets_a_zip_for_each_target(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["layer", "build", "--with-sql", "--python", "3.14", "--arch", "arm64"])
    done = Done(code, *capsys.readouterr())
    if done.returncode != 0 and not os.environ.get("CI"):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "dist").iterdir()
    assert path.name == f"perinvoke-{VERSION}-sql-python3.14-arm64.zip"
    layer = read_layer_zip(path)
    assert (layer.name, layer.pythons, layer.architectures) == ("perinvoke-sql-python3_14-arm64", ("3.14",), ("arm64",))
    assert {"sqlalchemy", "psycopg", "psycopg-binary", "pymysql", "typing-extensions"} <= set(layer.packages)
    assert missing_in(path) == set()
    libraries = [name for name in names_in(layer.path) if ".so" in name]
    assert any(name.startswith("python/psycopg_binary/") and "cpython-314-aarch64" in name for name in libraries)
    assert not any("x86_64" in name for name in libraries)


def test_ctrl_c_leaves_neither_processes_nor_files(wheels, tmp_path):
    """The signal comes to the command alone, while pip waits for an index."""
    arrived, release = threading.Event(), threading.Event()

    class Slow(_Denied):
        def do_GET(self) -> None:
            arrived.set()
            release.wait(30)

    with index(Slow) as url:
        variables = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": url, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, "-m", "perinvoke", "layer", "build", *ONE, "--out", str(tmp_path / "out")],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert arrived.wait(60)
        process.send_signal(2)
        process.communicate(timeout=60)
        release.set()
    assert process.returncode == 130
    assert list((tmp_path / "out").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [line for line in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in _read(line)] == []


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""
