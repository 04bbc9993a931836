"""The account in which ``perinvoke table`` works: its client, and which of the table's errors it is when AWS says no."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NoReturn

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, NoRegionError

from perinvoke.aws_credentials import NoCredentials, have_credentials
from perinvoke.aws_refusals import ERRORS, Kind, not_allowed, not_from_aws, refusal_of, why_no_client
from perinvoke.fleet.errors import TableError, TableForbidden, TableMissing, TableUnavailable
from perinvoke.fleet.table.shape import NO_TTL, table_of

if TYPE_CHECKING:
    from perinvoke.aws_refusals import Refusal
    from perinvoke.fleet.table.shape import Table

# Seconds and attempts: who waits in front of a terminal shall know within half a minute that nobody is there. Arbitrary.
_ATTEMPTS = 3
_CONFIG = Config(connect_timeout=4, read_timeout=8, retries={"mode": "standard", "total_max_attempts": _ATTEMPTS})


class Objection(TableError):
    """DynamoDB finds fault with what was asked: the table is being changed, or is so already.

    Attributes:
        code: DynamoDB's name for it.
    """

    code: str


class Unsupported(TableError):
    """Whoever answers there doesn't know the request: an emulator, or another database that speaks as DynamoDB does."""


class Account:
    """DynamoDB in one region, with one's credentials; lives as long as the command."""

    def __init__(self, *, region: str | None, profile: str | None, endpoint_url: str | None, table: str) -> None:
        self.table = table
        try:
            session = boto3.session.Session(profile_name=profile, region_name=region)
            if not session.region_name:  # botocore takes a variable that is there and empty for a region's name
                raise NoRegionError  # told like botocore's own
            have_credentials(session)  # where there are none, the first request tells
            self._client = session.client("dynamodb", endpoint_url=endpoint_url, config=_CONFIG)
        except NoCredentials as error:
            self._no_credentials(error)
        except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise self._wrong("dynamodb:DescribeTable", why_no_client(error)) from error

    @property
    def region(self) -> str:
        """Where it is."""
        return str(self._client.meta.region_name)

    def ask(self, operation: str, action: str, **parameters: Any) -> dict[str, Any]:
        """One request about the table.

        Args:
            operation: the client's method.
            action: what it is for IAM.
            parameters: besides the table's name.

        Raises:
            TableMissing: there is no such table.
            TableForbidden: the credentials don't allow the action.
            TableUnavailable: throttled, or nobody answered.
            Objection: the table is being changed, or is what the request asks for already.
            Unsupported: the server isn't DynamoDB, and can't do it.
            TableError: whatever else AWS or botocore say.
        """
        began = time.monotonic()
        try:
            response: dict[str, Any] = getattr(self._client, operation)(TableName=self.table, **parameters)
        except ERRORS as error:
            refusal = refusal_of(error)
            self._refused(action, refusal, time.monotonic() - began, error)
        return response

    def described(self) -> Table:
        """The table as it is now; two requests."""
        began = time.monotonic()
        description = self.ask("describe_table", "dynamodb:DescribeTable").get("Table")
        if description is None:
            text = not_from_aws("Table").text
            raise self._unavailable("dynamodb:DescribeTable", text, attempts=1, waited_seconds=time.monotonic() - began)
        ttl: dict[str, Any] = {}
        if description.get("TableStatus") not in {"CREATING", "DELETING"}:  # it is not to be asked for then
            try:
                ttl = self.ask("describe_time_to_live", "dynamodb:DescribeTimeToLive").get("TimeToLiveDescription", {})
            except Unsupported:
                ttl = {"TimeToLiveStatus": NO_TTL}
        return table_of(description, ttl)

    def _refused(self, action: str, refusal: Refusal, waited_seconds: float, error: Exception) -> NoReturn:
        code, about = refusal.code, f"table {self.table!r}"
        where = {"table": self.table, "action": action}
        if code in {"ResourceInUseException", "ValidationException"}:
            raise Objection(f"{action} on {about}: {refusal.text.removeprefix(f'{code}, ')}", code=code, **where) from error
        if code in {"ResourceNotFoundException", "TableNotFoundException"}:
            text = f"there is no {about} in {self.region}, in the account of these credentials"
            raise TableMissing(f"{text}. Make it: perinvoke table create", **where) from error
        if code == "UnknownOperationException":
            text = f"the server at {self._client.meta.endpoint_url} doesn't know that request: it isn't DynamoDB"
            raise Unsupported(f"{action} on {about}: {text}", **where) from error
        if refusal.kind is Kind.FORBIDDEN:
            raise TableForbidden(not_allowed(action, about, self.region, refusal), **where) from error
        if refusal.kind in {Kind.BUSY, Kind.UNREACHABLE}:
            attempts = refusal.attempts or _ATTEMPTS
            raise self._unavailable(action, refusal.text, attempts, waited_seconds) from error
        raise self._wrong(action, refusal.text) from error

    def _no_credentials(self, error: NoCredentials) -> NoReturn:
        refusal, where = error.refusal, {"table": self.table, "action": "dynamodb:DescribeTable"}
        if refusal.kind in {Kind.UNREACHABLE, Kind.BUSY}:
            attempts = refusal.attempts or _ATTEMPTS
            raise TableUnavailable(refusal.text, attempts=attempts, waited_seconds=0.0, carried_out=False, **where) from error
        raise TableError(refusal.text, **where) from error

    def _wrong(self, action: str, message: str) -> TableError:
        return TableError(f"{action} on table {self.table!r}: {message}", table=self.table, action=action)

    def _unavailable(self, action: str, message: str, attempts: int, waited_seconds: float) -> TableUnavailable:
        return TableUnavailable(
            f"{action} on table {self.table!r}: {message}",
            table=self.table,
            action=action,
            attempts=attempts,
            waited_seconds=waited_seconds,
            carried_out=None,
        )
