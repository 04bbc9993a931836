"""boto3_client, boto3_resource and deadline_bound: which client is handed out, and that its calls end in time."""

from __future__ import annotations

import io
import itertools
import pickle
import ssl
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions
import pytest
from awslambdaric.lambda_context import LambdaContext
from boto3.exceptions import ResourceNotExistsError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from aws_server import AwsServer, answer, drip
from hostile_servers import SilentServer, UnreachablePort
from perinvoke import boto3_client, boto3_resource, current, isolated
from perinvoke.environment.connections import aws_deadline
from perinvoke.environment.connections.aws import kept_connections
from perinvoke.environment.connections.aws_timeouts import AwsConnectTimeout, AwsReadTimeout
from perinvoke.errors import AwsTimeout, FixConfiguration, TryAgain
from perinvoke.sharing import aws
from perinvoke.sharing.aws import deadline_bound
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("root")

TIMEOUT_SECONDS = 0.8
MARGIN_SECONDS = 0.2
# A busy machine may be late, but not by the seconds that a second try or a time-out of botocore's takes.
LATE_SECONDS = 2.0


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(aws, "_clients", None)
    yield
    if aws._clients is not None:
        for kept in (*aws._clients._clients.values(), *aws._clients._resources.values()):
            (kept.made.meta.client if hasattr(kept.made.meta, "client") else kept.made).close()


def client(server: AwsServer | str, service: str = "dynamodb", **options: Any) -> Any:
    return boto3_client(service, endpoint_url=server if isinstance(server, str) else server.url, **options)


def handled(function: Callable[[], Any], seconds: float = TIMEOUT_SECONDS) -> tuple[Any, float]:
    """What the function returned or raised in an invocation of so many seconds, and how long it took."""

    @isolated(on_timeout="off")
    def handler(event: object, context: object) -> tuple[Any, float]:
        started = time.monotonic()
        try:
            came: Any = function()
        except Exception as error:
            came = error
        return came, time.monotonic() - started

    found: tuple[Any, float] = handler({}, LambdaContext("r-1", None, None, int((time.time() + seconds) * 1000), "arn"))
    return found


@pytest.fixture
def _margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERINVOKE_TIMEOUT_MARGIN_MS", str(int(MARGIN_SECONDS * 1000)))


# Which client


def test_the_same_arguments_give_the_same_client():
    ours = boto3_client("s3")
    assert boto3_client("s3") is ours
    assert boto3_client("s3", region_name="eu-west-1") is not ours
    assert boto3_client("s3", region_name="eu-west-1") is boto3_client("s3", region_name="eu-west-1")
    assert boto3_client("sqs") is not ours
    assert ours.meta.service_model.service_name == "s3"


def test_configs_count_by_what_they_say():
    def made(**options: Any) -> Any:
        return boto3_client("s3", config=Config(**options))

    ours = made(read_timeout=5, retries={"max_attempts": 2}, s3={"addressing_style": "path"})
    assert made(s3={"addressing_style": "path"}, retries={"max_attempts": 2}, read_timeout=5) is ours
    assert made(read_timeout=6, retries={"max_attempts": 2}, s3={"addressing_style": "path"}) is not ours
    changed = Config(read_timeout=5)
    one = boto3_client("s3", config=changed)
    changed.read_timeout = 7
    assert boto3_client("s3", config=changed) is not one
    assert boto3_client("s3", config=changed).meta.config.read_timeout == 7


def test_a_config_is_not_changed_by_its_use():
    config = Config(retries={"max_attempts": 2})
    ours = boto3_client("s3", config=config)
    assert config.retries == {"max_attempts": 2}
    assert boto3_client("s3", config=config) is ours


def test_the_defaults_give_way_to_what_anybody_says(monkeypatch):
    def settings(**options: Any) -> tuple[Any, int]:
        config = boto3_client("s3", **options).meta.config
        return config.retries.get("mode"), config.max_pool_connections

    mode, kept = settings()
    assert mode == "standard"
    assert kept >= 11
    assert settings(config=Config(max_pool_connections=10, retries={"mode": "legacy"})) == ("legacy", 10)
    assert settings(config=Config(retries={"max_attempts": 7})) == ("standard", kept)
    core = boto3.Session()
    core._session.set_default_client_config(Config(max_pool_connections=3, retries={"mode": "adaptive"}))
    assert settings(session=core) == ("adaptive", 3)
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    assert settings(config=Config(read_timeout=9)) == ("legacy", kept)


@pytest.mark.parametrize(
    ("shared", "cpus", "kept"), [(False, 1, 11), (False, 2, 11), (False, 8, 13), (False, 64, 33), (True, 2, 256)]
)
def test_a_client_keeps_as_many_connections_as_threads_may_be_using(shared, cpus, kept):
    assert kept_connections(shared_process=shared, cpus=cpus) == kept


def test_another_identity_in_the_environment_is_another_client(monkeypatch):
    """What a handler put into its environment must not reach the next one through a client that was made meanwhile."""
    ours = boto3_client("s3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tenant")
    theirs = boto3_client("s3")
    assert theirs is not ours
    assert theirs._request_signer._credentials.access_key == "tenant"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    assert boto3_client("s3") is ours
    assert ours._request_signer._credentials.access_key == "test"


def test_another_endpoint_in_the_environment_is_another_client(monkeypatch):
    first = boto3_client("dynamodb")
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:1")
    assert boto3_client("dynamodb").meta.endpoint_url == "http://127.0.0.1:1"
    monkeypatch.delenv("AWS_ENDPOINT_URL_DYNAMODB")
    assert boto3_client("dynamodb") is first


def test_a_session_of_ones_own_makes_the_client():
    session = boto3.Session(region_name="eu-central-1")
    ours = boto3_client("sqs", session=session)
    assert ours.meta.region_name == "eu-central-1"
    assert boto3_client("sqs", session=session) is ours
    assert boto3_client("sqs", session=boto3.Session(region_name="eu-central-1")) is not ours


def test_the_first_calls_of_many_threads_make_one_client():
    barrier, made = threading.Barrier(32), []

    def first() -> None:
        barrier.wait()
        made.append(boto3_client("sqs"))

    threads = [threading.Thread(target=first) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 32
    assert len(set(map(id, made))) == 1


def test_of_too_many_configurations_the_least_recently_used_goes():
    ours, other = boto3_client("sqs"), boto3_client("sqs", region_name="eu-west-2")
    for number in range(63):
        boto3_client("sqs", aws_access_key_id=f"key-{number}", aws_secret_access_key="secret")
        assert boto3_client("sqs") is ours
    assert boto3_client("sqs", region_name="eu-west-2") is not other
    assert aws._clients is not None
    assert len(aws._clients._clients) == 64


# Resources


def in_thread(function: Callable[[], Any]) -> Any:
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("service", ["dynamodb", "s3"])
def test_each_thread_has_one_resource_and_all_have_the_same_connections(service):
    ours = boto3_resource(service)
    assert boto3_resource(service) is ours
    theirs = in_thread(lambda: boto3_resource(service))
    assert theirs is not ours
    assert in_thread(lambda: boto3_resource(service)) not in ([ours], [theirs])
    assert theirs.meta.client._endpoint.http_session is ours.meta.client._endpoint.http_session
    assert boto3_client(service) is not ours.meta.client


def test_dynamodb_resources_of_two_threads_translate_separately():
    """What numbers the placeholders of a condition belongs to a client: two threads over one would get each other's."""
    ours = boto3_resource("dynamodb")
    assert in_thread(lambda: boto3_resource("dynamodb")).meta.client is not ours.meta.client


def test_the_client_of_a_service_is_not_changed_by_its_resource():
    """boto3's DynamoDB resource has its client translate items."""
    boto3_resource("dynamodb")
    with AwsServer() as server, pytest.raises(botocore.exceptions.ParamValidationError):
        client(server).put_item(TableName="t-1", Item={"key": "plain"})


# Bad input


def test_what_boto3_says_of_a_wrong_name_comes_through(monkeypatch):
    with pytest.raises(botocore.exceptions.UnknownServiceError):
        boto3_client("s4")
    with pytest.raises(ResourceNotExistsError):
        boto3_resource("lambda")
    with pytest.raises(TypeError, match="regoin_name"):
        boto3_client("s3", regoin_name="eu-west-1")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION", raising=False)
    with pytest.raises(botocore.exceptions.NoRegionError):
        boto3_client("dynamodb")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    assert boto3_client("dynamodb").meta.region_name == "eu-west-3"


@pytest.mark.parametrize("option", [{"config": {"read_timeout": 5}}, {"session": "default"}, {"config": []}])
@pytest.mark.parametrize("make", [boto3_client, boto3_resource])
def test_what_is_no_config_or_session_is_refused(make, option):
    with pytest.raises(FixConfiguration, match=r"it must be a (boto3.Session|botocore.config.Config)"):
        make("s3", **option)


def test_what_cannot_be_bound_is_refused():
    with pytest.raises(FixConfiguration, match="takes a client, a resource or a session of boto3"):
        deadline_bound("s3")


@pytest.mark.parametrize("name", ["boto3_client", "boto3_resource"])
def test_without_boto3_the_extra_is_named(name):
    script = f"import sys; sys.modules['boto3'] = None\nfrom perinvoke import {name}\n{name}('s3')"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"MissingExtra: {name} needs boto3, which isn't installed: pip install 'perinvoke[aws]'" in run.stderr


def test_boto3_is_not_loaded_before_it_is_used():
    script = "import sys\nfrom perinvoke import boto3_client, boto3_resource\nassert 'botocore' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# Calls that end in time


BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n"
THROTTLED = answer(b'{"__type": "ThrottlingException"}', "400 Bad Request")
MANY_TRIES = Config(retries={"total_max_attempts": 500})


def starts_a_body(_: str) -> Iterator[bytes]:
    return itertools.chain([BODY], drip(b"x" * 1000))


SERVERS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "takes connections and never answers": (SilentServer, AwsReadTimeout, "had not answered after"),
    "takes no connections": (UnreachablePort, AwsConnectTimeout, "could not be reached after"),
    "sends a byte of its header now and then": (
        lambda: AwsServer(lambda _: drip(answer())),
        AwsReadTimeout,
        "had not answered after",
    ),
    "sends a byte of its body now and then": (lambda: AwsServer(starts_a_body), AwsReadTimeout, "had not answered after"),
    "throttles for ever": (lambda: AwsServer(lambda _: THROTTLED), botocore.exceptions.ClientError, "Throttling"),
    "fails for ever": (lambda: AwsServer(lambda _: answer(status="500 No")), botocore.exceptions.ClientError, "500"),
}


def url(server: Any) -> str:
    return server.url if isinstance(server, AwsServer) else f"http://127.0.0.1:{server.port}"


@pytest.mark.usefixtures("_margin")
@pytest.mark.parametrize("way", SERVERS)
@repeated_after_a_stall
def test_no_call_takes_longer_than_its_invocation_may(way):
    make, error, told = SERVERS[way]
    with make() as server:
        made = client(url(server), config=MANY_TRIES)  # a busy machine takes as long for that as the invocation has
        came, seconds = handled(lambda: made.list_tables())
    if error is botocore.exceptions.ClientError and isinstance(came, AwsReadTimeout):
        told = "had not answered after"  # on a busy machine the answer to the last try may come too late
    else:
        assert isinstance(came, error)
    assert told in str(came)
    assert seconds < TIMEOUT_SECONDS + LATE_SECONDS


@pytest.mark.usefixtures("_margin")
@pytest.mark.parametrize("body", [b"x" * 50_000_000, io.BytesIO(b"x" * 50_000_000)], ids=["bytes", "a file"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@repeated_after_a_stall
def test_sending_to_a_server_that_does_not_read_ends_in_time(body, tls, certificate):
    with AwsServer(reads_bodies=False, tls=certificate.context if tls else None) as server:
        made = client(server, "s3", verify=str(certificate.path))
        came, seconds = handled(lambda: made.put_object(Bucket="bucket", Key="k", Body=body))
    assert isinstance(came, AwsReadTimeout), came
    assert seconds < TIMEOUT_SECONDS + LATE_SECONDS


class MadeByCalls(io.BytesIO):
    """A body whose parts come from another client, while it is sent."""

    def __init__(self, source: Any) -> None:
        super().__init__(b"x" * 10_000)
        self._source = source

    def read(self, size: int | None = -1) -> bytes:
        self._source.get_object(Bucket="bucket", Key="k")
        return super().read(size)


@pytest.mark.usefixtures("_margin")
@repeated_after_a_stall
def test_a_call_whose_body_is_made_by_other_calls_ends_in_time():
    config = Config(read_timeout=5, retries={"total_max_attempts": 1})
    with AwsServer() as source, SilentServer() as silent:
        made = client(url(silent), "s3", config=config)
        body = MadeByCalls(client(source, "s3"))
        came, seconds = handled(lambda: made.put_object(Bucket="bucket", Key="k", Body=body))
    assert isinstance(came, AwsReadTimeout), came
    assert seconds < TIMEOUT_SECONDS + LATE_SECONDS


@pytest.mark.usefixtures("_margin")
@repeated_after_a_stall
def test_a_tls_handshake_and_a_proxy_that_take_for_ever_end_in_time(certificate):
    with SilentServer() as server:
        silent = f"127.0.0.1:{server.port}"
        proxied = Config(proxies={"https": f"http://{silent}"})
        for made in (client(f"https://{silent}"), client("https://localhost:1", config=proxied)):
            came, seconds = handled(made.list_tables)
            assert isinstance(came, AwsTimeout), came
            assert seconds < TIMEOUT_SECONDS + LATE_SECONDS


@pytest.mark.usefixtures("_margin")
@repeated_after_a_stall
def test_reading_a_body_ends_in_time():
    with AwsServer(starts_a_body) as server:
        made = client(server, "s3")
        came, seconds = handled(lambda: made.get_object(Bucket="bucket", Key="k")["Body"].read())
        assert isinstance(came, botocore.exceptions.ReadTimeoutError)
        assert seconds < TIMEOUT_SECONDS + LATE_SECONDS
        one_by_one = TransferConfig(max_concurrency=2)
        came, seconds = handled(lambda: made.download_fileobj("bucket", "k", io.BytesIO(), Config=one_by_one))
        assert type(came).__name__ == "RetriesExceededError"
        assert seconds < TIMEOUT_SECONDS + LATE_SECONDS


@repeated_after_a_stall
def test_a_body_read_after_its_invocation_is_not_cut_short():
    with AwsServer(lambda _: itertools.chain([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"], drip(b"12345"))) as server:
        made = client(server, "s3")
        body, _ = handled(lambda: made.get_object(Bucket="bucket", Key="k")["Body"], 0.5)
        time.sleep(0.6)
        assert body.read() == b"12345"


def test_outside_an_invocation_and_without_a_deadline_botocores_own_time_outs_count():
    config = Config(read_timeout=0.2, retries={"total_max_attempts": 2})
    with SilentServer() as server:
        made = client(url(server), config=config)
        for call in (made.list_tables, lambda: isolated(lambda event, context: made.list_tables())({}, None)):
            with pytest.raises(botocore.exceptions.ReadTimeoutError) as caught:
                call()
            assert not isinstance(caught.value, AwsTimeout)
        assert server.connections() == 4


def test_a_time_out_of_ones_own_counts_where_it_ends_earlier():
    config = Config(read_timeout=0.2, connect_timeout=0.2, retries={"total_max_attempts": 2})
    with SilentServer() as server, UnreachablePort() as unreachable:
        came, seconds = handled(client(url(server), config=config).list_tables, 20)
        assert type(came) is botocore.exceptions.ReadTimeoutError
        assert server.connections() == 2
        came, more = handled(client(url(unreachable), config=config).list_tables, 20)
        assert type(came) is botocore.exceptions.ConnectTimeoutError
    assert seconds + more < 15


@repeated_after_a_stall
def test_in_the_margin_a_call_that_cleans_up_has_some_time_and_after_it_none(monkeypatch):
    monkeypatch.setenv("PERINVOKE_TIMEOUT_MARGIN_MS", "1000")

    def clean_up() -> tuple[Any, ...]:
        time.sleep(current().deadline.bound())
        answered = answering_client.list_tables()["ResponseMetadata"]["HTTPStatusCode"]
        with pytest.raises(AwsReadTimeout):
            silent_client.list_tables()
        in_time = current().deadline.remaining_seconds() > 0
        time.sleep(current().deadline.remaining_seconds())
        with pytest.raises(
            AwsConnectTimeout, match="dynamodb.ListTables was not called: the invocation has no time left"
        ) as caught:
            silent_client.list_tables()
        return answered, in_time, caught.value

    with AwsServer() as answering, SilentServer() as silent:
        answering_client, silent_client = client(answering), client(url(silent))
        answering_client.list_tables()
        (status, in_time, error), _ = handled(clean_up, 2.1)
        assert (status, in_time) == (200, True)
        assert silent.connections() == 1
    assert isinstance(error, (TryAgain, TimeoutError))


@repeated_after_a_stall
def test_the_error_is_botocores_too_and_survives_pickling():
    with SilentServer() as server:
        came, _ = handled(client(url(server)).list_tables)
    copy = pickle.loads(pickle.dumps(came))
    for error in (came, copy):
        assert isinstance(error, TryAgain)
        assert isinstance(error, TimeoutError)
        assert isinstance(error, botocore.exceptions.ReadTimeoutError)
        assert error.operation == "dynamodb.ListTables"
        assert 0 < error.waited_seconds < 20
    assert str(copy) == str(came)
    assert isinstance(came.__cause__, botocore.exceptions.ReadTimeoutError)


def test_a_host_whose_first_address_does_not_answer_is_reached_by_the_next(monkeypatch):
    import socket

    with AwsServer() as server:
        port = int(server.url.rpartition(":")[2])
        filled = socket.create_server(("127.0.0.2", port), backlog=0)
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", port))
        real = socket.getaddrinfo
        hosts = {"two.test": ["127.0.0.2", "127.0.0.1"]}
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest: [at for name in hosts.get(host, [host]) for at in real(name, *rest)]
        )
        came, _ = handled(client(f"http://two.test:{port}").list_tables, 2)
        for one in (filled, *fillers):
            one.close()
    assert came["ResponseMetadata"]["HTTPStatusCode"] == 200


# Clients of one's own


def own(server: Any) -> Any:
    return boto3.client("dynamodb", endpoint_url=url(server), config=Config(retries={"mode": "legacy"}))


def own_of_session(server: Any) -> Any:
    return deadline_bound(boto3.Session()).client("dynamodb", endpoint_url=url(server))


def own_resource(server: Any) -> Any:
    return deadline_bound(boto3.resource("dynamodb", endpoint_url=url(server))).meta.client


@pytest.mark.usefixtures("_margin")
@pytest.mark.parametrize("make", [lambda server: deadline_bound(own(server)), own_of_session, own_resource])
def test_a_client_of_ones_own_can_be_bound(make):
    with SilentServer() as server:
        came, seconds = handled(make(server).list_tables)
    assert isinstance(came, AwsReadTimeout)
    assert seconds < TIMEOUT_SECONDS + LATE_SECONDS


def test_binding_twice_changes_nothing_and_a_used_client_goes_on():
    with AwsServer() as server:
        ours = own(server)
        ours.list_tables()
        assert deadline_bound(ours) is ours
        events = ours._endpoint._event_emitter
        assert deadline_bound(deadline_bound(ours)) is ours
        assert ours._endpoint._event_emitter is events
        for _ in range(5):
            assert handled(ours.list_tables)[0]["ResponseMetadata"]["HTTPStatusCode"] == 200
        ours.close()
        assert server.connections == 2


def test_a_botocore_that_is_not_known_costs_a_log_record_and_no_call(monkeypatch, caplog):
    monkeypatch.setattr(aws_deadline, "POOLS", {"quic": None})
    monkeypatch.setattr(aws_deadline, "_unbounded", set())
    with AwsServer() as server:
        ours = client(server)
        came, _ = handled(ours.list_tables)
    assert came["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert caplog.text.count("it doesn't know this botocore") == 1


# Forks

FORKS = """
import multiprocessing, os, sys, threading, time
from perinvoke import boto3_client, isolated
url, threads = sys.argv[1], int(sys.argv[2])
made = boto3_client("s3", endpoint_url=url)

def ask(client, times=40):
    for number in range(times):
        key = f"{os.getpid()}-{number}"
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read().decode() == f"/bucket/{key}", key

def child(inherited):
    try:
        ask(made if inherited else boto3_client("s3", endpoint_url=url))
        assert boto3_client("s3", endpoint_url=url) is boto3_client("s3", endpoint_url=url)
        assert (boto3_client("s3", endpoint_url=url) is made) == (not threads)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)

@isolated
def handler(event, context):
    ask(boto3_client("s3", endpoint_url=url))
    pids = []
    for inherited in (False, True):
        pid = os.fork()
        if pid == 0:
            child(inherited)
        pids.append(pid)
    process = multiprocessing.get_context("fork").Process(target=child, args=(False,))
    process.start()
    ask(made)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    process.join()
    assert process.exitcode == 0
    ask(made)

ended = threading.Event()
for _ in range(threads):
    threading.Thread(target=ended.wait).start()
try:
    handler({}, None)
finally:
    ended.set()
"""


@pytest.mark.parametrize("threads", [0, 1])
def test_parent_and_children_each_go_on_over_a_connection_of_their_own(threads):
    with AwsServer(lambda line: answer(line.split()[1].encode())) as server:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, server.url, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.connections == 4
        assert len(server.requests) == 6 * 40


# What TLS needs


class Certificate:
    def __init__(self, directory: Path) -> None:
        self.path, key = directory / "certificate", directory / "key"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", self.path),
                *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            ],
            check=True,
            capture_output=True,
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.path, key)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))
