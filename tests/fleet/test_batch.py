"""A batch of records: which ones are reported, in which order, what is left alone, and what is no batch at all."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from awslambdaric.lambda_context import LambdaContext

from perinvoke import isolated
from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb import idempotent, process_records
from stalls import repeated_after_a_stall

STANDARD, FIFO = "arn:aws:sqs:eu-west-1:123456789012:orders", "arn:aws:sqs:eu-west-1:123456789012:orders.fifo"


def sqs(*names, arn=STANDARD):
    return {"Records": [{"messageId": name, "eventSource": "aws:sqs", "eventSourceARN": arn, "body": name} for name in names]}


def kinesis(*names):
    return {"Records": [{"eventSource": "aws:kinesis", "kinesis": {"sequenceNumber": name, "data": ""}} for name in names]}


def stream(*names):
    return {"Records": [{"eventSource": "aws:dynamodb", "dynamodb": {"SequenceNumber": name, "Keys": {}}} for name in names]}


def fifo(*names):
    return sqs(*names, arn=FIFO)


def name_of(record):
    return record.get("messageId") or (record.get("kinesis") or {}).get("sequenceNumber") or record["dynamodb"]["SequenceNumber"]


class Processes:
    """Fails for some records."""

    def __init__(self, *failing, error=ValueError):
        self.failing = failing
        self.error = error
        self.called = []

    def __call__(self, record):
        self.called.append(name_of(record))
        if name_of(record) in self.failing:
            raise self.error("bad record")


def failures(answer):
    assert set(answer) == {"batchItemFailures"}
    return [each["itemIdentifier"] for each in answer["batchItemFailures"]]


@pytest.mark.parametrize("event", [sqs, fifo, kinesis, stream])
def test_when_all_succeed_none_is_reported(event):
    processes = Processes()
    assert failures(process_records(event("1", "2", "3"), processes)) == []
    assert processes.called == ["1", "2", "3"]
    assert failures(process_records(event(), processes)) == []


def test_of_a_standard_queue_one_that_fails_does_not_stop_the_next(caplog):
    processes = Processes("2")
    assert failures(process_records(sqs("1", "2", "3"), processes)) == ["2"]
    assert processes.called == ["1", "2", "3"]
    [told] = caplog.records
    assert (told.levelno, told.getMessage()) == (logging.ERROR, "record 2 failed and is reported, to be delivered again")
    assert told.exc_info[0] is ValueError
    assert told.perinvoke["record"] == "2"


@pytest.mark.parametrize("event", [fifo, kinesis, stream])
def test_where_order_counts_the_rest_is_reported_untouched(event, caplog):
    processes = Processes("2")
    assert failures(process_records(event("1", "2", "3", "4"), processes)) == ["2", "3", "4"]
    assert processes.called == ["1", "2"]
    assert [told.levelno for told in caplog.records] == [logging.ERROR, logging.WARNING]
    assert caplog.records[1].perinvoke["unreached"] == 2


def test_a_fair_queues_message_groups_are_no_order():
    event = sqs("1", "2", "3")
    for record in event["Records"]:
        record["attributes"] = {"MessageGroupId": "a"}
    processes = Processes("1")
    assert failures(process_records(event, processes)) == ["1"]
    assert processes.called == ["1", "2", "3"]


def test_an_interrupt_is_no_failure_of_a_record():
    with pytest.raises(KeyboardInterrupt):
        process_records(sqs("1", "2"), Processes("1", error=KeyboardInterrupt))


@repeated_after_a_stall
def test_what_is_not_reached_in_time_is_reported_instead_of_cut_off(root, caplog):
    called = []

    def process(record):
        called.append(record["messageId"])
        time.sleep(0.3)

    @isolated
    def handler(event, context):
        return process_records(event, process)

    context = LambdaContext("8476a536-e9f4-11e8-9739-2dfe598c3fcd", None, None, int((time.time() + 1.5) * 1000), "arn", None)
    names = [str(number) for number in range(20)]
    reported = failures(handler(sqs(*names), context))
    assert called
    assert called + reported == names
    assert [told.levelno for told in caplog.records] == [logging.WARNING]
    assert caplog.records[0].perinvoke == {"unreached": len(reported), "request_id": "8476a536-e9f4-11e8-9739-2dfe598c3fcd"}


def test_every_record_of_a_batch_has_its_own_key(dynamodb):
    table, client = dynamodb.table(), dynamodb.client()
    processes = Processes("2")
    process = idempotent(table, "messageId", name="process", client=client)(processes)
    with dynamodb.counted() as first:
        assert failures(process_records(sqs("1", "2", "1", "3"), process)) == ["2"]
    processes.failing = ()
    with dynamodb.counted() as second:
        assert failures(process_records(sqs("1", "2", "3"), process)) == []
    assert processes.called == ["1", "2", "3", "2"]
    assert len(first) == 2 + 2 + 1 + 2
    assert len(second) == 1 + 2 + 1
    client.close()


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({}, r"takes an event of SQS, Kinesis or DynamoDB streams, with a list of Records; got one of members \[\]"),
        ({"detail": {}, "version": "0"}, r"got one of members \['detail', 'version'\]"),
        ({"Records": {}}, r"got one of members \['Records'\]"),
        ([], "got one of type list"),
        (None, "got one of type NoneType"),
        (
            {"Records": [{"eventSource": "aws:s3"}]},
            "eventSource is 'aws:s3'; process_records knows aws:sqs, aws:kinesis, aws:dynamodb",
        ),
        ({"Records": [{"EventSource": "aws:sns"}]}, "eventSource is None"),
        ({"Records": ["record"]}, "eventSource is None"),
        ({"Records": [{"eventSource": []}]}, r"eventSource is \[\]"),
        ({"Records": [{"eventSource": "aws:sqs"}]}, "a record of aws:sqs has no messageId"),
        ({"Records": [{"eventSource": "aws:kinesis", "kinesis": None}]}, "a record of aws:kinesis has no kinesis.sequenceNumber"),
    ],
)
def test_what_is_no_batch_is_an_error_and_nothing_is_processed(event, told):
    processes = Processes()
    if isinstance(event, dict) and isinstance(event.get("Records"), list):
        event = {"Records": sqs("1")["Records"] + event["Records"]}
    with pytest.raises(FixConfiguration, match=told):
        process_records(event, processes)
    assert processes.called == []


def test_a_function_that_would_never_run_is_refused():
    async def process(record):
        await asyncio.sleep(0)

    def generates(record):
        yield record

    wrongs: list[Any] = [process, generates, None]
    for wrong in wrongs:
        with pytest.raises(FixConfiguration, match="is async, is a generator or can't be called"):
            process_records(sqs("1"), wrong)


def test_a_record_whose_call_returned_an_awaitable_has_not_succeeded(caplog):
    async def process(record):
        await asyncio.sleep(0)

    assert failures(process_records(sqs("1"), lambda record: process(record))) == ["1"]
    assert "returned an awaitable, which nobody would wait for" in str(caplog.records[0].exc_info[1])
