"""A small 3-D U-Net for anisotropic volumes."""

from __future__ import annotations

import torch
from torch import nn


class DemoUNet(nn.Module):
    """U-Net with three levels that pools within the section only.

    Input is (B, 1, Z, Y, X) float32, output (B, 1, Z, Y, X) float32 logits. Any batch size and any
    Z work; Y and X must be divisible by 4.

    Parameters
    ----------
    widths : tuple of int
        Channels of the three levels, full resolution first.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 16, 32)) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.encode_fine = _block(1, fine, depth=3)
        self.encode_middle = _block(fine, middle, depth=3)
        self.bottom = _block(middle, coarse, depth=3)
        self.widen_middle = nn.Conv3d(coarse, middle, 1)
        self.decode_middle = _block(middle, middle, depth=1)
        self.widen_fine = nn.Conv3d(middle, fine, 1)
        self.decode_fine = _block(fine, fine, depth=1)
        self.head = nn.Conv3d(fine, 1, 1)
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.enlarge = nn.Upsample(scale_factor=(1.0, 2.0, 2.0), mode="nearest")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1, Z, Y, X) of an image (B, 1, Z, Y, X) scaled to 0..1."""
        fine = self.encode_fine(image)
        middle = self.encode_middle(self.pool(fine))
        coarse = self.bottom(self.pool(middle))
        # Skips are added, not concatenated: half the weights of the decoder's first convolutions.
        middle = self.decode_middle(middle + self.enlarge(self.widen_middle(coarse)))
        fine = self.decode_fine(fine + self.enlarge(self.widen_fine(middle)))
        logits: torch.Tensor = self.head(fine)
        return logits


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """One convolution within the section, then one across `depth` (1 or 3) sections."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv3d(outputs, outputs, (depth, 3, 3), padding=(depth // 2, 1, 1), bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )
