"""The handler that such a layer puts before the function's."""

from __future__ import annotations

import os
from importlib import import_module

from opentelemetry.instrumentation.aws_lambda import AwsLambdaInstrumentor  # type: ignore[import-not-found]  # in the layer

if os.environ.get("OTEL_IN_HANDLER"):
    from opentelemetry import trace  # type: ignore[import-not-found]  # the same
    from opentelemetry.sdk.trace import TracerProvider  # type: ignore[import-not-found]  # the same
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter  # type: ignore[import-not-found]  # the same

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))  # it starts a thread
    trace.set_tracer_provider(provider)

AwsLambdaInstrumentor().instrument()
module, _, function = os.environ["ORIG_HANDLER"].replace("/", ".").rpartition(".")
lambda_handler = getattr(import_module(module), function)
