"""What a layer is made of, part by part: locks, wheels, binaries, the plan, the zip and its reader."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from perinvoke.errors import PerinvokeError
from perinvoke.layer.build import pgbouncer
from perinvoke.layer.build.archive import Planned, written
from perinvoke.layer.build.complaints import error_from, last_line
from perinvoke.layer.build.contents import with_pyc
from perinvoke.layer.build.elf import read_elf
from perinvoke.layer.build.entries import Entry
from perinvoke.layer.build.interpreters import Interpreter
from perinvoke.layer.build.locks import PACKAGE_PARTS, Locked, format_lock, parse_lock, read_lock
from perinvoke.layer.build.pgbouncer import doubts, read_binaries, read_binary
from perinvoke.layer.build.plan import Content, plan
from perinvoke.layer.build.relock import ranges
from perinvoke.layer.build.report import built, facts_of, next_command, notes_of, show
from perinvoke.layer.build.targets import Target, all_targets, parse_targets
from perinvoke.layer.build.wheels import entries_of, installed_name
from perinvoke.layer.errors import LayerError, LayerUnavailable
from perinvoke.layer.limits import MIB, PYTHONS
from perinvoke.layer.zips import read_layer_zip

X86, ARM = Target("3.13", "x86_64"), Target("3.13", "arm64")
HASH = "0" * 64
REAL = Path("/usr/sbin/pgbouncer")


def entry(name: str, content: bytes = b"", package: str = "some 1.0", *, executable: bool = False) -> Entry:
    return Entry(name, content, executable, package)


def content_of(*entries: Entry, own_python: bool = False, own_architecture: bool = False) -> Content:
    return Content(entries=list(entries), packages={"some": "1.0"}, own_python=own_python, own_architecture=own_architecture)


# --- targets and locks


def test_targets_are_in_lambdas_order_whatever_order_was_typed():
    assert parse_targets("3.14, 3.13", "arm64,x86_64") == [
        Target("3.13", "x86_64"),
        Target("3.13", "arm64"),
        Target("3.14", "x86_64"),
        Target("3.14", "arm64"),
    ]


def test_pip_is_told_of_no_glibc_that_the_runtime_does_not_have():
    old, new = Target("3.11", "x86_64").pip_options, Target("3.12", "arm64").pip_options
    assert "manylinux_2_26_x86_64" in old
    assert "manylinux1_x86_64" in old
    assert "manylinux_2_27_x86_64" not in old
    assert new.index("manylinux_2_34_aarch64") < new.index("manylinux2014_aarch64")
    assert not {"manylinux_2_35_aarch64", "manylinux_2_16_aarch64", "manylinux_2_17_x86_64"} & set(new)


def test_a_lock_reads_what_it_writes():
    packages = [Locked("b-c", "1.0.post1", (HASH, "1" * 64)), Locked("a", "2", (HASH,))]
    assert parse_lock(format_lock(packages)) == sorted(packages)
    for wrong in ("a>=1 --hash=sha256:" + HASH, "a==1", "--index-url http://somewhere/simple", "a==1 --hash=md5:00"):
        with pytest.raises(ValueError, match="not a locked package"):
            parse_lock(wrong)


@pytest.mark.parametrize("part", PACKAGE_PARTS)
@pytest.mark.parametrize("python", PYTHONS)
def test_locks_are_within_what_perinvoke_asks_for_and_bring_what_that_needs(part, python):
    locked = {package.name: package.version for name in ("core", part) for package in read_lock(name, python)}
    for text in ranges(part):
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), text


def test_the_lists_name_no_place_from_where_to_take_packages():
    for path in Path(read_lock.__code__.co_filename).parent.glob("locks/*.txt"):
        assert "/" not in path.read_text()


def test_a_python_with_a_list_of_its_own_gets_that():
    own = list(Path(read_lock.__code__.co_filename).parent.glob("locks/*-python*.txt"))
    assert own
    for path in own:
        assert read_lock(*path.stem.split("-python")) == parse_lock(path.read_text())


@pytest.mark.parametrize("part", PACKAGE_PARTS)
def test_a_package_has_one_version_in_all_lists_of_one_python(part):
    for python in PYTHONS:
        names = [package.name for other in PACKAGE_PARTS for package in read_lock(other, python)]
        assert len(names) == len(set(names))


# --- wheels


def wheel(folder: Path, files: dict[str, bytes], *, mode: int = 0o644, name: str = "some-1.0-py3-none-any.whl") -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            info = zipfile.ZipInfo(file)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def test_of_a_wheel_what_an_installer_would_put_beside_the_code_is_taken(tmp_path):
    files = {
        "some/__init__.py": b"",
        "some/__pycache__/__init__.cpython-313.pyc": b"",
        "some-1.0.data/purelib/pure.py": b"",
        "some-1.0.data/platlib/plat.so": b"",
        "some-1.0.data/scripts/some": b"",
        "some-1.0.data/headers/some.h": b"",
        "some-1.0.dist-info/METADATA": b"",
        "some-1.0.dist-info/RECORD": b"",
        "some-1.0.dist-info/WHEEL": b"",
        "some-1.0.dist-info/INSTALLER": b"",
        "some-1.0.dist-info/direct_url.json": b"",
        "some-1.0.dist-info/licenses/a/COPYING": b"",
        "some-1.0.dist-info/LICENCE.rst": b"",
        "some-1.0.dist-info/NOTICE": b"",
        "some-1.0.dist-info/entry_points.txt": b"[console_scripts]\nsome = some:main\n",
    }
    names = {found.name.removeprefix("python/") for found in entries_of(wheel(tmp_path, files))}
    assert names == {
        "some/__init__.py",
        "pure.py",
        "plat.so",
        *(f"some-1.0.dist-info/{kept}" for kept in ("METADATA", "licenses/a/COPYING", "LICENCE.rst", "NOTICE")),
    }


def test_entry_points_that_are_no_scripts_stay(tmp_path):
    text = b"[console_scripts]\nsome = some:main\n[sqlalchemy.dialects]\nsome = some:Dialect\n"
    [found] = entries_of(wheel(tmp_path, {"some-1.0.dist-info/entry_points.txt": text}))
    assert found.content == text


@pytest.mark.parametrize(
    "name",
    ["../outside.py", "/outside.py", "some/../../outside.py", "some\\outside.py", "c:outside.py", "some//x.py", "some/./x.py",
     "some-1.0.data/purelib/../../../x.py"],
)  # fmt: skip
def test_a_wheel_that_would_write_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(LayerError, match="would not lie in the layer"):
        entries_of(wheel(tmp_path, {"some/__init__.py": b"", name: b""}))


def test_a_link_in_a_wheel_is_refused(tmp_path):
    with pytest.raises(LayerError, match="would not lie in the layer"):
        entries_of(wheel(tmp_path, {"some.py": b"/etc/passwd"}, mode=0o120777))


def test_a_wheel_with_two_files_of_one_name_is_refused(tmp_path):
    with pytest.raises(LayerError, match=r"there is 'some.py' twice"):
        entries_of(wheel(tmp_path, {"some.py": b"1", "some-1.0.data/purelib/some.py": b"2"}))


def test_a_damaged_wheel_is_told(tmp_path):
    path = wheel(tmp_path, {"some.py": os.urandom(1000)})
    path.write_bytes(path.read_bytes().replace(b"PK\x03\x04", b"PK\x03\x05"))
    with pytest.raises(LayerError, match=r"some-1.0-py3-none-any.whl can't be read"):
        entries_of(path)


def test_data_folders_do_not_hide_metadata_of_installations():
    assert installed_name("a-1.data/purelib/a-1.dist-info/RECORD") is None
    assert installed_name("a-1.data/purelib/a-1.dist-info/METADATA") == "a-1.dist-info/METADATA"


# --- binaries


def elf(*, machine: int = 62, kind: int = 3, bits: int = 2) -> bytes:
    header = (
        b"\x7fELF"
        + bytes([bits, 1, 1])
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0)
    )
    return header + bytes(64)


def binary(folder: Path, content: bytes, name: str = "pgbouncer") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_interpreter_itself_is_read_as_readelf_would():
    found = read_elf(Path(sys.executable).read_bytes())
    machine = {"x86_64": "x86_64", "aarch64": "arm64"}[os.uname().machine]
    assert (found.machine, found.is_program) == (machine, True)
    assert "libc.so.6" in found.needed
    assert "/ld-linux" in found.loader
    assert 17 <= found.glibc_minor < 100


def test_every_cut_of_a_binary_is_told_and_none_is_an_accident(tmp_path):
    whole = Path(shutil.which("true") or sys.executable).read_bytes()
    assert read_elf(whole).is_program
    for size in (*range(0, 1200, 7), *range(1200, len(whole), len(whole) // 50)):
        try:
            read_elf(whole[:size])
        except ValueError:
            pass


def test_each_architecture_gets_the_binary_that_is_built_for_it(tmp_path):
    intel = binary(tmp_path, elf(kind=2), "intel")
    arm = binary(tmp_path, elf(machine=183, kind=2), "arm")
    found = read_binaries([arm, intel], [X86, ARM])
    assert {name: files.path for name, files in found.items()} == {"x86_64": intel, "arm64": arm}
    assert found["arm64"].entries[0][:3] == ("bin/pgbouncer", arm.read_bytes(), True)
    assert read_binaries([], [X86, ARM]) == {}


def test_an_architecture_without_a_binary_is_told_with_both_ways_out(tmp_path):
    intel = binary(tmp_path, elf(kind=2))
    with pytest.raises(LayerError, match=r"no pgbouncer for arm64: .*pgbouncer is for x86_64.*--with-pgbouncer.*--arch x86_64"):
        read_binaries([intel], [X86, ARM])
    with pytest.raises(LayerError, match=r"it is for x86_64, and the layer for arm64. Change --arch"):
        read_binaries([intel], [ARM])
    with pytest.raises(LayerError, match=r"is for x86_64 already"):
        read_binaries([intel, intel], [X86])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!/bin/sh\n", "it isn't an ELF file"),
        (b"", "it isn't an ELF file"),
        (elf(bits=1, machine=3), "it is for x86 .32 bits., and not for 64 bits"),
        (elf(kind=1), "neither a program nor a shared library"),
        (elf(kind=3), "it is a library and can't be run"),
        (elf(kind=2)[:30], "headers are damaged"),
    ],
)
def test_what_is_no_program_is_told(tmp_path, content, message):
    with pytest.raises(LayerError, match=f"--with-pgbouncer .*pgbouncer: .*{message}"):
        read_binary(binary(tmp_path, content))


def test_a_missing_or_empty_path_is_told(tmp_path):
    with pytest.raises(LayerError, match=r"nowhere: it can't be read \(No such file or directory\)"):
        read_binary(tmp_path / "nowhere")
    with pytest.raises(LayerError, match=r"there is no bin/pgbouncer in it"):
        read_binary(tmp_path)


def test_a_directory_brings_libraries_and_the_licence(tmp_path):
    binary(tmp_path, elf(kind=2), "bin/pgbouncer")
    binary(tmp_path, elf(), "lib/libevent-2.1.so.7")
    (tmp_path / "lib" / "libevent.la").write_text("no library")
    (tmp_path / "COPYRIGHT").write_text("ISC")
    files = read_binary(tmp_path)
    names = [found.name for found in files.entries]
    assert names == ["bin/pgbouncer", "lib/libevent-2.1.so.7", "perinvoke/licenses/pgbouncer/COPYRIGHT"]
    assert doubts(files, [X86]) == []
    binary(tmp_path, elf(machine=183), "lib/libevent-2.1.so.7")
    with pytest.raises(LayerError, match=r"libevent-2.1.so.7: it is for arm64, and .*pgbouncer for x86_64"):
        read_binary(tmp_path)


def test_a_glibc_newer_than_lambdas_and_missing_libraries_are_doubts(tmp_path):
    files = pgbouncer.PgBouncerFiles(
        path=Path("pgbouncer"),
        architecture="x86_64",
        entries=[],
        glibc_minor=33,
        needed=("libc.so.6", "libevent-2.1.so.7", "libssl.so.3"),
        has_licence=True,
    )
    [doubt] = doubts(files, [X86, ARM])
    assert doubt.startswith("pgbouncer needs libevent-2.1.so.7, which Lambda's runtime is not known to have. Put them beside it")
    old = doubts(files, [Target("3.11", "x86_64"), X86])
    assert old[0].startswith("pgbouncer needs glibc 2.33, and python3.11 x86_64 has 2.26: it won't start there.")
    assert "libevent-2.1.so.7, libssl.so.3" in old[1]


@pytest.mark.skipif(not REAL.is_file(), reason="there is no pgbouncer here")
def test_the_real_pgbouncer_is_read_as_ldd_and_its_version_say():
    files = read_binary(REAL)
    printed = subprocess.run(["ldd", REAL], capture_output=True, text=True, check=True).stdout
    assert {"libc.so.6", *(name for name in files.needed if name.startswith("libevent"))} < set(files.needed)
    assert all(f"{name} => " in printed for name in files.needed)
    assert any("comes without its licence" in text for text in doubts(files, [Target("3.13", files.architecture)]))


# --- the modules


def test_each_python_gets_what_its_own_interpreter_made():
    contents = {Target(python, "arm64"): content_of(entry("python/a.py")) for python in PYTHONS}
    found = with_pyc(contents, {python: Interpreter(sys.executable, f"{python}.1") for python in PYTHONS}, lambda: None)
    for target, content in found.items():
        tag = f"cpython-{target.python.replace('.', '')}"
        assert [made.name for made in content.entries] == ["python/a.py", f"python/__pycache__/a.{tag}.pyc"]
        assert (content.compiled_by, content.own_python) == (f"{target.python}.1", True)


# --- the plan


def test_targets_whose_files_are_the_same_share_a_zip():
    shared = content_of(entry("python/a.py", b"a"))
    [zip_file] = plan(dict.fromkeys(all_targets(), shared), ["core"], "1.0")
    assert zip_file.file_name == "perinvoke-1.0.zip"
    told = json.loads(zip_file.entries[-1].content)
    assert (told["pythons"], told["architectures"]) == (list(PYTHONS), ["x86_64", "arm64"])


def test_a_zip_is_named_after_what_it_is_for():
    contents = {
        Target(python, architecture): content_of(entry("bin/pgbouncer", architecture.encode()), own_architecture=True)
        for python in ("3.13", "3.14")
        for architecture in ("x86_64", "arm64")
    }
    zips = plan(contents, ["core", "boto3", "pgbouncer"], "1.0")
    assert [zip_file.file_name for zip_file in zips] == [
        "perinvoke-1.0-boto3-pgbouncer-x86_64.zip",
        "perinvoke-1.0-boto3-pgbouncer-arm64.zip",
    ]
    told = [json.loads(zip_file.entries[-1].content) for zip_file in zips]
    assert [layer["name"] for layer in told] == ["perinvoke-boto3-pgbouncer-x86_64", "perinvoke-boto3-pgbouncer-arm64"]
    assert told[0]["pythons"] == ["3.13", "3.14"]
    own = {X86: content_of(entry("python/a.so", b"a"), own_python=True, own_architecture=True)}
    [one] = plan(own, ["core", "sql"], "1.0")
    assert one.file_name == "perinvoke-1.0-sql-python3.13-x86_64.zip"
    assert json.loads(one.entries[-1].content)["name"] == "perinvoke-sql-python3_13-x86_64"


def test_zips_that_differ_never_have_one_name():
    contents = {
        Target("3.11", "arm64"): content_of(entry("python/a", b"1")),
        Target("3.12", "arm64"): content_of(entry("python/a", b"2")),
    }
    names = [zip_file.file_name for zip_file in plan(contents, ["core"], "1.0")]
    assert names == ["perinvoke-1.0-python3.11.zip", "perinvoke-1.0-python3.12.zip"]


def test_two_packages_that_bring_one_file_are_told():
    contents = {X86: content_of(entry("python/tests/a.py", b"1", "a 1"), entry("python/tests/a.py", b"2", "b 2"))}
    with pytest.raises(LayerError, match=r"a 1 and b 2 both bring 'python/tests/a.py'"):
        plan(contents, ["core"], "1.0")


def test_a_zip_over_the_limit_is_told_with_its_largest_parts():
    block = bytes(60 * MIB)
    entries = [entry(f"python/{number}", block, f"package{number} 1.0") for number in range(4)]
    entries.append(entry("python/more", bytes(20 * MIB), "package0 1.0"))
    with pytest.raises(
        LayerError, match=r"260.0 MB unpacked, and Lambda takes 250 MB.*: package0 1.0 80.0 MB, package1 1.0 60.0 MB"
    ):
        plan({X86: content_of(*entries)}, ["core"], "1.0")


# --- the zip, its reader, the report


def write(folder: Path, name: str = "perinvoke-1.0.zip", *more: Entry) -> tuple[Path, list[Entry]]:
    [planned] = plan({X86: content_of(entry("python/a.py", b"a" * 1000), *more)}, ["core"], "1.0")
    with written(folder, [Planned(name, planned.entries)]):
        pass
    return folder / name, planned.entries


def test_bytes_do_not_depend_on_when_or_in_which_order(tmp_path):
    entries = [entry(f"python/{name}.py", name.encode(), executable=name == "ü") for name in ("c", "b", "ü")]
    hashes = []
    for number, order in enumerate((entries, entries[::-1])):
        (tmp_path / str(number)).mkdir()
        path, _ = write(tmp_path / str(number), "perinvoke-1.0.zip", *order)
        hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
        time.sleep(2.1 if number == 0 else 0)  # a zip counts time in steps of two seconds
    assert hashes[0] == hashes[1]


def test_the_reader_tells_what_lambda_will(tmp_path):
    path, entries = write(tmp_path)
    layer = read_layer_zip(path)
    assert (layer.path, layer.name, layer.perinvoke, layer.runtimes) == (path, "perinvoke", "1.0", ("python3.13",))
    digest = hashlib.sha256(path.read_bytes()).digest()
    assert (layer.sha256, layer.code_sha256) == (digest.hex(), base64.b64encode(digest).decode())
    assert layer.packed_bytes == path.stat().st_size
    assert layer.unpacked_bytes == sum(len(found.content) for found in entries)


def test_what_is_no_layer_is_told(tmp_path):
    with pytest.raises(
        LayerError, match=r"nowhere.zip can't be read: No such file or directory. Build one: perinvoke layer build"
    ):
        read_layer_zip(tmp_path / "nowhere.zip")
    with pytest.raises(LayerError, match=r"can't be read: Is a directory"):
        read_layer_zip(tmp_path)
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(LayerError, match=r"text.zip is no zip, or a damaged one"):
        read_layer_zip(tmp_path / "text.zip")
    path, _ = write(tmp_path)
    (tmp_path / "cut.zip").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(LayerError, match=r"cut.zip is no zip, or a damaged one"):
        read_layer_zip(tmp_path / "cut.zip")
    (tmp_path / "bent.zip").write_bytes(path.read_bytes().replace(b"PK\x03\x04", b"PK\x03\x05"))
    with pytest.raises(LayerError, match=r"bent.zip is no zip, or a damaged one"):
        read_layer_zip(tmp_path / "bent.zip")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (None, "there is no perinvoke/layer.json in it"),
        ("no json", "holds no JSON object"),
        ("[1]", "holds no JSON object"),
        ("{}", "isn't what this version of perinvoke writes .KeyError"),
        (
            '{"name": "a", "perinvoke": "1", "pythons": [], "architectures": ["a"], "parts": ["core"], "packages": {}}',
            "TypeError",
        ),
        (
            '{"name": 1, "perinvoke": "1", "pythons": ["3"], "architectures": ["a"], "parts": ["core"], "packages": {}}',
            "TypeError",
        ),
        (
            '{"name": "a", "perinvoke": "1", "pythons": ["3"], "architectures": ["a"], "parts": ["core"], "packages": []}',
            "Attribute",
        ),
        ("{}" + " " * 2_000_000, "holds no JSON object"),
    ],
)
def test_a_zip_of_somebody_else_is_told(tmp_path, told, message):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("python/a.py", "")
        if told is not None:
            archive.writestr("perinvoke/layer.json", told)
    with pytest.raises(LayerError, match=message):
        read_layer_zip(tmp_path / "other.zip")


def test_zips_take_their_places_together_or_not_at_all(tmp_path):
    path, entries = write(tmp_path)
    before = path.read_bytes()
    changed = [*entries, entry("python/b.py")]
    with pytest.raises(KeyboardInterrupt), written(tmp_path, [Planned(path.name, changed), Planned("perinvoke-2.zip", entries)]):
        raise KeyboardInterrupt
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == {path.name: before}


def test_a_place_that_is_a_directory_is_told(tmp_path):
    (tmp_path / "perinvoke-1.0.zip").mkdir()
    with pytest.raises(LayerError, match=r"--out .* can't be written \(Is a directory\)"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["perinvoke-1.0.zip"]


def test_the_report_says_what_is_too_large_for_a_direct_upload_and_what_else_lies_there(tmp_path):
    path, entries = write(tmp_path, "perinvoke-1.0.zip", entry("lib/large", bytes(MIB), "large 2.0"))
    item = built(read_layer_zip(path), entries)
    assert item.largest[0][0] == "large 2.0"
    assert dict(facts_of(item))["largest"].startswith("large 2.0 1 MB, some 1.0 0.00 MB")
    item = item._replace(layer=replace(item.layer, packed_bytes=50 * MIB + 1))
    (tmp_path / "perinvoke-0.9.zip").touch()
    notes = notes_of([item], tmp_path, usual_zlib=False)
    assert notes[0] == "perinvoke-1.0.zip is over 50 MB, so it goes through S3: publish it with --bucket B"
    assert "perinvoke-0.9.zip" in notes[1]
    assert "zlib-ng" in notes[2]
    assert next_command([item], Path("dist")) == "perinvoke layer publish --bucket BUCKET"
    assert next_command([item], tmp_path) == f"perinvoke layer publish {path} --bucket BUCKET"


def test_on_a_narrow_terminal_the_next_command_is_one_line(tmp_path, monkeypatch, capsys):
    path, entries = write(tmp_path, "perinvoke-1.0.zip", entry("lib/large", bytes(MIB), "large 2.0"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for variable, value in {"COLUMNS": "30", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(variable, value)
    show([built(read_layer_zip(path), entries)], tmp_path, ["a sentence that is longer than the terminal is wide"])
    lines = [line for line in capsys.readouterr().out.splitlines() if ":" in line]
    assert f"perinvoke layer publish {path}" in lines[-1]
    assert "note: a sentence that is longer than the terminal is wide" in lines[-2]


# --- what pip says


NO_WHEEL = "ERROR: No matching distribution found for a==1"
OFFLINE = (
    "WARNING: Retrying (Retry(total=1)) after connection broken by 'NameResolutionError(\"Failed to resolve 'host' ({})\")': /a/"
)
PIP_SAYS = [
    (f"{sys.executable}: No module named pip", LayerError, "has no pip, .*-m ensurepip"),
    (
        "ERROR: Exception:\nOSError: [Errno 28] No space left on device",
        LayerUnavailable,
        r"\(No space left.*\). Make room, or set TMPDIR",
    ),
    (
        f"WARNING: 401 Error, Credentials not correct for https://u:p@host/x\n{NO_WHEEL}",
        LayerError,
        r"doesn't let pip in: 401 Error, Credentials not correct for https://\*\*\*\*@host/x. See",
    ),
    (
        OFFLINE.format("[Errno -2] Name or service not known") + f"\n{NO_WHEEL}",
        LayerUnavailable,
        r"can't reach the package index: \[Errno -2\] Name or service not known. Check",
    ),
    (NO_WHEEL, LayerError, "no wheel of a==1 for python3.13 arm64, whose glibc is 2.34. See"),
    (f"WARNING: The repository at host is ignored.\n{NO_WHEEL}", LayerError, r"2.34 \(The repository at host is ignored\). See"),
    (
        "ERROR: something new at https://user:secret@host/simple (from versions: 1, 2)",
        LayerError,
        r"can't fetch .* for python3.13 arm64: something new at https://\*\*\*\*@host/simple$",
    ),
    ("", LayerError, "can't fetch .*: exit code 1"),
]


@pytest.mark.parametrize(("printed", "kind", "message"), PIP_SAYS)
def test_what_pip_says_is_told_in_other_words(printed, kind, message):
    error = error_from(ARM, printed, 1)
    assert type(error) is kind
    assert isinstance(error, PerinvokeError)
    with pytest.raises(kind, match=message):
        raise error


def test_the_last_line_is_the_last_that_means_something():
    assert last_line("ERROR: one\nERROR: two.\nWARNING: three\n[notice] A new release\n\n") == "two"
    assert last_line("Traceback\n  File x\nOSError: four\n[notice] new\n") == "OSError: four"
    assert last_line("") == ""
