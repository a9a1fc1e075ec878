"""From a source's pixels to an embedding, in one module: what is exported is what is trained."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class EmbeddingNet(nn.Module):
    """uint8 [N, H, W, 3] -> float32 (N, D): upscaling, normalisation, backbone, optional flip averaging."""

    def __init__(
        self,
        backbone: nn.Module,
        height: int,
        width: int,
        network_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        flip: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._resizes = (height, width) != (network_size, network_size)
        self._flip = flip
        # A bicubic resize is linear in the pixels of a row and of a column: two small matrix products give the same
        # numbers as the Resize operator, and onnxruntime runs EfficientNet-Lite0 at 96 px 4.7 times faster with them.
        self.register_buffer("_rows", _resize_matrix(height, network_size), persistent=False)
        self.register_buffer("_columns", _resize_matrix(width, network_size).T.contiguous(), persistent=False)
        self.register_buffer("_mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._rows: torch.Tensor
        self._columns: torch.Tensor
        self._mean: torch.Tensor
        self._std: torch.Tensor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = image.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
        if self._resizes:
            pixels = self._rows @ (pixels @ self._columns)  # (N, 3, S, S)
        pixels = (pixels - self._mean) / self._std
        embedding: torch.Tensor = self.backbone(pixels)
        if self._flip:
            embedding = (embedding + self.backbone(pixels.flip(-1))) / 2
        return embedding


class SideBySide(EmbeddingNet):
    """The embeddings of several networks, one behind the other: uint8 [N, H, W, 3] -> float32 (N, D1 + D2 + ...)"""

    def __init__(self, nets: Sequence[EmbeddingNet]) -> None:
        nn.Module.__init__(self)  # each of the nets prepares the pixels for itself
        self.nets = nn.ModuleList(nets)

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """What the weights of the whole are known by."""
        return self.nets

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([net(image) for net in self.nets], dim=1)


def _resize_matrix(before: int, after: int) -> torch.Tensor:
    """What torch's bicubic interpolation does along one axis (antialiased when it shrinks): (after, before)."""
    identity = torch.eye(before)[None, None]
    resized = functional.interpolate(
        identity, size=(after, before), mode="bicubic", align_corners=False, antialias=after < before
    )
    return resized[0, 0]
