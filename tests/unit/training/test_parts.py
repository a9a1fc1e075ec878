"""The parts of a training: its plan, its images, its memory, its precision."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.errors import BadConfig
from services.trainer.finetune_config import FinetuneConfig
from services.trainer.learning import SilentWatch
from services.trainer.training import augment, device, memory, pixels
from services.trainer.training.checkpoint import Checkpoints
from services.trainer.training.feed import Feed
from services.trainer.training.optimizer import make_optimizer, unfreeze
from services.trainer.training.plan import Plan, class_weights, held_out, resample
from tests.unit.training.conftest import SIDE, backbone, how

# ---- plan ---------------------------------------------------------------------------------------------


def test_the_rate_waits_for_the_head_then_rises_and_falls_to_zero():
    plan = Plan(80, how(head_epochs=1, epochs=10, warm_up=0.1))
    rates = [plan.rate(step) for step in range(plan.steps + 1)]
    assert rates[:10] == [1.0] * 10
    assert rates[10:20] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_every_sample_is_seen_once_an_epoch_in_another_order():
    plan = Plan(21, how())
    first, second = plan.batches(0, (1,)), plan.batches(1, (1,))
    assert [len(rows) for rows in first] == [7, 7, 7]  # and no last batch of five
    for batches in (first, second):
        assert sorted(np.concatenate(batches)) == list(range(21))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


def test_held_out_rows_are_a_share_of_each_class_and_leave_one_to_learn_from():
    classes = np.array([0] * 40 + [1] * 20 + [2])
    chosen = held_out(classes, 0.25, (0,))
    assert [int(chosen[classes == c].sum()) for c in range(3)] == pytest.approx([10, 5, 0], abs=1)
    assert not chosen[classes == 2].any()
    assert not held_out(classes, 0.0, (0,)).any()


def test_a_resample_keeps_the_size_of_every_class():
    classes = np.array([0] * 40 + [1] * 20 + [2])
    rows = resample(classes, (0,))
    np.testing.assert_array_equal(np.bincount(classes[rows]), [40, 20, 1])
    assert len(set(rows.tolist())) < 50


def test_balanced_classes_weigh_the_same():
    classes = np.array([0] * 30 + [1] * 10)
    np.testing.assert_allclose(class_weights(classes, 3, "balanced"), [2 / 3, 2, 1], rtol=1e-6)
    np.testing.assert_array_equal(class_weights(classes, 3, "none"), [1, 1, 1])


def test_earlier_stages_learn_more_slowly():
    bare = backbone()
    config = how(learning_rate=0.1, backbone_lr_share=0.5, layer_decay=0.1)
    unfreeze(bare.net, bare.stages, "all")
    head = torch.nn.Linear(6, 3)

    def rates(of):
        return sorted({group["full_lr"] for group in make_optimizer(of, bare.net, head, config).param_groups})

    from dataclasses import replace

    pretrained = replace(bare, info=bare.info.model_copy(update={"weights": "default"}))
    assert rates(pretrained) == pytest.approx([0.005, 0.05, 0.1])
    scratch = replace(bare, info=bare.info.model_copy(update={"weights": "none"}))
    assert rates(scratch) == pytest.approx([0.01, 0.1])  # nothing is pretrained: the share does not count


# ---- images -------------------------------------------------------------------------------------------


def stripes(count: int = 4) -> torch.Tensor:
    rows = torch.arange(SIDE, dtype=torch.uint8)[None, :, None, None] * 10
    return rows.expand(count, SIDE, SIDE, 3).clone()


def test_each_image_moves_by_its_own_draw_and_no_further_than_asked():
    torch.manual_seed(0)
    moved = augment.shifted(stripes(64), 0.25)[:, :, 0, 0].long() // 10
    places = torch.arange(SIDE)
    assert (moved - places).abs().max() == 2
    assert len({tuple(image.tolist()) for image in moved}) == 5  # two up to two down


def test_mirroring_draws_for_each_image():
    torch.manual_seed(0)
    images = stripes(64).transpose(1, 2)
    found, targets = augment.Augmenter(how(mirror=True), 3)(images, torch.eye(3)[torch.zeros(64).long()])
    flipped = (found == images.flip(2)).flatten(1).all(dim=1)
    kept = (found == images).flatten(1).all(dim=1)
    assert bool((flipped ^ kept).all())
    assert 16 < int(flipped.sum()) < 48
    assert targets.shape == (64, 3)


@pytest.mark.parametrize("keys", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_mixed_images_have_mixed_targets(keys):
    torch.manual_seed(0)
    targets = torch.eye(3)[torch.arange(30) % 3]
    images, mixed = augment.Augmenter(how(mirror=False, **keys), 3)(stripes(30), targets)
    assert images.shape == (30, SIDE, SIDE, 3)
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(30))
    assert bool(((mixed > 0.01) & (mixed < 0.99)).any())


def test_groups_of_a_batch_are_changed_differently():
    torch.manual_seed(0)
    images = torch.full((32, SIDE, SIDE, 3), 100, dtype=torch.uint8)
    found, _ = augment.Augmenter(how(mirror=False, colour_jitter=0.5), 3)(images, torch.eye(3)[torch.zeros(32).long()])
    assert found.dtype == torch.uint8
    assert len({int(image[0, 0, 0]) for image in found}) > 8


def test_without_settings_nothing_changes():
    images, targets = stripes(), torch.eye(3)[torch.arange(4) % 3]
    found = augment.Augmenter(how(mirror=False), 3)(images, targets)
    assert found[0] is images
    assert found[1] is targets


@pytest.mark.parametrize("ram_bytes", [2**30, 0])
def test_images_are_decoded_once_into_memory_or_a_file_that_leaves_nothing(tmp_path, ram_bytes):
    truth = np.random.default_rng(0).integers(0, 256, (150, 4, 4, 3), dtype=np.uint8)
    asked: list[str] = []

    def read(ids):
        asked.extend(ids)
        return truth[[int(i) for i in ids]]

    ids = [str(i) for i in range(150)]
    found = pixels.decoded(read, ids, tmp_path / "pixels", ram_bytes, SilentWatch())
    np.testing.assert_array_equal(found, truth)
    assert asked == ids
    assert isinstance(found, np.memmap) == (ram_bytes == 0)
    assert not list(tmp_path.rglob("*.*"))
    batches = list(Feed(found, torch.device("cpu")).batches([np.array([3, 1]), np.array([149])]))
    np.testing.assert_array_equal(batches[0].numpy(), truth[[3, 1]])
    np.testing.assert_array_equal(batches[1].numpy(), truth[[149]])


# ---- memory and precision -----------------------------------------------------------------------------


def test_memory_is_counted_for_what_learns():
    net, image = backbone(), torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
    unfreeze(net.net, net.stages, "all")
    everything = memory.bytes_per_image(net.net, image)
    # The result of the first convolution alone, in float32.
    assert everything > SIDE * SIDE * 4 * 4
    assert memory.bytes_of_weights(net.net, how()) == 4 * sum(p.nbytes for p in net.net.parameters())
    unfreeze(net.net, net.stages, 1)
    assert memory.bytes_per_image(net.net, image) < everything
    assert memory.bytes_of_weights(net.net, how(ema=0.9)) > memory.bytes_of_weights(net.net, how())


def test_the_cgroup_bounds_the_memory_of_the_machine(tmp_path: Path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert memory.free_memory_of_cpu(tmp_path / "meminfo", tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("1500000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert memory.free_memory_of_cpu(tmp_path / "meminfo", tmp_path) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory_of_cpu(tmp_path / "meminfo", tmp_path) == 8000 * 1024


def test_a_cpu_trains_in_fp32_unless_asked(tmp_path: Path, monkeypatch):
    assert device.choose_machine(FinetuneConfig(device="cpu")).precision == "fp32"
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512f\n")
    assert not device.cpu_has_fast_bf16(tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f avx512_bf16\n")
    assert device.cpu_has_fast_bf16(tmp_path / "cpuinfo")
    for has, used in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda has=has: has)
        assert device.choose_machine(FinetuneConfig(device="cpu", precision="bf16")).precision == used


def test_what_only_a_gpu_does_is_refused_without_one():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(BadConfig, match="no CUDA device here; use auto or cpu"):
        device.choose_machine(FinetuneConfig(device="cuda"))
    with pytest.raises(BadConfig, match="fp16 is for GPUs"):
        device.choose_machine(FinetuneConfig(precision="fp16"))


# ---- checkpoints on disk ------------------------------------------------------------------------------


def test_checkpoints_of_rounds_that_were_given_up_go_after_a_day(tmp_path):
    old, mine = Checkpoints(tmp_path, "old"), Checkpoints(tmp_path, "mine")
    for it in (old, mine):
        it.training(0).save({"ended": True})
        os.utime(next((tmp_path / ("old" if it is old else "mine")).glob("*.pt")), (0, 0))
    mine.drop_older_than_a_day()
    assert [folder.name for folder in tmp_path.iterdir()] == ["mine"]
    mine.remove()
    assert not list(tmp_path.iterdir())
