"""The Terraform example: its names, shapes and references against the provider's schema, and its format."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from terraform_problems import problems
from terraform_schema import Schema

MISTAKES = {
    "there is no aws_lambda_capacity_providers": ('"aws_lambda_capacity_provider" "', '"aws_lambda_capacity_providers" "'),
    "there is no subnets": ("subnet_ids         = var", "subnets            = var"),
    "subnet_ids is missing": ("    subnet_ids         = var.subnet_ids\n", ""),
    "function_name is missing": ('  function_name    = "orders"\n', ""),
    "max_vcpu_count is a number, not '\"many\"'": ("max_vcpu_count = 32", 'max_vcpu_count = "many"'),
    "layers is a list, not": ("layers           = [aws_lambda_layer_version.perinvoke.arn]", 'layers           = "arn"'),
    "skip_destroy is a bool, not": ("skip_destroy             = true", "skip_destroy             = [true]"),
    "environment is a block, not an argument": ("  environment {", "  environment = {"),
    "layers is an argument, not a block": ("layers           = [aws_lambda_layer_version.perinvoke.arn]", "layers {}"),
    "there is no concurrency": ("per_execution_environment_max_concurrency = 16", "concurrency = 16"),
    "var.layer isn't declared": ("filename                 = var.layer_zip", "filename                 = var.layer"),
    "local.route isn't declared": ("local.routes[var.route].variables", "local.route[var.route].variables"),
    "aws_iam_role.operators isn't declared": ("aws_iam_role.operator.arn", "aws_iam_role.operators.arn"),
    "aws_lambda_layer_version.perinvoke has no version_arn": (
        "aws_lambda_layer_version.perinvoke.arn",
        "aws_lambda_layer_version.perinvoke.version_arn",
    ),
}


@pytest.fixture(scope="session")
def schema() -> Schema:
    (wheel,) = (Path(sys.prefix) / "schema").glob("*.whl")
    return Schema(str(wheel))


def test_it_fits_the_providers_schema(examples, schema):
    assert problems(examples / "terraform", schema) == []


@pytest.mark.parametrize("told", MISTAKES)
def test_a_mistake_is_found(told, with_mistake, schema):
    found = problems(with_mistake("terraform", "main.tf", *MISTAKES[told]), schema)
    assert [problem for problem in found if told in problem], found


@pytest.mark.skipif(shutil.which("terraform") is None, reason="there is no terraform here")
def test_it_is_formatted(examples, with_mistake):
    assert subprocess.run(["terraform", "fmt", "-check", "-diff", examples / "terraform"], check=False).returncode == 0
    wrong = with_mistake("terraform", "main.tf", "timeout          = 30", "timeout = 30")
    assert subprocess.run(["terraform", "fmt", "-check", wrong], check=False, capture_output=True).returncode != 0
