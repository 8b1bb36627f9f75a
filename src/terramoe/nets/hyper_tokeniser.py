"""An image of any bands as two sets of tokens, spatial and spectral, each gathered by learned queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.moe import WindowGrid
from terramoe.nets.cross_attention import CrossAttention
from terramoe.nets.token_head import cells_with_data
from terramoe.nets.vit import MLP, TransformerBlock, read_valid, sincos_positions
from terramoe.nets.wavelengths import WavelengthEmbedding

COLOURS = (660.0, 560.0, 480.0)  # nanometres: red, green and blue


class HyperTokens(NamedTuple):
    """What ``HyperTokeniser`` makes of B images.

    Attributes:
        spatial: (B, N, D), one for each cell, row by row, with its position. grid: (h, w), N = h w.
        spectral: (B, M, D).
        valid: (B, N) bool; a cell is valid where any of its pixels is.
        low: (B, 4 N, W) low-level features of the four quarters of each cell, by rows. low_valid: (B, 4 N) bool.
    """

    spatial: Tensor
    spectral: Tensor
    grid: tuple[int, int]
    valid: Tensor
    low: Tensor
    low_valid: Tensor


class HyperTokeniser(nn.Module):
    """Spatial queries read a map of features, spectral queries read the bands; a low-rank path keeps what is local.

    Args:
        bands: C. wavelengths: of the bands in nanometres, 0 where one has none; () if they are unknown.
        width: W, of the tokeniser itself, a multiple of 4 and of ``heads``.
        dim: D of the tokens, a multiple of 4.
        heads: of every attention; the largest divisor of ``width`` up to it is used.
        cell: side of a token in pixels, even.
        side: of the grid of spatial queries, which is stretched to the image's.
        spectral: M.
        rank: channels of the local path.

    Raises:
        ConfigError: a count below 1 or a width that does not divide. DataError: in ``forward``, shapes that do not fit.

    Source: the Hyper Tokenizer of SpectralX, 2026 (ISPRS J. 239, 774-792), arXiv 2508.01731. Reconstruction: the tokens
    of bands, and attention over all features in place of windows.
    """

    def __init__(
        self,
        bands: int,
        wavelengths: Sequence[float],
        width: int,
        dim: int,
        heads: int,
        cell: int,
        side: int,
        spectral: int,
        rank: int = 16,
    ) -> None:
        super().__init__()
        if min(bands, width, dim, heads, cell, side, spectral, rank) < 1 or width % 4 or dim % 4 or cell % 2:
            raise ConfigError(
                f"{bands} bands, widths {width} and {dim}, cells of {cell} pixels, {side} and {spectral} queries",
                where="HyperTokeniser",
                fix="use at least 1 of each, widths that are multiples of 4 and an even cell",
            )
        heads = max(h for h in range(1, heads + 1) if width % h == 0)
        self.bands, self.width, self.dim, self.cell = bands, width, dim, cell
        nanometres = torch.tensor(wavelengths or (0.0,) * bands, dtype=torch.float64)
        self.register_buffer("nanometres", nanometres, persistent=False)
        self.stem = nn.Conv2d(bands, width, cell // 2, stride=cell // 2)
        self.spatial_block, self.spectral_block = TransformerBlock(width, heads), TransformerBlock(width, heads)
        self.band = nn.Linear(2, width)
        self.wavelength = WavelengthEmbedding(width)
        self.spatial_queries = nn.Parameter(0.02 * torch.randn(1, width, side, side))
        self.spectral_queries = nn.Parameter(0.02 * torch.randn(spectral, width))
        self.read_spatial, self.read_spectral = CrossAttention(width, heads), CrossAttention(width, heads)
        self.norm, self.mlp = nn.LayerNorm(width), MLP(width, 2 * width)
        self.leave = nn.Linear(width, dim)
        self.local = nn.Sequential(nn.Conv2d(bands, rank, cell, stride=cell), nn.GELU(), nn.Conv2d(rank, dim, 1))
        self.local_scale = nn.Parameter(torch.ones(dim))

    def forward(self, image: Tensor, valid: Tensor | None = None) -> HyperTokens:
        """image (B, C, H, W), valid (B, H, W) bool -> HyperTokens. What stands in an invalid pixel changes nothing."""
        image, valid = read_valid(image, valid, self.bands)
        over = [-side % self.cell for side in image.shape[-2:]]
        padded = nn.functional.pad(image, (0, over[1], 0, over[0]))
        seen = cells_with_data(valid, self.cell)
        grid = (seen.shape[1], seen.shape[2])
        low, low_valid = self._low(padded, valid)
        queries = nn.functional.interpolate(self.spatial_queries, grid, mode="bilinear").flatten(2).mT
        queries = queries + sincos_positions(self.width, *grid, like=queries)
        queries = queries.expand(len(image), -1, -1)
        spatial = queries + self.read_spatial(queries, low, low_valid)
        spectral = self.spectral_queries.repeat(len(image), 1, 1)
        spectral = spectral + self.read_spectral(spectral, self._bands(image, valid))
        x = torch.cat([spatial, spectral], dim=1)
        x = self.leave(x + self.mlp(self.norm(x)))
        spatial, spectral = x.split([queries.shape[1], spectral.shape[1]], dim=1)
        spatial = spatial + self.local_scale * self.local(padded).flatten(2).mT
        spatial = spatial + sincos_positions(self.dim, *grid, like=spatial)
        return HyperTokens(spatial, spectral, grid, seen.flatten(1), low, low_valid)

    def _low(self, padded: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Features of quarter cells (B, 4 N, W) and their validity."""
        x = self.stem(padded)
        height, width = x.shape[-2:]
        seen = cells_with_data(valid, self.cell // 2)
        seen = nn.functional.pad(seen, (0, width - seen.shape[2], 0, height - seen.shape[1])).flatten(1)
        x = x.flatten(2).mT
        return self.spatial_block(x + sincos_positions(self.width, height, width, like=x), keys=seen), seen

    def _bands(self, image: Tensor, valid: Tensor) -> Tensor:
        """One token for each band (B, C, W): mean and spread over the valid pixels, and the wavelength."""
        keep = valid[:, None].to(image.dtype)
        count = keep.sum((2, 3)).clamp_min(1)
        mean = (image * keep).sum((2, 3)) / count
        spread = (((image - mean[..., None, None]) * keep).square().sum((2, 3)) / count + 1e-6).sqrt()
        x = self.band(torch.stack([mean, spread], dim=-1)) + self.wavelength(self.nanometres)
        return self.spectral_block(x)


@dataclass(frozen=True)
class SpatialHalf:
    """Lays the routing of the spatial tokens on the pixels; spectral tokens, which follow in each image, have no place.

    Attributes:
        images, tokens: B, and N of each. cells: the grid of the spatial tokens.
    """

    images: int
    tokens: int
    cells: WindowGrid

    def to_pixels(self, values: Tensor) -> Tensor:
        """(T, ...) -> (B, H, W, ...)."""
        return self.cells.to_pixels(values.unflatten(0, (self.images, -1))[:, : self.tokens].flatten(0, 1))


def merge_halves(x: Tensor, spatial: int) -> Tensor:
    """Tokens (B, N + M, D), N of them spatial -> (B, N, D): each spatial token plus the mean of the spectral ones."""
    return x[:, :spatial] + x[:, spatial:].mean(1, keepdim=True)


def colour_bands(wavelengths: Sequence[float], bands: int) -> list[int]:
    """The bands nearest to red, green and blue; three spread evenly where no wavelength is known."""
    known = {i: w for i, w in enumerate(wavelengths) if w > 0}
    if not known:
        return [round((bands - 1) * share) for share in (1.0, 0.5, 0.0)]
    return [min(known, key=lambda i: abs(known[i] - colour)) for colour in COLOURS]
