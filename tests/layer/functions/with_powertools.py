from __future__ import annotations

import hazards  # type: ignore[import-not-found]  # beside it on Lambda
from aws_lambda_powertools import Logger

logger = Logger(service="orders")


@logger.inject_lambda_context
def handler(event, context):
    logger.info("said with powertools")
    return hazards.handler(event, context)
