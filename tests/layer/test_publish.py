"""What ``perinvoke layer publish`` publishes, and what it doesn't, when nothing goes wrong."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from perinvoke.layer.publish import plan, run
from publishing import PUBLISH, REGIONS, LayerServer, Publisher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACCOUNT = "210987654321"


@pytest.fixture(scope="module")
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


@pytest.fixture
def publisher(
    server: LayerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Publisher:
    made = Publisher(server, tmp_path, monkeypatch, capsys)
    made.prepare()
    return made


def test_each_zip_is_published_in_each_region_once(publisher: Publisher) -> None:
    core = publisher.zip()
    sql = publisher.zip("dist/perinvoke-0-sql-python3.13.zip", pythons=["3.13"], architectures=["arm64"], parts=["core", "sql"])
    done = publisher.run()
    assert done.returncode == 0, done.stderr
    assert sorted(row[:3] for row in done.rows()) == sorted(
        [region, layer, "published"] for region in REGIONS for layer in (core, sql)
    )
    for region, layer, _, arn in done.rows():
        assert arn == f"arn:aws:lambda:{region}:123456789012:layer:{layer}:1"
    (version,) = publisher.versions(sql)
    assert version["CompatibleRuntimes"] == ["python3.13"]
    assert version["CompatibleArchitectures"] == ["arm64"]
    assert version["LicenseInfo"].startswith("MIT; of the packages in it: ")  # psycopg's is LGPL
    assert version["Description"].startswith("perinvoke 0.1.0: core, sql; sha256 ")
    assert publisher.versions(core)[0]["LicenseInfo"] == "MIT"

    # The next step names the version of a layer that attach doesn't look for by itself.
    first = [row[3] for row in done.rows() if row[0] == REGIONS[0]]
    steps = [
        line.partition("--version-arn ")[2]
        for line in done.stderr.splitlines()
        if line.startswith("next: perinvoke layer attach")
    ]
    assert sorted(steps) == sorted(first)

    again = publisher.run()
    assert again.returncode == 0, again.stderr
    assert publisher.writes() == []
    assert [row[3] for row in again.rows()] == [row[3] for row in done.rows()]
    assert {row[2] for row in again.rows()} == {"there already"}


def test_other_bytes_are_a_new_version_and_the_old_one_is_not_even_read(publisher: Publisher) -> None:
    layer = publisher.zip()
    publisher.run(regions=REGIONS[0])
    publisher.zip(content="changed", name=layer)
    done = publisher.run(regions=REGIONS[0])
    assert done.rows()[0][3].endswith(f"{layer}:2")
    assert publisher.server.operations() == ["ListLayerVersions", PUBLISH]


def test_a_version_that_somebody_else_made_of_the_same_bytes_is_found(publisher: Publisher) -> None:
    layer = publisher.zip()
    content = (publisher.directory / "dist/perinvoke-0.zip").read_bytes()
    with publisher.server.undisturbed():
        for told in ({"Description": "by hand"}, {}):
            publisher.server.client().publish_layer_version(
                LayerName=layer,
                Content={"ZipFile": content if told else content + b"\0"},
                CompatibleRuntimes=["python3.12", "python3.13", "python3.14"],
                CompatibleArchitectures=["x86_64", "arm64"],
                **told,
            )
    publisher.server.page = 1
    done = publisher.run(regions=REGIONS[0])
    assert done.rows() == [[REGIONS[0], layer, "there already", f"arn:aws:lambda:{REGIONS[0]}:123456789012:layer:{layer}:1"]]


def test_an_emulator_that_does_not_tell_architectures_gets_the_bytes_once(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(server: LayerServer, *asked: Any) -> bytes:
        return served(server, *asked).replace(b'"CompatibleArchitectures"', b'"compatibleArchitectures"')

    served = LayerServer._served
    monkeypatch.setattr(LayerServer, "_served", forgetful)
    publisher.zip()
    assert publisher.run(regions=REGIONS[0]).results() == {REGIONS[0]: "published"}
    assert publisher.run(regions=REGIONS[0]).results() == {REGIONS[0]: "there already"}


def test_the_same_bytes_for_other_runtimes_are_published_again(publisher: Publisher) -> None:
    layer = publisher.zip()
    content = (publisher.directory / "dist/perinvoke-0.zip").read_bytes()
    with publisher.server.undisturbed():
        publisher.server.client().publish_layer_version(
            LayerName=layer,
            Content={"ZipFile": content},
            CompatibleRuntimes=["python3.13"],
            CompatibleArchitectures=["x86_64", "arm64"],
        )
    assert publisher.run(regions=REGIONS[0]).results() == {REGIONS[0]: "published"}
    assert publisher.run(regions=REGIONS[0]).results() == {REGIONS[0]: "there already"}
    assert publisher.versions(layer)[0]["CompatibleRuntimes"] == ["python3.13", "python3.14"]


def test_it_goes_by_the_name_that_is_given(publisher: Publisher) -> None:
    layer = publisher.zip()
    done = publisher.run("dist/perinvoke-0.zip", "--name", f"my-{layer}", regions=f" {REGIONS[0]},,{REGIONS[0]}")
    assert [row[1] for row in done.rows()] == [f"my-{layer}"]


def test_regions_may_be_given_one_by_one(publisher: Publisher) -> None:
    publisher.zip()
    done = publisher.run("--dry-run", "--region", REGIONS[2], regions=REGIONS[0])
    assert list(done.results()) == [REGIONS[2], REGIONS[0]]


def test_without_a_region_it_goes_where_the_variable_says(publisher: Publisher) -> None:
    publisher.zip()
    assert publisher.run(regions=None, AWS_DEFAULT_REGION="us-east-1").results() == {"us-east-1": "published"}


def test_zips_of_another_version_of_perinvoke_are_left_out_and_told(publisher: Publisher) -> None:
    layer = publisher.zip()
    publisher.zip("dist/perinvoke-9.zip", perinvoke="9.0")
    done = publisher.run(regions=REGIONS[0])
    assert [row[1] for row in done.rows()] == [layer]
    assert "dist/perinvoke-9.zip is left out: it is of perinvoke 9.0, and this is 0.1.0." in done.stderr
    (publisher.directory / "dist/perinvoke-0.zip").unlink()
    none = publisher.run(regions=REGIONS[0])
    assert none.returncode == 2
    assert "none is of perinvoke 0.1.0" in none.stderr
    assert publisher.run("dist/perinvoke-9.zip", regions=REGIONS[0]).returncode == 0


def test_accounts_are_let_in_also_by_a_second_run_and_only_once(publisher: Publisher) -> None:
    layer = publisher.zip()
    regions = ",".join(REGIONS[:2])
    publisher.run(regions=regions)
    for _ in range(2):
        done = publisher.run("--account", ACCOUNT, "--account", ACCOUNT, regions=regions)
        assert done.results() == dict.fromkeys(REGIONS[:2], "there already"), done.stderr
        assert done.returncode == 0
    assert publisher.run("--account", "all", regions=regions).returncode == 0
    for region in REGIONS[:2]:
        found = publisher.policy(layer, region)
        assert [each["Sid"] for each in found] == [f"perinvoke-{ACCOUNT}", "perinvoke-everybody"]
        assert [each["Action"] for each in found] == ["lambda:GetLayerVersion"] * 2
        assert ACCOUNT in str(found[0]["Principal"])
        assert found[1]["Principal"] == "*"


def test_a_dry_run_asks_for_nothing_that_changes_anything(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = publisher.zip()
    publisher.run(regions=REGIONS[0])
    done = publisher.run("--dry-run", "--account", ACCOUNT)
    assert done.returncode == 0, done.stderr
    assert done.results() == {region: "there already" if region == REGIONS[0] else "would be published" for region in REGIONS}
    assert publisher.writes() == []
    assert f"account {ACCOUNT} would be allowed to use it." in done.stderr
    assert "dist/perinvoke-0.zip, 0.00 MB, in the request" in done.stdout
    assert publisher.versions(layer, REGIONS[1]) == []
    monkeypatch.setattr(plan, "DIRECT_UPLOAD_BYTES", 10)
    assert "through s3://layers-us-east-1" in publisher.run("--dry-run", "--bucket", "layers-{region}").stdout
    assert publisher.writes() == []


def test_a_dry_run_without_credentials_prints_the_plan_and_says_that_it_could_not_look(publisher: Publisher) -> None:
    publisher.zip()
    done = publisher.run("--dry-run", AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    assert done.returncode == 0
    assert done.results() == dict.fromkeys(REGIONS, "would be published")
    assert done.stderr.count("couldn't look: there are no AWS credentials") == 1
    assert publisher.server.asked == []


@pytest.fixture
def buckets(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> str:
    """What --bucket says; 50 MB are ten bytes now."""
    monkeypatch.setattr(plan, "DIRECT_UPLOAD_BYTES", 10)
    name = f"layers-{publisher.directory.name.replace('_', '-')}-"
    with publisher.server.undisturbed():
        for region in REGIONS[:2]:
            where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            publisher.server.client("s3", region).create_bucket(Bucket=f"{name}{region}".lower(), **where)
    return f"{name}{{region}}".lower()


def test_a_large_zip_goes_through_a_bucket_of_the_region_and_is_uploaded_once(publisher: Publisher, buckets: str) -> None:
    layer = publisher.zip()
    regions = ",".join(REGIONS[:2])
    done = publisher.run("--bucket", buckets, regions=regions)
    assert done.results() == dict.fromkeys(REGIONS[:2], "published"), done.stderr
    assert publisher.server.operations().count("s3 PUT") == 2
    assert [
        each.body["Content"] for each in publisher.server.asked if each.operation == PUBLISH and each.region == "us-east-1"
    ] == [
        {
            "S3Bucket": buckets.replace("{region}", "us-east-1"),
            "S3Key": f"perinvoke-layers/{publisher.versions(layer)[0]['Description'][-64:]}.zip",
        }
    ]
    publisher.run("--bucket", buckets, "--name", f"other-{layer}", regions=regions)
    assert publisher.server.operations().count("s3 HEAD") == 2
    assert publisher.server.operations().count("s3 PUT") == 0
    assert publisher.run("--bucket", buckets, regions=regions).results() == dict.fromkeys(REGIONS[:2], "there already")
    assert set(publisher.server.operations()) == {"ListLayerVersions", "GetLayerVersion"}


def test_a_large_zip_without_a_bucket_names_the_option_and_asks_nobody(publisher: Publisher, buckets: str) -> None:
    publisher.zip()
    none = publisher.run()
    assert (none.returncode, none.stdout) == (2, "")
    assert "Give --bucket" in none.stderr
    one = publisher.run("--bucket", "layers")
    assert "such as layers-{region}" in one.stderr
    wrong = publisher.run("--bucket", "s3://layers/x", regions=REGIONS[0])
    assert "is no bucket's name" in wrong.stderr
    assert publisher.server.asked == []


def test_a_bucket_that_is_not_there_is_told(publisher: Publisher, buckets: str) -> None:
    publisher.zip()
    done = publisher.run("--bucket", "nobody-has-this", regions=REGIONS[0])
    assert done.returncode == 1
    assert "s3:PutObject on bucket 'nobody-has-this' in eu-west-1: NoSuchBucket" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("--account", "12"), {}, "--account 12: an account's id has 12 digits"),
        (("--account", f"{ACCOUNT},{ACCOUNT}"), {}, "For several, repeat the option"),
        (("--region", "mars,eu-west-1a"), {}, "no region of AWS is called so: 'mars', 'eu-west-1a'"),
        (("--region", ","), {}, "no region is set: give --region, or set AWS_DEFAULT_REGION"),
        ((), {"AWS_DEFAULT_REGION": None}, "no region is set: give --region, or set AWS_DEFAULT_REGION"),
        ((), {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and"),
        ((), {"AWS_SECRET_ACCESS_KEY": None}, "Partial credentials"),
        (("--profile", "mars"), {}, "The config profile (mars) could not be found. See: aws configure list-profiles"),
        (("--endpoint-url", "localhost"), {}, "Invalid endpoint: localhost"),
        (("--name", "a b"), {}, "'a b' is no name for a layer: 1 to 140 characters"),
        (("--name", "one", "a.zip", "b.zip"), {}, "--name one is for one zip, and there are 2: a.zip, b.zip"),
        (("a.zip", "same.zip"), {}, "a.zip and same.zip are both the layer 'a', and differ"),
        (("nowhere.zip",), {}, "nowhere.zip can't be read: No such file or directory. Build one: perinvoke layer build"),
        (("nonsense.zip",), {}, "nonsense.zip is no zip, or a damaged one"),
        (("strange.zip",), {}, "strange.zip is no layer of perinvoke"),
        (("dist",), {}, "dist can't be read: Is a directory"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_done(
    publisher: Publisher, arguments: tuple[str, ...], changes: dict[str, str | None], message: str
) -> None:
    publisher.zip()
    publisher.zip("a.zip", name="a")
    publisher.zip("b.zip", name="b")
    publisher.zip("same.zip", name="a", content="other")
    (publisher.directory / "nonsense.zip").write_bytes(b"PK\x03\x04 nonsense")
    with zipfile.ZipFile(publisher.directory / "strange.zip", "w") as archive:
        archive.writestr("a", "b")
    done = publisher.run(*arguments, regions=None, **changes)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("perinvoke: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert publisher.server.asked == []


def test_without_any_zip_it_says_how_to_build_one(publisher: Publisher) -> None:
    done = publisher.run()
    assert done.returncode == 2
    assert f"there are no zips in {publisher.directory}/dist. Build one: perinvoke layer build, or name one" in done.stderr


def test_what_is_too_large_unpacked_is_told(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "UNPACKED_BYTES", 1024 * 1024)
    publisher.zip(content=b"\0" * 1_100_000)
    done = publisher.run()
    assert done.returncode == 2
    assert "unpacked, and Lambda allows 1.0 MB for a function and its layers together" in done.stderr


def test_of_large_zips_few_are_sent_at_once(publisher: Publisher) -> None:
    publisher.zip()
    (layer_zip,) = plan.zips_of([publisher.directory / "dist/perinvoke-0.zip"], print)
    assert run.threads_for([plan.Target(layer_zip, "a", region) for region in "abcdefghij"]) == 8
    large = plan.zips_of([publisher.directory / "dist/perinvoke-0.zip"], print)[0]
    object.__setattr__(large, "packed_bytes", 50_000_000)
    assert run.threads_for([plan.Target(large, "a", region) for region in "abcdefghij"]) == 2
    assert run.threads_for([plan.Target(large, "a", region, bucket="b") for region in "abcdefghij"]) == 8
