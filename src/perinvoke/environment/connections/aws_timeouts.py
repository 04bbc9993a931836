"""What an AWS call raises that had no more time: an error of perinvoke's and of botocore's at once.

Code that knows boto3 catches ``ConnectTimeoutError`` and ``ReadTimeoutError``, or ``BotoCoreError``, and goes on to. Code that
knows perinvoke catches ``AwsTimeout``.
"""

from __future__ import annotations

from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError

from perinvoke.errors import AwsTimeout


class AwsConnectTimeout(AwsTimeout, ConnectTimeoutError):  # type: ignore[misc]  # botocore ships no types
    """The last attempt never got to the service, or was not started: that one has changed nothing."""


class AwsReadTimeout(AwsTimeout, ReadTimeoutError):  # type: ignore[misc]  # the same
    """The service had not answered in full. It may have done what was asked."""
