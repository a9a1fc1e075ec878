"""The registry in a bucket: a real S3 server (moto's), the trainer's side and a replica's side, each with a copy."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from services.common.bucket_registry import BucketRegistry, BucketUnavailable, open_registry
from services.common.errors import BadConfig, NotFound
from services.common.registry import Registry
from tests.integration.inference.harness import serving
from tests.tiny_models import Folders, TinyModel, png, publish

URL = "s3://models/querent"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in (
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    for it in client.list_objects_v2(Bucket="models").get("Contents", ()):
        client.delete_object(Bucket="models", Key=it["Key"])
    client.delete_bucket(Bucket="models")


@pytest.fixture
def trainer(s3, tmp_path: Path) -> Registry:
    return BucketRegistry(tmp_path / "trainer" / "models", URL, fresh_seconds=0)


@pytest.fixture
def replica(s3, tmp_path: Path) -> Registry:
    return BucketRegistry(tmp_path / "replica" / "models", URL, fresh_seconds=0)


def keys(s3) -> list[str]:
    return sorted(it["Key"] for it in s3.list_objects_v2(Bucket="models").get("Contents", ()))


def test_what_one_publishes_and_promotes_the_other_has(trainer: Registry, replica: Registry, s3) -> None:
    assert replica.campaigns() == []
    publish(trainer, TinyModel())
    assert replica.versions("tiny") == [1]
    assert replica.current("tiny") is None
    trainer.promote("tiny", 1)
    assert replica.current("tiny") == 1
    assert replica.verify("tiny", 1) == trainer.verify("tiny", 1)
    # Triton can read the bucket as it reads the folder.
    assert "querent/tiny/config.pbtxt" in keys(s3)
    assert "querent/tiny/1/model.onnx" in keys(s3)
    assert b"versions: [ 1 ]" in s3.get_object(Bucket="models", Key="querent/tiny/config.pbtxt")["Body"].read()


def test_a_version_without_its_manifest_is_not_there_yet(trainer: Registry, replica: Registry, s3) -> None:
    publish(trainer, TinyModel())
    manifest = s3.get_object(Bucket="models", Key="querent/tiny/1/manifest.json")["Body"].read()
    s3.delete_object(Bucket="models", Key="querent/tiny/1/manifest.json")
    with pytest.raises(NotFound):
        replica.version_dir("tiny", 1)
    s3.put_object(Bucket="models", Key="querent/tiny/1/manifest.json", Body=manifest)
    assert replica.version_dir("tiny", 1).is_dir()


def test_a_damaged_version_is_never_taken_and_a_mended_one_is(trainer: Registry, replica: Registry, s3) -> None:
    publish(trainer, TinyModel())
    whole = s3.get_object(Bucket="models", Key="querent/tiny/1/model.onnx")["Body"].read()
    s3.put_object(Bucket="models", Key="querent/tiny/1/model.onnx", Body=whole[:-1])
    assert replica.versions("tiny") == []
    s3.put_object(Bucket="models", Key="querent/tiny/1/model.onnx", Body=whole)
    assert replica.versions("tiny") == [1]


def test_a_campaign_made_anew_takes_the_place_of_the_old_one(trainer: Registry, replica: Registry) -> None:
    publish(trainer, TinyModel(), promote=True)
    before = replica.manifest("tiny", 1).files
    trainer.delete("tiny")
    assert replica.campaigns() == []
    publish(trainer, replace(TinyModel(), seed=7), promote=True)
    assert replica.verify("tiny", 1).files != before


def test_pruned_and_pinned_versions_go_and_stay_everywhere(trainer: Registry, replica: Registry) -> None:
    for version in (1, 2, 3, 4):
        publish(trainer, TinyModel(version=version), promote=version == 4)
    trainer.pin("tiny", 1)
    assert replica.versions("tiny") == [1, 2, 3, 4]
    assert trainer.prune("tiny", keep_newest=1) == [2, 3]
    assert replica.versions("tiny") == [1, 4]
    assert replica.pinned("tiny") == {1}


def test_a_new_worker_begins_with_what_others_published(trainer: Registry, s3, tmp_path: Path) -> None:
    publish(trainer, TinyModel(), promote=True)
    other = BucketRegistry(tmp_path / "other" / "models", URL)
    publish(other, TinyModel(version=2), promote=True)
    assert trainer.versions("tiny") == [1, 2]
    assert trainer.current("tiny") == 2
    assert trainer.rollback("tiny") == 1
    trainer.repair()
    assert BucketRegistry(tmp_path / "third" / "models", URL).current("tiny") == 1


def test_a_bucket_that_is_away_leaves_what_was_pulled(
    trainer: Registry, replica: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(trainer, TinyModel(), promote=True)
    assert replica.current("tiny") == 1

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("no way there")

    for registry in (trainer, replica):
        monkeypatch.setattr(registry, "_files", type("Away", (), {"__getattr__": lambda *_: away})())
    assert replica.current("tiny") == 1
    assert replica.verify("tiny", 1)
    with pytest.raises(BucketUnavailable, match="cannot be used now"):
        trainer.promote("tiny", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(BucketUnavailable):
        BucketRegistry(tmp_path / "new" / "models", URL).campaigns()


async def test_a_replica_serves_a_bucket_and_follows_it(trainer: Registry, folders: Folders) -> None:
    publish(trainer, TinyModel(), promote=True)
    async with serving(folders, registry_bucket=URL) as served:
        assert (await served.client.predict([png()])).version == 1
        publish(trainer, TinyModel(version=2))
        # Asked for by its number before the next look at the bucket.
        assert (await served.client.predict([png()], model="tiny", version=2)).version == 2
        await asyncio.to_thread(trainer.promote, "tiny", 2)
        async with asyncio.timeout(20):
            while (await served.client.predict([png()])).version != 2:
                await asyncio.sleep(0.1)


def test_a_url_that_names_no_bucket_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="is no registry"):
        open_registry(tmp_path, "nowhere://models")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "folders")
