"""A function on Lambda Managed Instances, isolated by perinvoke's layer.

From the top folder: ``perinvoke layer build``. Then here::

    cdk deploy -c subnets=subnet-1,subnet-2 -c security_group=sg-1 [-c route=handler]
"""

from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

ROUTES = {
    "wrapper": ("app.handler", {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/perinvoke/exec", "PERINVOKE_PRELOAD": "handler"}),
    "handler": ("perinvoke.handler.handler", {"PERINVOKE_HANDLER": "app.handler"}),
}


class OrdersStack(cdk.Stack):
    """The layer, the instances, and the function on them."""

    def __init__(
        self, scope: Construct, name: str, *, route: str, subnets: list[str], security_group: str, zip_path: str
    ) -> None:
        super().__init__(scope, name)
        handler, variables = ROUTES[route]
        layer = lambda_.LayerVersion(
            self,
            "Layer",
            code=lambda_.Code.from_asset(zip_path),
            compatible_runtimes=[lambda_.Runtime.PYTHON_3_13, lambda_.Runtime.PYTHON_3_14],
            compatible_architectures=[lambda_.Architecture.X86_64, lambda_.Architecture.ARM_64],
            removal_policy=cdk.RemovalPolicy.RETAIN,  # versions of the function that were published before go on using theirs
        )
        instances = lambda_.CapacityProvider(
            self,
            "Instances",
            subnets=[ec2.Subnet.from_subnet_id(self, f"Subnet{number}", subnet) for number, subnet in enumerate(subnets)],
            security_groups=[ec2.SecurityGroup.from_security_group_id(self, "SecurityGroup", security_group)],
            architectures=[lambda_.Architecture.ARM_64],
            max_v_cpu_count=32,
        )
        function = lambda_.Function(
            self,
            "Orders",
            code=lambda_.Code.from_asset(str(Path(__file__).parents[1] / "function")),
            runtime=lambda_.Runtime.PYTHON_3_13,
            architecture=lambda_.Architecture.ARM_64,
            handler=handler,
            layers=[layer],
            memory_size=4096,
            timeout=cdk.Duration.seconds(30),
            environment=variables,
        )
        instances.add_function(
            function,
            execution_environment_memory_gib_per_v_cpu=4,
            per_execution_environment_max_concurrency=16,
            publish_to_latest_published=True,  # Managed Instances run published versions only
        )


app = cdk.App()
OrdersStack(
    app,
    "Orders",
    route=app.node.try_get_context("route") or "wrapper",
    subnets=app.node.get_context("subnets").split(","),
    security_group=app.node.get_context("security_group"),
    zip_path=app.node.try_get_context("zip") or "../../dist/perinvoke-0.1.0.zip",
)
app.synth()
