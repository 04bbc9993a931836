from __future__ import annotations

import json
import logging
import os
import threading

import pytest
from awslambdaric.lambda_runtime_log_utils import JsonFormatter

from perinvoke import current, isolated, scratch

pytestmark = pytest.mark.usefixtures("root")


def test_an_ordinary_invocation_logs_nothing(caplog):
    @isolated
    def handler(event, context):
        (scratch() / "a").touch()
        current().defer(print)

    with caplog.at_level(logging.DEBUG, "perinvoke"):
        handler({}, None)
    assert caplog.records == []


def test_all_that_was_abnormal_stands_in_one_record_that_the_platforms_json_shows(caplog, lambda_context):
    stop = threading.Event()

    def fails() -> None:
        raise OSError("connection lost")

    @isolated
    def handler(event, context):
        current().defer(fails)
        threading.Thread(target=stop.wait, args=(10,), name="stays").start()

    handler({}, lambda_context)
    stop.set()
    (record,) = caplog.records
    shown = json.loads(JsonFormatter().format(record))
    assert shown["level"] == "WARNING"
    assert shown["message"] == (
        f"invocation {lambda_context.aws_request_id} ended abnormally: "
        "deferred cleanup failed: OSError: connection lost; left running: thread stays"
    )
    assert shown["perinvoke"]["request_id"] == lambda_context.aws_request_id
    assert shown["perinvoke"]["left_running"] == ["thread stays"]
    assert shown["errorType"] == "OSError"
    assert "fails" in "".join(shown["stackTrace"])


def test_a_root_that_vanishes_under_an_invocation_does_not_cost_it_its_answer(root):
    @isolated
    def handler(event, context):
        scratch()
        os.rename(root, root.with_name("elsewhere"))
        root.write_text("in the way")
        return "answer"

    assert handler({}, None) == "answer"


def test_a_logging_filter_that_raises_does_not_cost_the_answer():
    def refuses(record):
        raise RuntimeError("no such record")

    def fails():
        raise OSError("connection lost")

    @isolated
    def handler(event, context):
        current().defer(fails)
        return "answer"

    logger = logging.getLogger("perinvoke")
    logger.addFilter(refuses)
    try:
        assert handler({}, None) == "answer"
    finally:
        logger.removeFilter(refuses)
