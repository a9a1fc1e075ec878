"""The baseline: a small network trained from scratch on images of 28 to 64 pixels."""

import torch
from torch import nn

WIDTHS = (32, 64, 128, 256)


class BaseCnn(nn.Module):
    """Four blocks of convolution, batch norm and ReLU, halving the resolution between them, then average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _block(before, after, pool=place > 0)
            for place, (before, after) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised [N, 3, H, W] -> (N, 256)"""
        for block in self.blocks:
            pixels = block(pixels)
        return pixels.mean(dim=(2, 3))


def _block(before: int, after: int, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    # Batch norm has a bias of its own.
    layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
