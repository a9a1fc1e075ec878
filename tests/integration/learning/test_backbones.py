"""Embedding ids, stages, the pixels' way into the network."""

import pytest
import torch
from torch.nn import functional

from services.common.errors import BadConfig
from services.trainer.backbones import build
from services.trainer.classifier import EmbeddingNet
from services.trainer.config import BackboneConfig
from services.trainer.learning import SilentWatch
from tests.integration.learning.conftest import noise_images


def make(seed=0, height=32, **config):
    chosen = BackboneConfig.model_validate({"name": "base_cnn", "weights": "none", **config})
    return build(chosen, height, 32, None, seed, SilentWatch())


def test_the_same_configuration_has_the_same_embedding_id():
    assert make().embedding_id == make().embedding_id


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"height": 48}, {"input_size": 40}, {"flip": True}], ids=lambda change: next(iter(change))
)
def test_whatever_changes_the_embedding_changes_its_id(change):
    assert make(**change).embedding_id != make().embedding_id


def test_random_weights_come_from_the_seed_and_leave_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = make(seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert one.info.weights_sha256 == make(seed=3).info.weights_sha256


@pytest.mark.parametrize(
    ("name", "stages", "size"),
    [("base_cnn", 4, 256), ("vgg16", 5, 512), ("resnet50", 5, 2048), ("tf_efficientnet_lite0", 8, 1280)],
)
def test_every_parameter_belongs_to_one_stage(name, stages, size):
    backbone = make(name=name, input_size=32)
    assert len(backbone.stages) == stages
    assert backbone.embedding_size == size
    in_stages = [parameter for stage in backbone.stages for parameter in stage]
    assert sorted(in_stages) == sorted(name for name, _ in backbone.net.named_parameters())
    # First stage first.
    assert in_stages.index(next(n for n, _ in backbone.net.named_parameters())) == 0


def test_the_default_input_size_is_what_the_weights_were_trained_for():
    assert make().info.network_size == 32
    assert make(name="tf_efficientnet_lite0").info.network_size == 224


def test_a_network_made_for_one_size_takes_another():
    assert make(name="vit_tiny_patch16_224", input_size=64).embedding_size == 192


def test_an_unknown_tag_names_those_there_are():
    with pytest.raises(BadConfig, match=r"resnet18\.typo_in1k.*resnet18\."):
        make(name="resnet18.typo_in1k")


def test_an_input_that_the_network_cannot_take_is_refused():
    with pytest.raises(BadConfig, match="vgg16 cannot take an input of 16 pixels"):
        make(name="vgg16", input_size=16)


@pytest.mark.parametrize("size", [32, 48, 20], ids=["as it is", "upscaled", "downscaled"])
def test_pixels_are_resized_bicubically_and_normalised(size):
    images = torch.from_numpy(noise_images(2))
    net = EmbeddingNet(torch.nn.Identity(), 32, 32, size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), flip=False)
    pixels = images.permute(0, 3, 1, 2) / 255
    resized = functional.interpolate(pixels, (size, size), mode="bicubic", antialias=size < 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    torch.testing.assert_close(net(images), (resized - mean) / std, atol=1e-4, rtol=1e-4)


def test_flip_averaging_makes_mirror_images_equal():
    net = make(flip=True).net
    images = torch.from_numpy(noise_images(2))
    torch.testing.assert_close(net(images), net(images.flip(2)))
