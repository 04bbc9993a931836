"""The examples: the function under load, the images' commands, the templates' names, and the guide's look-ups."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from packaging.requirements import Requirement

from environments import event, local, result, run
from perinvoke.cli import main
from perinvoke.settings import KNOWN
from plain_platform import Platform

EXAMPLES = Path(__file__).parents[1] / "examples"
FUNCTION = EXAMPLES / "function"
TEMPLATES = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in {".yaml", ".py", ".tf", ""} and path.is_file())


# --- the function --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [False, True])
def test_the_function_adds_up_its_own_prices_only_when_it_is_isolated(isolate, tmp_path):
    async def scenario() -> list[Any]:
        async with local("app.handler", directory=FUNCTION, isolate=isolate, env={"TMPDIR": str(tmp_path)}) as environment:
            return [result(await environment.invoke(event(prices=[number, number]))) for number in range(4)]

    sums = [answer["sum"] for answer in run(scenario())]
    assert (sums == [0, 2, 4, 6]) is isolate


def test_perinvoke_run_drives_the_function(root):
    command = ["run", "app.handler", "--isolate", "--workers", "2", "--requests", "8"]
    assert main([*command, "--directory", str(FUNCTION), "--events", str(FUNCTION / "events.jsonl")]) == 0


# --- the templates -------------------------------------------------------------------------------------------------------


def test_the_templates_name_this_versions_zip_and_settings_that_there_are():
    text = "\n".join(path.read_text(encoding="utf-8") for path in TEMPLATES)
    assert set(re.findall(r"dist/([\w.-]+\.zip)", text)) == {f"perinvoke-{version('perinvoke')}.zip"}
    named = set(re.findall(r"\bPERINVOKE_\w+", text))
    assert named == {"PERINVOKE_HANDLER", "PERINVOKE_PRELOAD"}
    assert named <= KNOWN


def test_the_templates_name_the_wrapper_and_the_handler_that_there_are():
    text = "\n".join(path.read_text(encoding="utf-8") for path in TEMPLATES)
    assert set(re.findall(r"/opt/perinvoke/[\w.]+", text)) == {"/opt/perinvoke/exec"}
    assert set(re.findall(r"[\"' ](perinvoke\.\w+\.\w+)", text)) - {"perinvoke.dist.info"} == {"perinvoke.handler.handler"}


# --- the guide -----------------------------------------------------------------------------------------------------------

# By the number of the hazard, what its look-up has to find; hazards 8 and 13 are no matter of words.
HAZARDS = {
    1: 'open("/tmp/report.csv", "w")',
    2: "path = tempfile.gettempdir()",
    3: 's3.download_file("models", "m.bin", path)',
    4: "cache: dict[str, int] = {}",
    5: 'os.environ["TENANT"] = tenant',
    6: "sys.exit(1)",
    7: "except BaseException:",
    9: "engine = create_engine(url)",
    10: 's3 = boto3.client("s3")',
    11: 'with FileLock("orders.lock"):',
    12: "table.put_item(Item=item)",
    13: "session.commit()",
    14: "Thread(target=work).start()",
    15: 'server.bind(("", 8080))',
    16: '    print("done")',
    17: 'Path("/tmp/secret").write_text(secret)',
}
HARMLESS = """
import logging

LIMIT = 3
logger = logging.getLogger(__name__)


def handler(event, context):
    logger.info("%s", event)
    return event["n"] + LIMIT
"""


def test_the_guides_look_ups_find_its_hazards(tmp_path):
    guide = (EXAMPLES.parent / "docs" / "moving.md").read_text(encoding="utf-8")
    look_ups = re.findall(r"^\$ (grep .*?)\s+# ([\d, ]+)$", guide, re.MULTILINE)
    found: set[int] = set()
    for command, numbers in look_ups:
        for number in map(int, numbers.split(", ")):
            (tmp_path / "app.py").write_text(f"{HARMLESS}\n{HAZARDS[number]}\n", encoding="utf-8")
            lines = subprocess.run(command, shell=True, cwd=tmp_path, check=False, stdout=PIPE, text=True).stdout.splitlines()
            assert len(lines) == 1, (command, lines)
            assert lines[0].endswith(HAZARDS[number])
            found.add(number)
    assert found == set(HAZARDS)


# --- the images ----------------------------------------------------------------------------------------------------------


def instructions(file: str) -> list[tuple[str, str]]:
    lines = (EXAMPLES / "image" / file).read_text(encoding="utf-8").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word.isupper()]


def test_the_image_installs_what_runs_here():
    (command,) = (shlex.split(rest) for word, rest in instructions("Dockerfile") if word == "RUN")
    assert command[:3] == ["pip", "install", "--no-cache-dir"]
    for text in command[3:]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(version(requirement.name)), text


def test_the_images_command_serves_the_function(root, tmp_path):
    of = dict(instructions("Dockerfile"))
    wrapper, python, *rest = json.loads(of["ENTRYPOINT"])
    assert (wrapper, python) == ("perinvoke-exec", "python")  # which the platform of these tests stands for
    variables = dict(pair.split("=") for pair in of["ENV"].split())
    with Platform() as platform:
        command = [sys.executable, *rest, *json.loads(of["CMD"])]
        platform.start(command, directory=FUNCTION, workers=2, log=tmp_path / "log", **variables)
        for _ in range(3):
            assert platform.call(prices=[3, 4]) == ("response", {"prices": 2, "sum": 7})
    assert [record for record in platform.records() if record["level"] != "INFO"] == []


def test_the_managed_image_unpacks_the_layer_so_that_its_wrapper_can_be_executed(tmp_path):
    (command,) = (rest for word, rest in instructions("Dockerfile.managed") if word == "RUN")
    archive = tmp_path / "tmp" / "perinvoke.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("perinvoke/exec", "#!/bin/sh\necho executed\n")
    here = re.sub(r"(?<= )/(tmp|layer)", rf"{tmp_path}/\1", command).replace("python ", f"{sys.executable} ", 1)
    subprocess.run(here, shell=True, check=True)
    assert subprocess.check_output([tmp_path / "layer/perinvoke/exec"], text=True) == "executed\n"
    assert dict(instructions("Dockerfile.managed"))["ENV"].startswith("AWS_LAMBDA_EXEC_WRAPPER=/opt/perinvoke/exec ")
