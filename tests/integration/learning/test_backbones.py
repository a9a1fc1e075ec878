"""Embedding ids, stages, the pixels' way into the network."""

import pytest
import torch
from torch.nn import functional

from services.common.errors import BadConfig
from services.trainer import torchvision_backbones
from services.trainer.backbones import architecture, build
from services.trainer.classifier import EmbeddingNet
from services.trainer.config import BackboneConfig
from services.trainer.learning import SilentWatch
from tests.integration.learning.conftest import noise_images


def make(seed=0, height=32, **config):
    chosen = BackboneConfig.model_validate({"name": "base_cnn", "weights": "none", "taps": "last", **config})
    return build(chosen, height, 32, None, seed, SilentWatch())


def test_the_same_configuration_has_the_same_embedding_id():
    assert make().embedding_id == make().embedding_id


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"height": 48}, {"input_size": 40}, {"flip": True}, {"taps": 2}, {"taps": [2, 4]}], ids=str
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
    [
        ("base_cnn", 4, 256),
        ("vgg16", 5, 512),
        ("resnet50", 5, 2048),
        ("tf_efficientnet_lite0", 8, 1280),
        ("mobilenet_v3_small", 5, 1024),
        ("squeezenet1_1", 4, 512),
        ("regnet_x_400mf", 5, 400),
    ],
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


# ---- torchvision's names beside timm's -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known_as", "size"),
    [
        ("mobilenet_v2", "mobilenet_v2", 1280),  # torchvision's alone
        ("resnet18", "resnet18", 512),  # timm's, which wins
        ("timm/resnet18", "resnet18", 512),
        ("torchvision/resnet18", "torchvision/resnet18", 512),
        ("torchvision/mobilenet_v2", "mobilenet_v2", 1280),
    ],
)
def test_whose_network_a_name_means(name, known_as, size):
    backbone = make(name=name, input_size=32)
    assert (backbone.info.name, backbone.embedding_size) == (known_as, size)


def test_the_classifier_of_a_torchvision_network_is_left_out():
    names = {name for name, _ in make(name="torchvision/resnet18", input_size=32).net.backbone.named_parameters()}
    assert "layer1.0.conv1.weight" in names
    assert not any(name.startswith("fc.") for name in names)


@pytest.mark.slow
def test_every_torchvision_classifier_is_known():
    for name in torchvision_backbones.names():
        kind = architecture(f"torchvision/{name}")
        assert kind.native_size >= 224, name
        assert kind.dropped, name


def test_a_network_of_one_size_says_so():
    with pytest.raises(BadConfig, match="vit_b_16 takes 224 pixels and nothing else"):
        make(name="vit_b_16", input_size=64)


# ---- taps -----------------------------------------------------------------------------------------------


def embedded(backbone, count=3):
    with torch.inference_mode():
        return backbone.net(torch.from_numpy(noise_images(count)))


@pytest.mark.parametrize("name", ["base_cnn", "mobilenet_v3_small", "resnet10t", "torchvision/squeezenet1_1"])
def test_the_last_stages_end_with_what_the_network_gives_without_taps(name):
    last, two, three = (make(name=name, input_size=64, taps=taps) for taps in ("last", 2, 3))
    whole, more = embedded(two), embedded(three)
    torch.testing.assert_close(whole[:, -last.embedding_size :], embedded(last))
    torch.testing.assert_close(more[:, -two.embedding_size :], whole)
    assert two.info.weights_sha256 == last.info.weights_sha256


def test_a_tapped_stage_is_its_map_averaged_over_positions():
    backbone = make(taps=[2])
    network = make().net.backbone
    images = torch.from_numpy(noise_images(3)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        maps = network.blocks[1](network.blocks[0]((images - 0.5) / 0.5))
    torch.testing.assert_close(embedded(backbone), maps.mean(dim=(2, 3)))
    assert backbone.info.taps == "2"


def test_the_same_stages_by_number_or_by_name_are_one_embedding():
    assert make(taps=1).embedding_id == make(taps=[4]).embedding_id == make(taps="last").embedding_id
    assert make(taps=2).embedding_id == make(taps=[4, 3, 3]).embedding_id
    assert (make(taps=1).info.taps, make(taps=2).info.taps) == ("last", "3,4")


def test_the_default_is_the_last_stage_where_nobody_has_measured_another():
    assert make(taps="default").info.taps == "last"


def test_vgg16_is_read_at_its_last_two_poolings_by_default():
    backbone = make(name="vgg16", taps="default")
    assert (backbone.info.taps, backbone.embedding_size) == ("3,4,5", 1280)


def test_a_tapped_embedding_is_averaged_with_its_mirror_images():
    images = torch.from_numpy(noise_images(2))
    net, plain = make(taps=2, flip=True).net, make(taps=2).net
    torch.testing.assert_close(net(images), (plain(images) + plain(images.flip(2))) / 2)


def test_stages_that_there_are_not_are_refused():
    with pytest.raises(BadConfig, match="base_cnn has 4 stages, 1 to 4; 5 asks for others"):
        make(taps=5)
    with pytest.raises(BadConfig, match=r"\[2, 9\] asks for others"):
        make(taps=[2, 9])


def test_a_network_without_maps_cannot_be_tapped():
    with pytest.raises(BadConfig, match="swin_t give no maps that could be averaged; use taps: last"):
        make(name="swin_t", input_size=64, taps=2)


def test_every_parameter_of_a_tapped_network_still_belongs_to_one_stage():
    backbone = make(taps=2)
    in_stages = [parameter for stage in backbone.stages for parameter in stage]
    assert len(backbone.stages) == 4
    assert sorted(in_stages) == sorted(name for name, _ in backbone.net.named_parameters())
