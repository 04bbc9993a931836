"""AWS as publish, attach and detach use it: clients for a region, and what people are told when AWS says no."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NoReturn

from perinvoke.errors import MissingExtra

try:
    import boto3
except ModuleNotFoundError as missing:
    raise MissingExtra(
        "perinvoke layer needs boto3 for this, which isn't installed: pip install 'perinvoke[layer]'", extra="layer"
    ) from missing

from botocore.config import Config
from botocore.exceptions import BotoCoreError, NoRegionError

from perinvoke.aws_credentials import NoCredentials, have_credentials
from perinvoke.aws_refusals import ERRORS, Kind, not_allowed, not_from_aws, refusal_of, why_no_client
from perinvoke.layer.errors import AwsForbidden, AwsLogin, AwsRefused, AwsUnavailable, LayerError

if TYPE_CHECKING:
    from perinvoke.aws_refusals import Refusal

# Seconds and attempts: who waits in front of a terminal shall know within half a minute that nobody is there. Arbitrary.
_CONNECT_SECONDS = 4
READ_SECONDS = 10
_ATTEMPTS = 3

# Where IAM's name for it is not the operation's.
_IAM_NAMES = {
    "s3:HeadObject": "s3:GetObject",
    "lambda:GetLayerVersionByArn": "lambda:GetLayerVersion",
    "lambda:Invoke": "lambda:InvokeFunction",
}
_CONFLICTS = frozenset({"PreconditionFailedException", "ResourceConflictException"})


class Account:
    """AWS with one's credentials; lives as long as the command. Any thread may use it."""

    def __init__(self, *, profile: str | None = None, region: str | None = None, endpoint_url: str | None = None) -> None:
        """Make no request yet.

        Args:
            profile: whose credentials; None for AWS_PROFILE's, or what else botocore finds.
            region: where, unless ``service`` is told another one; None for AWS_DEFAULT_REGION's, or the profile's.
            endpoint_url: another AWS, such as a local one.

        Raises:
            LayerError: there is no such profile, or the configuration can't be read.
        """
        self._endpoint_url = endpoint_url
        self._making = threading.Lock()  # boto3's session is for one thread at a time, the clients that it makes are for all
        try:
            self._session = boto3.session.Session(profile_name=profile, region_name=region)
        except BotoCoreError as error:
            raise LayerError(why_no_client(error)) from error

    @property
    def region(self) -> str | None:
        """What was asked for, or the variable or the profile says."""
        found: str | None = self._session.region_name
        return found

    def check_credentials(self) -> None:
        """Have the credentials at hand; whether they are valid, only a request tells.

        What a role has to be assumed for, a code typed, or a login read, is done here, once: not by each region's thread below a
        progress bar, and not as if it were Lambda that refuses. Blocks as long as that takes.

        Raises:
            LayerError: no region is set, and a role can't be assumed nowhere.
            AwsLogin: there are none, half of them, a login that is over, or a role that may not be assumed.
            AwsUnavailable: who hands them out doesn't answer, or is busy.
        """
        try:
            with self._making:
                found = have_credentials(self._session)
        except NoRegionError as error:
            raise LayerError(why_no_client(error)) from error
        except NoCredentials as error:
            _no_credentials(error)
        if not found:
            raise AwsLogin(
                "there are no AWS credentials. Log in (aws login, aws sso login), set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or give --profile."
            )

    def partition_of(self, region: str) -> str | None:
        """``aws``, ``aws-cn`` and so on; None for what is no region's name, as far as the installed botocore can tell."""
        try:
            found: str = self._session.get_partition_for_region(region)
        except (BotoCoreError, ValueError):
            return None
        return found

    def is_known(self, region: str) -> bool:
        """Whether the installed botocore knows that Lambda is there; a newer region may be there all the same."""
        partition = self.partition_of(region)
        return partition is not None and region in self._session.get_available_regions("lambda", partition_name=partition)

    def service(
        self, name: str, region: str | None = None, *, repeats: bool = True, read_seconds: float = READ_SECONDS
    ) -> Service:
        """A client; makes no request.

        Args:
            name: botocore's name of the service: ``"lambda"``, ``"s3"``.
            region: where; None for the account's own.
            repeats: whether what fails or is throttled is asked for again, twice. Off where a second time would do harm.
            read_seconds: how long an answer may take to come.

        Raises:
            LayerError: no region is set, or the region's name or the endpoint can't be right.
        """
        retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS if repeats else 1}
        config = Config(connect_timeout=_CONNECT_SECONDS, read_timeout=read_seconds, retries=retries)
        if not (region or self.region):  # botocore takes a variable that is there and empty for a region's name
            raise LayerError(why_no_client(NoRegionError()))
        with self._making:
            try:
                client = self._session.client(name, region_name=region, endpoint_url=self._endpoint_url, config=config)
            except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
                raise LayerError(why_no_client(error)) from error
            place = str(client.meta.region_name)
            return Service(client, place, hint="" if self._endpoint_url or self.is_known(place) else _unknown(place))


class Service:
    """One of AWS's services in one region; lives as long as the command. Any thread may use it.

    Attributes:
        client: botocore's.
        region: where.
    """

    def __init__(self, client: Any, region: str, *, hint: str = "") -> None:
        self.client, self.region = client, region
        self._hint = hint

    def __repr__(self) -> str:
        return f"<Service {self.client.meta.service_model.service_name} in {self.region}>"

    def ask(self, operation: str, *, about: str, expects: str = "", **parameters: Any) -> dict[str, Any]:
        """One request, which blocks as long as the service's ``read_seconds``, and pauses and repetitions, take.

        Args:
            operation: the client's method.
            about: what it is about, for messages: ``"function 'orders'"``.
            expects: a member that AWS always answers with; without it the answer is somebody else's. Empty: any will do.
            parameters: of the request.

        Raises:
            AwsForbidden: the credentials don't allow it.
            AwsLogin: the credentials are missing, over or wrong.
            AwsUnavailable: throttled, nobody answered, or somebody else has changed it meanwhile. ``carried_out`` is None where
                the request may have done its work.
            AwsRefused: whatever else AWS says: by its ``code``.
        """
        try:
            response: dict[str, Any] = getattr(self.client, operation)(**parameters)
        except ERRORS as error:
            self._refused(self.action(operation), about, refusal_of(error), error)
        if expects and expects not in response:
            self._refused(self.action(operation), about, not_from_aws(expects), None)
        return response

    def action(self, operation: str) -> str:
        """What the client's method is for IAM: ``"lambda:PublishLayerVersion"``."""
        service = self.client.meta.service_model.service_name
        action = f"{service}:{self.client.meta.method_to_api_mapping[operation]}"
        return _IAM_NAMES.get(action, action)

    def knows(self, operation: str, parameter: str) -> bool:
        """Whether the installed botocore is new enough for it; makes no request."""
        model = self.client.meta.service_model.operation_model(self.client.meta.method_to_api_mapping[operation])
        return parameter in model.input_shape.members

    def _refused(self, action: str, about: str, refusal: Refusal, error: Exception | None) -> NoReturn:
        where = {"action": action, "region": self.region, "code": refusal.code}
        text = f"{action} on {about} in {self.region}: {refusal.text}"
        if refusal.kind is Kind.FORBIDDEN:
            raise AwsForbidden(not_allowed(action, about, self.region, refusal), **where) from error
        if refusal.kind is Kind.CREDENTIALS:
            raise AwsLogin(text, **where) from error
        if refusal.kind is Kind.UNREACHABLE:
            raise AwsUnavailable(text + self._hint, carried_out=refusal.carried_out, **where) from error
        if refusal.kind is Kind.BUSY or refusal.code in _CONFLICTS:
            raise AwsUnavailable(text, carried_out=refusal.carried_out, **where) from error
        raise AwsRefused(text, **where) from error


def _no_credentials(error: NoCredentials) -> NoReturn:
    refusal = error.refusal
    if refusal.kind in {Kind.UNREACHABLE, Kind.BUSY}:
        raise AwsUnavailable(refusal.text, action="", region="", code=refusal.code, carried_out=False) from error
    raise AwsLogin(refusal.text, code=refusal.code) from error


def _unknown(region: str) -> str:
    return f" Is {region} a region's name? The installed botocore doesn't know it."
