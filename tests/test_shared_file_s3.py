"""shared_file.s3 against moto, and against a server that breaks off."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from moto import mock_aws

from perinvoke import shared_file
from perinvoke.environment import s3_object
from perinvoke.errors import MissingExtra, SharedFileError
from perinvoke.sharing.aws import boto3_client

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("root")


class Counted:
    """A client whose requests are counted."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.names: list[str] = []
        client.meta.events.register("before-call.s3.*", lambda model, **_: self.names.append(model.name))


@pytest.fixture
def s3(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3_object._remembered.clear()
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield Counted(client)


def published(root: Path) -> list[str]:
    return [name for _, _, names in os.walk(root / "shared") for name in names if name != "lock"]


def put(s3: Counted, text: str, key: str = "models/m.bin") -> None:
    s3.client.put_object(Bucket="bucket", Key=key, Body=text.encode())
    s3.names.clear()


def test_it_is_downloaded_once_for_each_version(s3):
    put(s3, "one")
    first = shared_file.s3("bucket", "models/m.bin", client=s3.client)
    assert (first.name, first.read_text()) == ("m.bin", "one")
    assert s3.names.count("GetObject") == 1
    assert shared_file.s3("bucket", "models/m.bin", client=s3.client) == first
    assert s3.names.count("GetObject") == 1
    put(s3, "two")
    second = shared_file.s3("bucket", "models/m.bin", client=s3.client)
    assert (second.name, second.read_text(), first.read_text()) == ("m.bin", "two", "one")


def test_an_etag_is_trusted_as_long_as_asked(s3):
    put(s3, "one")
    first = shared_file.s3("bucket", "models/m.bin", client=s3.client, max_age_seconds=60)
    put(s3, "two")
    assert shared_file.s3("bucket", "models/m.bin", client=s3.client, max_age_seconds=60) == first
    assert s3.names == []
    assert shared_file.s3("bucket", "models/m.bin", client=s3.client).read_text() == "two"


def test_a_large_object_in_parts_is_whole(s3):
    put(s3, "0123456789" * 2_000_000)
    path = shared_file.s3("bucket", "models/m.bin", client=s3.client)
    assert path.read_text() == "0123456789" * 2_000_000
    assert s3.names.count("GetObject") > 1


def test_without_a_client_it_is_the_one_that_the_worker_keeps(s3):
    put(s3, "one")
    kept = Counted(boto3_client("s3"))
    shared_file.s3("bucket", "models/m.bin")
    assert kept.names.count("GetObject") == 1


@pytest.mark.parametrize(("key", "name"), [("a", "a"), ("a/b/", "b"), ("a/..", "object"), ("x" * 300, "object"), ("é ü", "é ü")])
def test_the_last_part_of_the_key_is_the_files_name(s3, key, name):
    put(s3, "x", key)
    assert shared_file.s3("bucket", key, client=s3.client).name == name


def test_same_names_in_two_places_are_two_files(s3):
    put(s3, "one", "a/m")
    put(s3, "two", "b/m")
    assert [shared_file.s3("bucket", key, client=s3.client).read_text() for key in ("a/m", "b/m", "a/m")] == ["one", "two", "one"]


@pytest.mark.parametrize(("bucket", "key"), [("bucket", "missing"), ("nowhere", "m")])
def test_a_missing_object_or_bucket_is_named(s3, bucket, key):
    with pytest.raises(
        SharedFileError, match=f"s3://{bucket}/{key} can't be had: .*(404|NoSuchBucket).*Check bucket, key"
    ) as caught:
        shared_file.s3(bucket, key, client=s3.client)
    assert caught.value.key == f"s3://{bucket}/{key}"


def test_an_object_that_changes_during_the_download_is_downloaded_again(s3, root):
    put(s3, "one")
    changes = iter(["other", "still another"])

    def change(**_: Any) -> None:
        text = next(changes, None)
        if text is not None:
            boto3.client("s3").put_object(Bucket="bucket", Key="models/m.bin", Body=text.encode())

    s3.client.meta.events.register("after-call.s3.GetObject", change)
    assert shared_file.s3("bucket", "models/m.bin", client=s3.client).read_text() == "still another"
    assert len(published(root)) == 1


def test_a_large_object_that_changes_between_its_parts_is_downloaded_again(s3):
    put(s3, "1" * 20_000_000)
    changes = iter(["2" * 20_000_001])

    def change(**_: Any) -> None:
        text = next(changes, None)
        if text is not None:
            boto3.client("s3").put_object(Bucket="bucket", Key="models/m.bin", Body=text.encode())

    s3.client.meta.events.register("before-call.s3.GetObject", change)
    assert shared_file.s3("bucket", "models/m.bin", client=s3.client).read_text() == "2" * 20_000_001


def test_one_that_never_stops_changing_is_an_error_and_leaves_nothing(s3, root):
    put(s3, "one")
    s3.client.meta.events.register(
        "after-call.s3.GetObject",
        lambda **_: boto3.client("s3").put_object(Bucket="bucket", Key="models/m.bin", Body=os.urandom(8)),
    )
    with pytest.raises(SharedFileError, match="changed while it was downloaded"):
        shared_file.s3("bucket", "models/m.bin", client=s3.client)
    assert published(root) == []


class BreaksOff(BaseHTTPRequestHandler):
    """Announces 1000 bytes and sends fewer."""

    sent = 0

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("ETag", '"etag"')
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def do_GET(self) -> None:
        type(self).sent += 1
        self.do_HEAD()
        self.wfile.write(b"x" * 500)
        self.close_connection = True


def test_a_download_that_ends_early_is_never_published(root):
    server = ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{server.server_port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )
    try:
        with pytest.raises(Exception, match="500|[Rr]etr|short|Incomplete"):
            shared_file.s3("bucket", "k", client=client)
    finally:
        server.shutdown()
        server.server_close()
        client.close()
    assert BreaksOff.sent > 0
    assert published(root) == []


def test_without_boto3_the_extra_is_named():
    script = "import sys; sys.modules['boto3'] = None\nfrom perinvoke import shared_file\nshared_file.s3('b', 'k')"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (
        f"{MissingExtra.__name__}: shared_file.s3 needs boto3, which isn't installed: pip install 'perinvoke[aws]'" in run.stderr
    )


@pytest.mark.parametrize("age", [-1, float("nan")])
def test_an_age_that_is_no_duration_is_refused(age):
    with pytest.raises(SharedFileError, match="max_age_seconds"):
        shared_file.s3("bucket", "k", max_age_seconds=age)
