import json
from datetime import UTC, datetime

import pytest

from services.common.errors import Conflict, DamagedArtefact, NotFound
from services.common.files import sha256_file
from services.common.manifest import Manifest, Parity
from services.common.registry import Registry
from tests.fakes import BACKBONE


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


def publish(registry, campaign, version, head="logistic"):
    registry.create_campaign(campaign, ["cat", "dog"])
    staged = registry.staging_dir()
    for name in ("model.onnx", "head.onnx"):
        (staged / name).write_bytes(f"{name} of {version}".encode())
    manifest = Manifest(
        campaign=campaign,
        version=version,
        round=version - 1,
        classes=("cat", "dog"),
        input_height=32,
        input_width=32,
        embedding_id="e",
        embedding_size=4,
        embedding_shared=True,
        backbone=BACKBONE,
        head=head,
        members=1,
        temperature=1.0,
        labels_used=10,
        metrics={"test": {"accuracy": 0.5}},
        parity=Parity(images=256, top1_disagreements=0, max_probability_error=0.0, max_logit_error=0.0),
        files={name: sha256_file(staged / name) for name in ("model.onnx", "head.onnx")},
        created_at=datetime.now(UTC),
        software={},
    )
    (staged / "manifest.json").write_text(manifest.model_dump_json())
    registry.publish(staged, campaign, version)


def test_published_is_not_promoted(registry):
    publish(registry, "demo-1", 1)
    assert registry.versions("demo-1") == [1]
    assert registry.current("demo-1") is None


def test_promotion_moves_current_and_tells_triton(registry):
    publish(registry, "demo-1", 1)
    publish(registry, "demo-1", 2)
    registry.promote("demo-1", 2)
    assert registry.current("demo-1") == 2
    assert "versions: [ 2 ]" in (registry.root / "demo-1" / "config.pbtxt").read_text()


def test_the_root_holds_campaign_folders_only(registry):
    publish(registry, "demo-1", 1)
    assert [p.name for p in registry.root.iterdir()] == ["demo-1"]
    assert {p.name for p in (registry.root / "demo-1").iterdir()} == {"1", "config.pbtxt", "labels.txt"}
    assert (registry.root / "demo-1" / "labels.txt").read_text() == "cat\ndog\n"


def test_a_version_that_is_there_is_never_replaced(registry):
    publish(registry, "demo-1", 1)
    before = (registry.root / "demo-1" / "1" / "manifest.json").read_bytes()
    publish(registry, "demo-1", 1)
    assert (registry.root / "demo-1" / "1" / "manifest.json").read_bytes() == before


def test_a_crash_between_current_and_tritons_config_is_repaired(registry):
    publish(registry, "demo-1", 1)
    (registry.root / "demo-1" / "current").write_text("1\n")
    registry.repair()
    assert "versions: [ 1 ]" in (registry.root / "demo-1" / "config.pbtxt").read_text()


@pytest.mark.parametrize("damage", ["flip", "remove", "manifest", "swap"])
def test_a_damaged_version_is_never_promoted(registry, damage):
    publish(registry, "demo-1", 1)
    publish(registry, "demo-1", 2)
    folder = registry.root / "demo-1" / "2"
    if damage == "flip":
        (folder / "model.onnx").write_bytes(b"model.onnx of 3")
    elif damage == "remove":
        (folder / "head.onnx").unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    else:
        (folder / "manifest.json").write_bytes((folder.parent / "1" / "manifest.json").read_bytes())
    with pytest.raises(DamagedArtefact):
        registry.promote("demo-1", 2)
    assert registry.current("demo-1") is None


def test_a_manifest_cannot_point_outside_its_folder(registry):
    publish(registry, "demo-1", 1)
    path = registry.root / "demo-1" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../config.pbtxt"] = "0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedArtefact, match="plain file name"):
        registry.verify("demo-1", 1)


@pytest.mark.parametrize("name", ["../secret", "", "Demo", "a/b", ".", "x" * 64, "-a"])
def test_a_name_never_becomes_a_path_outside_the_registry(registry, name):
    assert registry.versions(name) == []
    assert registry.current(name) is None
    with pytest.raises(NotFound):
        registry.version_dir(name, 1)


def test_an_unknown_version_names_what_is_published(registry):
    publish(registry, "demo-1", 1)
    with pytest.raises(NotFound, match="published: 1"):
        registry.version_dir("demo-1", 9)
    with pytest.raises(NotFound, match="did you mean 'demo-1'"):
        registry.version_dir("demo-2", 1)


def test_prune_keeps_current_the_newest_five_and_the_pinned(registry):
    for version in range(1, 11):
        publish(registry, "demo-1", version)
    registry.promote("demo-1", 3)
    registry.pin("demo-1", 2)
    assert registry.prune("demo-1") == [1, 4, 5]
    assert registry.versions("demo-1") == [2, 3, 6, 7, 8, 9, 10]


def test_the_backbone_alone_is_never_promoted(registry):
    publish(registry, "demo-1", 1, head="zero")
    with pytest.raises(Conflict, match="backbone alone"):
        registry.promote("demo-1", 1)


def test_rollback_skips_the_zero_head(registry):
    publish(registry, "demo-1", 1, head="zero")
    publish(registry, "demo-1", 2)
    publish(registry, "demo-1", 3)
    registry.promote("demo-1", 3)
    assert registry.rollback("demo-1") == 2
    with pytest.raises(Conflict):
        registry.rollback("demo-1")
