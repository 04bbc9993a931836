"""Reads a secret from Secrets Manager in a process of its own, which then ends: boto3's 30 MiB aren't kept beside the workers.

What it finds comes back through a pipe: not through the arguments of a process, which every user sees, nor through a file.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from contextlib import suppress
from typing import NoReturn

from perinvoke.errors import MissingExtra, PerinvokeError, SecretError
from perinvoke.pgbouncer.process import die_with
from perinvoke.pgbouncer.target import SECRET

# For one request, and for all of them. Init may take longer, but the next environment isn't helped by waiting.
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 2, 3, 3
_ALL_SECONDS = 10.0
_MAX_BYTES = 1_048_576  # more than a secret, which has 64 KiB at most
_ARN_REGION = 3  # arn:aws:secretsmanager:REGION:…

# What each error of the service means for whoever set it up.
_ADVICE = {
    "ResourceNotFoundException": "there is no such secret in {region}. Check its name, and the region",
    "AccessDeniedException": "reading it is denied. Allow the function's role secretsmanager:GetSecretValue on it",
    "DecryptionFailure": "it can't be decrypted. Allow the function's role kms:Decrypt on its key",
    "InvalidRequestException": "it can't be read now; it may be marked for deletion",
    "InvalidParameterException": "its name isn't one that Secrets Manager allows",
    "ValidationException": "its name isn't one that Secrets Manager allows",
}


class Reading:
    """One reading of a secret; lives until its child has ended. ``fd`` becomes readable when there is an answer."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._until = time.monotonic() + _ALL_SECONDS
        self.fd, writing = os.pipe()
        self._received = b""
        parent = os.getpid()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                _answer(secret, writing, parent)
        except OSError:
            os.close(self.fd)
            raise
        finally:
            os.close(writing)

    def remaining_seconds(self) -> float:
        """How long it may still take."""
        return max(0.0, self._until - time.monotonic())

    def read(self) -> bool:
        """Take what has come; whether that was all. Call it when ``fd`` is readable."""
        data = os.read(self.fd, 65_536)
        self._received += data
        return not data or len(self._received) > _MAX_BYTES

    def close(self) -> None:
        """End the child, if it hasn't. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def fields(self) -> dict[str, object]:
        """The secret's fields, once all is read.

        Raises:
            SecretError: there is none, it can't be read, or it isn't a JSON object.
            MissingExtra: boto3 isn't installed.
        """
        try:
            answer = json.loads(self._received)
        except ValueError:
            seconds = f"{_ALL_SECONDS:g}"
            raise _unreadable(self._secret, f"nothing has answered within {seconds} s, or who asked was killed") from None
        if "missing" in answer:
            raise MissingExtra(answer["missing"], extra="aws")
        if "error" in answer:
            raise _unreadable(self._secret, answer["error"])
        return _parsed(self._secret, answer["text"])


def read_secret(secret: str) -> dict[str, object]:
    """The fields of a secret; blocks for some seconds at most.

    Raises:
        SecretError: there is none, it can't be read, or it isn't a JSON object.
        MissingExtra: boto3 isn't installed.
    """
    reading = Reading(secret)
    try:
        poll = select.poll()  # any descriptor will do; select() takes none above 1,023
        poll.register(reading.fd, select.POLLIN)
        while (seconds := reading.remaining_seconds()) > 0:
            if poll.poll(seconds * 1000) and reading.read():
                break
    finally:
        reading.close()
    return reading.fields()


def _parsed(secret: str, text: str | None) -> dict[str, object]:
    form = 'a JSON object, such as RDS keeps: {"username": …, "password": …, "host": …}'
    try:
        fields = None if text is None else json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        what = "is binary" if text is None else "is not one"  # and never what it is
        raise SecretError(f"the secret {secret}, which {SECRET} names, must be {form}; it {what}.", secret=secret, field=None)
    return fields


def _unreadable(secret: str, why: str) -> PerinvokeError:
    return SecretError(f"the secret {secret}, which {SECRET} names, can't be read: {why}.", secret=secret, field=None)


# --- in the child -------------------------------------------------------------------------------------------------------


def _answer(secret: str, fd: int, parent: int) -> NoReturn:
    """Ask, write what was found to the pipe, end."""
    answer: dict[str, object] = {"error": "it was interrupted"}
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        die_with(parent)
        answer = _asked(secret)
    except BaseException as error:  # noqa: BLE001 - the extension's code must not go on in its child
        answer = {"error": f"{type(error).__name__}: {error}"}
    finally:
        with suppress(OSError), os.fdopen(fd, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        os._exit(0)


def _asked(secret: str) -> dict[str, object]:
    try:
        import boto3  # noqa: PLC0415 - optional, and large: this process ends soon
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    except ImportError as error:
        return {"missing": f"{SECRET} needs boto3, which is not installed ({error}): pip install 'perinvoke[aws]'"}
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
    )
    region = "the region"
    try:
        client = boto3.client("secretsmanager", config=config, region_name=_region(secret))
        region = client.meta.region_name
        found = client.get_secret_value(SecretId=secret)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        return {"error": _ADVICE.get(code, str(error)).format(region=region)}
    except BotoCoreError as error:  # no credentials, no region, no way there
        return {"error": f"{error}"}
    return {"text": found.get("SecretString")}


def _region(secret: str) -> str | None:
    """An ARN says where its secret is; of a name, the environment does."""
    parts = secret.split(":")
    return parts[_ARN_REGION] if parts[0] == "arn" and len(parts) > _ARN_REGION else None
