"""The SAM and CloudFormation templates, by cfn-lint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CFN_LINT = Path(sys.executable).parent / "cfn-lint"
TEMPLATES = ["sam", "cloudformation"]
# By folder, the rule that finds it, and the mistake.
MISTAKES = [
    ("sam", "E3002", "PublishToLatestPublished", "PublishToLatest"),
    ("sam", "E3002", "PerExecutionEnvironmentMaxConcurrency", "MaxConcurrency"),
    ("sam", "E3012", "ExecutionEnvironmentMemoryGiBPerVCpu: 4", "ExecutionEnvironmentMemoryGiBPerVCpu: much"),
    ("sam", "E3002", "InstanceRequirements", "Requirements"),
    ("sam", "E3006", "AWS::Serverless::CapacityProvider", "AWS::Serverless::CapacityProviders"),
    ("sam", "E1028", "[Wrapper, app.handler,", "[Wrapping, app.handler,"),
    ("cloudformation", "E3002", "CapacityProviderArn:", "Arn:"),
    ("cloudformation", "E3012", "PerExecutionEnvironmentMaxConcurrency: 16", "PerExecutionEnvironmentMaxConcurrency: many"),
    ("cloudformation", "E3030", "ScalingMode: Auto", "ScalingMode: Automatic"),
    (
        "cloudformation",
        "E3003",
        "      VpcConfig:\n        SubnetIds: !Ref SubnetIds\n        SecurityGroupIds: !Ref SecurityGroupIds\n",
        "",
    ),
    ("cloudformation", "E1010", "!GetAtt Instances.Arn", "!GetAtt Instances.Name"),
    ("cloudformation", "E3030", "Runtime: python3.13", "Runtime: python3.99"),
    ("cloudformation", "E1020", "[!Ref LayerVersionArn]", "[!Ref LayerVersion]"),
    ("cloudformation", "E1028", "[Wrapper, handler, ", "[Wrappers, handler, "),
]


def lint(paths: list[Path]) -> dict[str, set[str]]:
    """For each file the rules that it breaks."""
    command = [CFN_LINT, "--format", "json", "--regions", "eu-west-1", "--template", *paths]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not answer.stderr, answer.stderr
    broken: dict[str, set[str]] = {str(path): set() for path in paths}
    for problem in json.loads(answer.stdout or "[]"):
        broken[problem["Filename"]].add(problem["Rule"]["Id"])
    return broken


@pytest.fixture(scope="session")
def mistakes(with_mistake) -> list[set[str]]:
    """The rules that each of the mistakes breaks; one run, because most of it is cfn-lint's start."""
    paths = [with_mistake(folder, "template.yaml", right, wrong) / "template.yaml" for folder, _, right, wrong in MISTAKES]
    return list(lint(paths).values())


def test_the_templates_break_no_rule(examples):
    paths = [examples / folder / "template.yaml" for folder in TEMPLATES]
    assert lint(paths) == {str(path): set() for path in paths}


@pytest.mark.parametrize(
    "number", range(len(MISTAKES)), ids=[f"{folder}: {wrong or right}" for folder, _, right, wrong in MISTAKES]
)
def test_a_mistake_is_found(number, mistakes):
    assert MISTAKES[number][1] in mistakes[number]
