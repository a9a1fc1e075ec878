"""Other views of the same images, made on the device in batches."""

from typing import Any

import torch
from torch.nn import functional

from services.trainer.finetune_config import FinetuneConfig
from services.trainer.torchvision_shim import torchvision

assert torchvision  # its v2 transforms are imported where a configuration asks for them, and after the shim

# torchvision's transforms draw once for a whole batch. Images are transformed in at most so many groups, each with a
# draw of its own: the batch is varied, and a GPU is not fed image by image.
_GROUPS = 16


class Augmenter:
    """uint8 [B, H, W, 3] and one-hot targets (B, C) -> a changed view of both, uint8 or float of the same shape.

    Draws from torch's global generator.
    """

    def __init__(self, config: FinetuneConfig, class_count: int) -> None:
        self._mirror = config.mirror
        self._shift = config.shift
        self._change = _changes(config)
        self._mix = _mixes(config, class_count)

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._mirror:
            flags = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(flags[:, None, None, None], images.flip(2), images)
        if self._shift:
            images = shifted(images, self._shift)
        if self._change is None and self._mix is None:
            return images, targets
        planes = images.permute(0, 3, 1, 2)
        if self._change is not None:
            groups = planes.tensor_split(min(_GROUPS, len(planes)))
            planes = torch.cat([self._change(group) for group in groups])
        if self._mix is not None and len(planes) > 1:
            # Its labels are class indices; ours may not be mixed before, so the index is all they hold.
            planes, targets = self._mix(planes.float(), targets.argmax(dim=1))
        return planes.permute(0, 2, 3, 1), targets


def _changes(config: FinetuneConfig) -> Any:
    """uint8 [B, 3, H, W] -> the same; None when nothing was asked for."""
    if not (config.colour_jitter or config.rand_augment or config.erase):
        return None
    from torchvision.transforms import v2

    changes = []
    if config.colour_jitter:
        changes.append(v2.ColorJitter(*(config.colour_jitter,) * 3))
    if config.rand_augment:
        changes.append(v2.RandAugment(config.rand_augment, config.rand_augment_magnitude))
    if config.erase:
        changes.append(v2.RandomErasing(config.erase))
    return v2.Compose(changes)


def _mixes(config: FinetuneConfig, class_count: int) -> Any:
    """Images and classes of a batch -> mixed images and soft targets; None when nothing was asked for."""
    if not (config.mixup or config.cutmix):
        return None
    from torchvision.transforms import v2

    mixes = []
    if config.mixup:
        mixes.append(v2.MixUp(alpha=config.mixup, num_classes=class_count))
    if config.cutmix:
        mixes.append(v2.CutMix(alpha=config.cutmix, num_classes=class_count))
    return v2.RandomChoice(mixes)


def shifted(images: torch.Tensor, share: float) -> torch.Tensor:
    """Each image of [B, H, W, 3] moved by its own draw of up to `share` of its sides, mirrored at the border."""
    batch, height, width, _ = images.shape
    rows = _moved(batch, height, share, images.device)
    columns = _moved(batch, width, share, images.device)
    return images[torch.arange(batch, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _moved(batch: int, side: int, share: float, device: torch.device) -> torch.Tensor:
    """Where each row of the moved image comes from: int (B, side)."""
    most = int(side * share)
    moves = torch.randint(-most, most + 1, (batch, 1), device=device)
    places = (torch.arange(side, device=device) + moves).abs()
    return torch.where(places >= side, 2 * (side - 1) - places, places)


def one_hot(classes: torch.Tensor, class_count: int) -> torch.Tensor:
    return functional.one_hot(classes, class_count).float()
