"""A Lambda for tests: moto's, behind a server that has what moto lacks, and loses answers when it is told to.

What moto lacks: revision ids that are conditions, Managed Instances, limits, updates and versions that take a while, layers by
their ARN or by what they are compatible with. S3, IAM and whatever else moto has come through.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import re
import threading
import uuid
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
from botocore.config import Config
from botocore.loaders import JSONFileLoader
from botocore.retries.standard import ExponentialBackoff
from moto.awslambda.models import lambda_backends

from aws_server import answer
from moto_server import MotoServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pytest

ACCOUNT = "123456789012"
CAPACITY_PROVIDER = f"arn:aws:lambda:eu-west-1:{ACCOUNT}:capacity-provider:instances"
LATEST_PUBLISHED = "$LATEST.PUBLISHED"

_LAYERS_AT_MOST = 5
_ENVIRONMENT_BYTES_AT_MOST = 4096
_ROLE = "arn:aws:iam::123456789012:role/perinvoke-tests"
_OPERATIONS = (
    ("POST", r"/functions/?", "CreateFunction"),
    ("GET", r"/functions/(?P<name>[^/]+)", "GetFunction"),
    ("GET", r"/functions/(?P<name>[^/]+)/configuration", "GetFunctionConfiguration"),
    ("PUT", r"/functions/(?P<name>[^/]+)/configuration", "UpdateFunctionConfiguration"),
    ("POST", r"/functions/(?P<name>[^/]+)/versions", "PublishVersion"),
    ("GET", r"/layers/?", "GetLayerVersionByArn"),
    ("GET", r"/layers/(?P<name>[^/]+)/versions", "ListLayerVersions"),
    ("POST", r"/layers/(?P<name>[^/]+)/versions", "PublishLayerVersion"),
    ("GET", r"/layers/(?P<name>[^/]+)/versions/\d+", "GetLayerVersion"),
    ("DELETE", r"/layers/(?P<name>[^/]+)/versions/\d+", "DeleteLayerVersion"),
    ("GET", r"/layers/(?P<name>[^/]+)/versions/\d+/policy", "GetLayerVersionPolicy"),
    ("POST", r"/layers/(?P<name>[^/]+)/versions/\d+/policy", "AddLayerVersionPermission"),
)
_STATUS = {
    "AccessDeniedException": "403 Forbidden",
    "ExpiredTokenException": "403 Forbidden",
    "ResourceNotFoundException": "404 Not Found",
    "ResourceConflictException": "409 Conflict",
    "PreconditionFailedException": "412 Precondition Failed",
    "TooManyRequestsException": "429 Too Many Requests",
    "ServiceException": "500 Error",
}
_names = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request: Lambda's name for it, or ``"s3 PUT"``; in which region; about which function or layer; with which body."""

    operation: str
    region: str
    name: str
    query: dict[str, str]
    body: dict[str, Any]


@dataclass
class _Function:
    """What moto doesn't know of a function."""

    revision: str = field(default_factory=lambda: str(uuid.uuid4()))
    capacity: dict[str, Any] | None = None
    reads_in_progress: int = 0
    failed_because: str | None = None
    published: dict[str, Any] | None = None
    reads_pending: int = 0
    version_failed_because: str | None = None

    def changed(self) -> None:
        self.revision = str(uuid.uuid4())


_load = JSONFileLoader.load_file


@functools.cache
def _loaded(path: str) -> Any:
    return _load(JSONFileLoader(), path)


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore reads its description of a service once, not for each session a tenth of a second long, and pauses briefly."""
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda loader, path: _loaded(path))
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda backoff, context: 0.001)


class LambdaServer(MotoServer):
    """moto's Lambda, with functions and layers of the asking test's own; lives as long as its ``with`` block.

    Attributes:
        asked: all requests, in order.
        faults: called with each before it is served; says what befalls it. None: nothing. ``"lost"``: it is carried out, and its
            connection closed instead of an answer. ``"dropped"``: closed before it is carried out. Or the name of an error that
            Lambda would answer with, such as ``"TooManyRequestsException"``.
        updates_take: so many reads of a function after its update say that it is in progress.
        update_fails: why updates fail in the end; None: they don't.
        versions_take: so many reads of a version say that it is pending.
        version_fails: why versions fail in the end; None: they don't.
        page: how many layer versions are listed at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._one_at_a_time = threading.RLock()
        self._functions: dict[tuple[str, str], _Function] = {}
        self._clients: dict[tuple[str, str], Any] = {}
        self._has_role = False
        self.reset()

    def reset(self) -> None:
        """As it was in the beginning, but for the functions and layers."""
        self.asked: list[Asked] = []
        self.faults: Callable[[Asked], str | None] = lambda asked: None
        self.updates_take = self.versions_take = 0
        self.update_fails: str | None = None
        self.version_fails: str | None = None
        self.page = 50

    # --- for tests --------------------------------------------------------------------------------------------------------

    def client(self, service: str = "lambda", region: str = "eu-west-1", **options: Any) -> Any:
        """A client of this server, as boto3 makes them; it tries once."""
        if (service, region) in self._clients and not options:
            return self._clients[service, region]  # it takes a while to make one
        config = Config(retries={"mode": "standard", "total_max_attempts": 1}, s3={"addressing_style": "path"}, **options)
        account = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        made = boto3.client(service, endpoint_url=self.url, region_name=region, config=config, **account)
        if not options:
            self._clients[service, region] = made
        return made

    def function(self, *, managed: bool = False, region: str = "eu-west-1", capacity: Any = None, **specification: Any) -> str:
        """A new function's name; on Managed Instances, with a published version, if ``managed``."""
        name = specification.pop("FunctionName", None) or f"function-{next(_names)}"
        self._make_role()
        made: dict[str, Any] = {
            "Runtime": "python3.13",
            "Handler": "app.handler",
            "Code": {"ZipFile": zipped("app.py", "def handler(event, context): ...")},
            "MemorySize": 2048,
        }
        if managed or capacity:
            made["CapacityProviderConfig"] = {
                "LambdaManagedInstancesCapacityProviderConfig": {"CapacityProviderArn": CAPACITY_PROVIDER, **(capacity or {})}
            }
        if specification.get("PackageType") == "Image":
            made = {"Code": {"ImageUri": f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/app:latest"}}
        with self.undisturbed():
            client = self.client(region=region)
            client.create_function(FunctionName=name, Role=_ROLE, **(made | specification))
            if managed or capacity:
                client.publish_version(FunctionName=name, PublishTo="LATEST_PUBLISHED")
        return name

    def layer(
        self,
        name: str = "perinvoke",
        *,
        region: str = "eu-west-1",
        runtimes: Iterable[str] = ("python3.13", "python3.14"),
        architectures: Iterable[str] = ("x86_64", "arm64"),
    ) -> str:
        """The ARN of a new layer version."""
        with self.undisturbed():
            made = self.client(region=region).publish_layer_version(
                LayerName=name,
                Content={"ZipFile": zipped("python/x.py", str(next(_names)))},
                CompatibleRuntimes=list(runtimes),
                CompatibleArchitectures=list(architectures),
            )
        return str(made["LayerVersionArn"])

    def configuration(self, name: str, *, region: str = "eu-west-1", qualifier: str | None = None) -> dict[str, Any]:
        """A function's configuration, without what every write changes; is neither counted nor disturbed."""
        with self.undisturbed():
            found: dict[str, Any] = self.client(region=region).get_function_configuration(
                FunctionName=name, **({"Qualifier": qualifier} if qualifier else {})
            )
        for changing in ("RevisionId", "LastModified", "ResponseMetadata"):
            found.pop(changing, None)
        return found

    def change(self, name: str, *, region: str = "eu-west-1", **members: Any) -> None:
        """Somebody else changes a function; is neither counted nor disturbed."""
        with self.undisturbed():
            self.client(region=region).update_function_configuration(FunctionName=name, **members)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Meanwhile nothing befalls requests, nothing takes time, and nobody counts."""
        kept = dict(self.__dict__)
        reads = {key: (each.reads_in_progress, each.reads_pending) for key, each in self._functions.items()}
        self.reset()
        for function in self._functions.values():
            function.reads_in_progress = function.reads_pending = 0
        try:
            yield
        finally:
            for attribute in ("asked", "faults", "updates_take", "versions_take", "update_fails", "version_fails", "page"):
                setattr(self, attribute, kept[attribute])
            for key, (in_progress, pending) in reads.items():
                self._functions[key].reads_in_progress, self._functions[key].reads_pending = in_progress, pending

    def operations(self) -> list[str]:
        """The names of all requests, in order."""
        return [each.operation for each in self.asked]

    def variables(self, region: str | None = "eu-west-1") -> dict[str, str]:
        """What a command's environment needs to come here."""
        found = {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        return found | ({"AWS_DEFAULT_REGION": region} if region else {})

    # --- for clients ------------------------------------------------------------------------------------------------------

    def reply_to(self, line: str, headers: dict[str, str], body: bytes) -> bytes | Iterable[bytes] | None:
        asked = _asked(line, headers, body)
        self.asked.append(asked)
        fault = self.faults(asked)  # may ask the server itself
        if fault == "dropped":
            raise ConnectionResetError
        if fault not in {None, "lost"}:
            return _refusal(fault, "told so")
        with self._one_at_a_time:
            reply = self._served(asked, line, headers, body)
        if fault == "lost":
            raise ConnectionResetError
        return reply

    def _served(self, asked: Asked, line: str, headers: dict[str, str], body: bytes) -> bytes:
        serve = {
            "CreateFunction": self._create,
            "GetFunction": self._read,
            "GetFunctionConfiguration": self._read,
            "UpdateFunctionConfiguration": self._update,
            "PublishVersion": self._publish,
            "ListLayerVersions": self._layer_versions,
            "GetLayerVersionByArn": self._layer_version,
        }.get(asked.operation)

        def moto(changed: dict[str, Any] | None = None) -> bytes:
            content = body if changed is None else json.dumps(changed).encode()
            # moto takes a name, or perhaps the whole ARN; Lambda takes parts of an ARN too.
            plain = re.sub(r"/(functions|layers)/[^/ ?]+", rf"/\1/{asked.name}", line) if asked.name else line
            told = headers | {"content-length": str(len(content))}
            reply = super(LambdaServer, self).reply_to(plain, told, content)
            assert isinstance(reply, bytes)
            return reply

        return moto() if serve is None else serve(asked, moto)

    def _create(self, asked: Asked, moto: Callable[..., bytes]) -> bytes:
        reply = moto({name: value for name, value in asked.body.items() if name != "CapacityProviderConfig"})
        if _succeeded(reply):
            function = _Function(capacity=asked.body.get("CapacityProviderConfig"))
            self._functions[asked.region, asked.body["FunctionName"]] = function
        return reply

    def _read(self, asked: Asked, moto: Callable[..., bytes]) -> bytes:
        function = self._functions.get((asked.region, asked.name))
        if function is None:
            return moto()
        if asked.query.get("Qualifier") == LATEST_PUBLISHED:
            return self._read_published(function, asked)
        reply = moto()
        if not _succeeded(reply):
            return reply
        told = _content(reply)
        configuration = told.get("Configuration", told)
        configuration["LastUpdateStatus"] = "Successful"
        if function.reads_in_progress > 0:
            function.reads_in_progress -= 1
            configuration["LastUpdateStatus"] = "InProgress"
            if function.reads_in_progress == 0:
                function.changed()
        elif function.failed_because is not None:
            configuration |= {"LastUpdateStatus": "Failed", "LastUpdateStatusReason": function.failed_because}
            configuration["LastUpdateStatusReasonCode"] = "InvalidConfiguration"
        self._add(configuration, function)
        return _ok(told)

    def _read_published(self, function: _Function, asked: Asked) -> bytes:
        if function.published is None:
            arn = f"arn:aws:lambda:{asked.region}:{ACCOUNT}:function:{asked.name}:{LATEST_PUBLISHED}"
            return _refusal("ResourceNotFoundException", f"Function not found: {arn}")
        state: dict[str, str] = {"State": "Active"}
        if function.reads_pending > 0:
            function.reads_pending -= 1
            state = {"State": "Pending", "StateReasonCode": "Creating", "StateReason": "The function is being created."}
        elif function.version_failed_because is not None:
            state = {"State": "Failed", "StateReasonCode": "FunctionError", "StateReason": function.version_failed_because}
        return _ok(function.published | state)

    def _update(self, asked: Asked, moto: Callable[..., bytes]) -> bytes:
        function = self._functions.get((asked.region, asked.name))
        if function is None:
            return moto()
        if function.reads_in_progress > 0:
            text = "The operation cannot be performed at this time. An update is in progress for resource"
            return _refusal("ResourceConflictException", f"{text}: {asked.name}")
        if "RevisionId" in asked.body and asked.body["RevisionId"] != function.revision:
            text = "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve"
            return _refusal("PreconditionFailedException", f"{text} the latest Revision Id")
        wrong = _beyond_limits(asked.body)
        if wrong is not None:
            return _refusal("InvalidParameterValueException", wrong)
        known = {name: value for name, value in asked.body.items() if name not in {"RevisionId", "CapacityProviderConfig"}}
        reply = moto(known)
        if not _succeeded(reply):
            return reply
        function.capacity = asked.body.get("CapacityProviderConfig", function.capacity)
        function.reads_in_progress, function.failed_because = self.updates_take, self.update_fails
        function.changed()
        told = _content(reply)
        told["LastUpdateStatus"] = "InProgress" if self.updates_take or self.update_fails else "Successful"
        self._add(told, function)
        return _ok(told)

    def _publish(self, asked: Asked, moto: Callable[..., bytes]) -> bytes:
        function = self._functions.get((asked.region, asked.name))
        if function is None or asked.body.get("PublishTo") is None:
            return moto()
        if function.capacity is None:
            return _refusal("InvalidParameterValueException", "PublishTo needs a capacity provider")
        if function.reads_in_progress > 0:
            return _refusal("ResourceConflictException", f"An update is in progress for resource: {asked.name}")
        if "RevisionId" in asked.body and asked.body["RevisionId"] != function.revision:
            return _refusal("PreconditionFailedException", "The Revision Id provided does not match the latest Revision Id")
        latest = lambda_backends[ACCOUNT][asked.region].get_function(asked.name).get_configuration()
        self._add(latest, function)
        arn = f"{latest['FunctionArn']}:{LATEST_PUBLISHED}"
        function.published = latest | {"Version": LATEST_PUBLISHED, "FunctionArn": arn, "RevisionId": str(uuid.uuid4())}
        function.reads_pending, function.version_failed_because = self.versions_take, self.version_fails
        return _ok(function.published | {"State": "Pending"}, "201 Created")

    def _layer_versions(self, asked: Asked, moto: Callable[..., bytes]) -> bytes:
        reply = moto()
        if not _succeeded(reply):
            return reply
        found = [each for each in _content(reply)["LayerVersions"] if _fits(each, asked.query)]
        first = int(asked.query.get("Marker", "0"))
        page = min(self.page, int(asked.query.get("MaxItems", "50")))
        told: dict[str, Any] = {"LayerVersions": found[first : first + page]}
        if len(found) > first + page:
            told["NextMarker"] = str(first + page)
        return _ok(told)

    def _layer_version(self, asked: Asked, moto: Callable[..., bytes]) -> bytes:
        if asked.query.get("find") != "LayerVersion":
            return moto()
        found = lambda_backends[ACCOUNT][asked.region].layers_versions_by_arn(asked.query["Arn"])
        if found is None:
            return _refusal("ResourceNotFoundException", f"Layer version {asked.query['Arn']} does not exist.")
        return _ok(found.get_layer_version())

    def _add(self, configuration: dict[str, Any], function: _Function) -> None:
        configuration["RevisionId"] = function.revision
        if function.capacity is not None:
            configuration["CapacityProviderConfig"] = function.capacity

    def _make_role(self) -> None:
        if self._has_role:
            return
        with self.undisturbed(), contextlib.suppress(Exception):  # another server of this process has made it
            self.client("iam").create_role(RoleName=_ROLE.rpartition("/")[2], AssumeRolePolicyDocument="{}")
        self._has_role = True


def zipped(name: str, content: str) -> bytes:
    """A zip with one file in it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(name, content)
    return target.getvalue()


def _asked(line: str, headers: dict[str, str], body: bytes) -> Asked:
    method, target, _ = line.split()
    parts = urlsplit(target)
    scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/", headers.get("authorization", ""))
    region, service = scope.groups() if scope else ("eu-west-1", "")
    operation, name = f"{service} {method}", ""
    for known, path, told in _OPERATIONS if service == "lambda" else ():
        found = re.fullmatch(r"/\d{4}-\d\d-\d\d" + path, parts.path)
        if known == method and found is not None:
            operation, name = told, unquote(found.groupdict().get("name", ""))
    is_json = service == "lambda" and body[:1] == b"{"
    return Asked(
        operation=operation,
        region=region,
        name=re.sub(r".*(function|layer):", "", name),
        query={key: values[0] for key, values in parse_qs(parts.query).items()},
        body=json.loads(body) if is_json else {},
    )


def _beyond_limits(body: dict[str, Any]) -> str | None:
    """As Lambda tells it."""
    if len(body.get("Layers", ())) > _LAYERS_AT_MOST:
        return f"You cannot reference more than {_LAYERS_AT_MOST} layers."
    measured = json.dumps(body.get("Environment", {}).get("Variables", {}), separators=(",", ":"), ensure_ascii=False)
    if len(measured.encode()) > _ENVIRONMENT_BYTES_AT_MOST:
        text = "Lambda was unable to configure your environment variables because the environment variables you have provided"
        return f"{text} exceeded the 4KB limit. String measured: {measured}"
    return None


def _fits(layer: dict[str, Any], query: dict[str, str]) -> bool:
    members = {"CompatibleRuntime": "CompatibleRuntimes", "CompatibleArchitecture": "CompatibleArchitectures"}
    return all(query[asked] in layer.get(member, ()) for asked, member in members.items() if asked in query)


def _ok(told: dict[str, Any], status: str = "200 OK") -> bytes:
    return answer(json.dumps(told).encode(), status, **{"Content-Type": "application/json"})


def _refusal(code: str | None, message: str) -> bytes:
    assert code is not None
    body = json.dumps({"Type": "User", "Message": message, "message": message}).encode()
    return answer(body, _STATUS.get(code, "400 Bad Request"), **{"x-amzn-ErrorType": code, "Content-Type": "application/json"})


def _succeeded(reply: bytes) -> bool:
    return reply.startswith(b"HTTP/1.1 2")


def _content(reply: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply.partition(b"\r\n\r\n")[2])
    return found
