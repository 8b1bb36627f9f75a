"""Between tokens and pixels: a light head that gives each token's pixels their values, and which tokens have data."""

from __future__ import annotations

from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.nets.vit import tokens_to_map


class TokenHead(nn.Module):
    """Layer norm, one linear layer, and each token's p x p pixels laid in their place.

    Args:
        dim: width D of a token (of several layers side by side, their sum).
        channels: K, such as the classes of logits or the bands of a reconstruction.
        cell: side p of a token in pixels.

    Raises:
        ConfigError: a count below 1.

    Source: the linear decoder of Segmenter: Transformer for Semantic Segmentation, 2021, arXiv 2105.05633, which
    enlarges by interpolation; here the linear layer gives every pixel.
    """

    def __init__(self, dim: int, channels: int, cell: int) -> None:
        super().__init__()
        if min(dim, channels, cell) < 1:
            raise ConfigError(
                f"width {dim}, {channels} channels, {cell} pixels", where="TokenHead", fix="use at least 1 of each"
            )
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, channels * cell**2)
        self.place = nn.PixelShuffle(cell)

    def forward(self, x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Tokens (B, h * w, D) of an image of ``size`` (H, W) <= (h p, w p) -> (B, K, H, W)."""
        pixels = self.place(tokens_to_map(self.linear(self.norm(x)), grid))
        return pixels[..., : size[0], : size[1]]


def cells_with_data(valid: Tensor, side: int) -> Tensor:
    """Valid pixels (B, H, W) bool -> cells (B, ceil(H / side), ceil(W / side)) bool that hold one."""
    return nn.functional.max_pool2d(valid[:, None].float(), side, ceil_mode=True)[:, 0] > 0


def pixels_of_cells(values: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Values of cells (B, h, w) -> of all their pixels within an image of ``size``, (B, H, W)."""
    return values.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : size[0], : size[1]]
