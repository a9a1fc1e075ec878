"""What a training promises, on a network of a few hundred weights."""

from functools import partial

import numpy as np
import pytest
import torch

from services.common.errors import BadConfig, Stopped
from services.trainer.training.checkpoint import Checkpoints
from tests.unit.training.conftest import GIB, HoldsFew, Plain, Told, accuracy, backbone, colours, trained, weights

EVERYTHING = {
    "head_epochs": 1,
    "layer_decay": 0.5,
    "ema": 0.9,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "shift": 0.2,
    "colour_jitter": 0.1,
    "rand_augment": 1,
    "erase": 0.2,
    "mixup": 0.2,
    "cutmix": 1.0,
    "accumulate": 2,
    "validation_share": 0.25,
}


@pytest.mark.parametrize("keys", [{}, {"optimizer": "sgd", "learning_rate": 0.1}, {"channels_last": True}])
def test_colours_are_learned(keys):
    assert accuracy(trained(epochs=8, **keys), colours()) > 0.9


def test_colours_are_learned_with_every_setting_at_once():
    assert accuracy(trained(epochs=30, **EVERYTHING), colours()) > 0.9


def test_bf16_learns_the_same_colours_in_32_bit_weights():
    network = trained(epochs=8, precision="bf16")
    assert accuracy(network, colours()) > 0.9
    assert {p.dtype for p in network.net.parameters()} == {torch.float32}


def test_the_pretrained_network_is_left_as_it_was():
    pretrained = backbone()
    before = {key: value.clone() for key, value in pretrained.net.state_dict().items()}
    trained(of=pretrained)
    assert all(torch.equal(before[key], value) for key, value in pretrained.net.state_dict().items())


def test_frozen_stages_and_their_statistics_do_not_move():
    before, after = backbone().net.state_dict(), trained(stages=1).net.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all(".last." in key for key in moved)


def test_only_the_head_learns_in_the_head_phase():
    told = Told(stop_at=6)  # the last step of the first epoch has been done
    state: dict = {}

    class Remembering:
        due = False

        def load(self):
            return None

        def save(self, found):
            state.update(found)

    with pytest.raises(Stopped):
        trained(tell=told, head_epochs=1, checkpoint=Remembering())
    before = backbone().net.state_dict()
    assert all(torch.equal(before[key], value) for key, value in state["net"].items())
    assert state["head"]["weight"].abs().max() > 0


def test_parts_of_a_batch_give_the_step_of_the_whole():
    whole, parts = (weights(trained(of=backbone(Plain), accumulate=n)) for n in (1, 4))
    assert np.abs(whole - weights(trained(of=backbone(Plain), epochs=1))).max() > 0.01
    np.testing.assert_allclose(parts, whole, atol=1e-3)


def test_early_stopping_looks_at_held_out_labels_and_keeps_their_best_epoch():
    told = Told()
    network = trained(tell=told, epochs=60, validation_share=0.25, patience=2, learning_rate=0.05)
    assert told.seen[-1].epoch < 59
    assert network.notes["best_epoch"] == told.seen[-1].epoch + 1 - 2
    assert network.notes["validation_loss"] < 1.1


def test_a_learning_rate_that_is_too_high_is_named():
    with pytest.raises(BadConfig, match="learning_rate 1e\\+20 is too high"):
        trained(learning_rate=1e20, optimizer="sgd")


def test_reports_tell_loss_accuracy_and_speed():
    told = Told()
    trained(tell=told, epochs=4)
    assert [r.step for r in told.seen] == list(range(24))
    last = told.seen[-1]
    assert (last.epoch, last.epochs, last.steps) == (3, 4, 24)
    assert 0 < last.loss < 1.2
    assert 0 <= last.accuracy <= 1
    assert last.images_per_second > 0


# ---- memory -------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_and_the_training_ends_well():
    network = trained(of=backbone(partial(HoldsFew, most=3)), epochs=20)
    assert network.notes["batch_in_parts"] == 4  # 8 images in parts of 2
    assert accuracy(network, colours()) > 0.9


def test_out_of_memory_with_a_single_image_is_an_error():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        trained(of=backbone(partial(HoldsFew, most=0)))


def test_a_batch_that_does_not_fit_is_refused_with_the_one_that_does():
    with pytest.raises(
        BadConfig, match=r"512 images at once need about .* (\d+) fit: set batch_size: \1, or acc"
    ) as it:
        trained(batch_size=512, free=2**20)
    fits = int(str(it.value).split("batch_size: ")[1].split(",")[0])
    trained(batch_size=fits, free=2**20, epochs=1)
    with pytest.raises(BadConfig):
        trained(batch_size=fits + 1, free=2**20)
    with pytest.raises(BadConfig, match="not even one fits"):
        trained(free=1000)
    trained(batch_size=512, free=GIB, epochs=1)


# ---- going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{}, EVERYTHING, {"optimizer": "sgd", "bootstrap": True, "members": 2}])
@pytest.mark.parametrize("stop_at", [1, 6, 10])
def test_a_training_that_was_stopped_ends_in_the_same_network(tmp_path, keys, stop_at):
    uninterrupted = trained(**keys)
    checkpoint = Checkpoints(tmp_path, "key").training(0)
    with pytest.raises(Stopped):
        trained(tell=Told(stop_at=stop_at), checkpoint=checkpoint, **keys)
    told = Told()
    resumed = trained(tell=told, checkpoint=checkpoint, **keys)
    assert told.seen[0].step == stop_at
    np.testing.assert_array_equal(weights(resumed), weights(uninterrupted))
    # And a worker that dies after the training, before its version is published, does not train again.
    again = Told()
    np.testing.assert_array_equal(weights(trained(tell=again, checkpoint=checkpoint, **keys)), weights(resumed))
    assert again.seen == []


def test_a_training_that_was_killed_goes_on_from_the_last_state_on_disk(tmp_path):
    class Killed(BaseException): ...

    def kill(report):
        if report.step == 9:
            raise Killed

    checkpoint = Checkpoints(tmp_path, "key", every_s=0).training(0)
    with pytest.raises(Killed):
        trained(tell=kill, checkpoint=checkpoint)
    told = Told()
    resumed = trained(tell=told, checkpoint=checkpoint)
    assert told.seen[0].step == 9
    np.testing.assert_array_equal(weights(resumed), weights(trained()))


def test_a_damaged_checkpoint_costs_time_and_nothing_else(tmp_path):
    checkpoint = Checkpoints(tmp_path, "key").training(0)
    with pytest.raises(Stopped):
        trained(tell=Told(stop_at=5), checkpoint=checkpoint)
    file = tmp_path / "key" / "0.pt"
    file.write_bytes(file.read_bytes()[:200])
    np.testing.assert_array_equal(weights(trained(checkpoint=checkpoint)), weights(trained()))


def test_a_checkpoint_of_other_labels_is_never_found(tmp_path):
    with pytest.raises(Stopped):
        trained(tell=Told(stop_at=5), checkpoint=Checkpoints(tmp_path, "before").training(0))
    told = Told()
    trained(tell=told, checkpoint=Checkpoints(tmp_path, "after").training(0))
    assert told.seen[0].step == 0


def test_a_training_draws_from_no_global_generator_and_leaves_it_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = trained(**EVERYTHING)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    np.testing.assert_array_equal(weights(trained(**EVERYTHING)), weights(one))
