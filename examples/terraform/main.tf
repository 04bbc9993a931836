# A function on Lambda Managed Instances, isolated by perinvoke's layer. From the top folder: perinvoke layer build

locals {
  routes = {
    wrapper = {
      handler   = "app.handler"
      variables = { AWS_LAMBDA_EXEC_WRAPPER = "/opt/perinvoke/exec", PERINVOKE_PRELOAD = "handler" }
    }
    handler = {
      handler   = "perinvoke.handler.handler"
      variables = { PERINVOKE_HANDLER = "app.handler" }
    }
  }
  assumed_by_lambda = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "lambda.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

data "aws_partition" "current" {}

resource "aws_lambda_layer_version" "perinvoke" {
  layer_name               = "perinvoke"
  filename                 = var.layer_zip
  source_code_hash         = filebase64sha256(var.layer_zip)
  compatible_runtimes      = ["python3.13", "python3.14"]
  compatible_architectures = ["x86_64", "arm64"]
  skip_destroy             = true # versions of the function that were published before go on using theirs
}

resource "aws_iam_role" "operator" {
  name_prefix        = "orders-operator-"
  assume_role_policy = local.assumed_by_lambda
}

resource "aws_iam_role_policy_attachment" "operator" {
  role       = aws_iam_role.operator.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AWSLambdaManagedEC2ResourceOperator"
}

resource "aws_lambda_capacity_provider" "instances" {
  name = "orders"

  vpc_config {
    subnet_ids         = var.subnet_ids
    security_group_ids = var.security_group_ids
  }

  permissions_config {
    capacity_provider_operator_role_arn = aws_iam_role.operator.arn
  }

  instance_requirements {
    architectures = ["arm64"]
  }

  capacity_provider_scaling_config {
    scaling_mode   = "Auto"
    max_vcpu_count = 32
  }

  depends_on = [aws_iam_role_policy_attachment.operator]
}

resource "aws_iam_role" "function" {
  name_prefix        = "orders-"
  assume_role_policy = local.assumed_by_lambda
}

resource "aws_iam_role_policy_attachment" "function" {
  role       = aws_iam_role.function.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
}

resource "aws_lambda_function" "orders" {
  function_name    = "orders"
  role             = aws_iam_role.function.arn
  filename         = var.function_zip
  source_code_hash = filebase64sha256(var.function_zip)
  runtime          = "python3.13"
  architectures    = ["arm64"]
  handler          = local.routes[var.route].handler
  layers           = [aws_lambda_layer_version.perinvoke.arn]
  memory_size      = 4096
  timeout          = 30
  publish          = true
  publish_to       = "LATEST_PUBLISHED" # Managed Instances run published versions only

  # Can't be added to a function that exists.
  capacity_provider_config {
    lambda_managed_instances_capacity_provider_config {
      capacity_provider_arn                     = aws_lambda_capacity_provider.instances.arn
      execution_environment_memory_gib_per_vcpu = 4
      per_execution_environment_max_concurrency = 16
    }
  }

  environment {
    variables = local.routes[var.route].variables
  }
}

output "function_arn" {
  value = aws_lambda_function.orders.arn
}
