"""A small vision transformer for any number of bands, whose blocks let an adapter stand beside them.

Sources: An Image is Worth 16x16 Words, 2020, arXiv 2010.11929; fixed 2-D sine-cosine positions as in Masked
Autoencoders Are Scalable Vision Learners, 2021, arXiv 2111.06377.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError, DataError

Branch = Callable[[Tensor], Tensor]  # (B, N, D) -> (B, N, D)
Branches = Mapping[int, Branch]  # by number of the block
NO_BRANCH: Branches = {}


class Attention(nn.Module):
    """Multi-head self-attention: x (B, N, D), keys (B, N) bool -> (B, N, D).

    A token whose key is False is seen by nobody. Where a row has no key at all, all of its tokens are seen, so that
    the result is finite.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """x (B, N, D), keys (B, N) bool -> (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads)
        seen = None if keys is None else (keys | ~keys.any(-1, keepdim=True))[:, None, None]
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with GELU between them: (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """Pre-norm block: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``. Each part can be called alone.

    Args:
        dim: width D, a multiple of ``heads``.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ConfigError(f"width {dim} with {heads} heads", where="TransformerBlock", fix="use a multiple")
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def attend(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """x (B, N, D), keys (B, N) bool -> x plus attention, (B, N, D)."""
        return x + self.attn(self.norm1(x), keys)

    def feed_forward(self, x: Tensor, beside: Branch | None = None) -> Tensor:
        """(B, N, D) -> x plus the MLP plus what stands beside it, (B, N, D)."""
        inner = self.norm2(x)
        y = self.mlp(inner)
        return x + (y if beside is None else y + beside(inner))

    def forward(
        self, x: Tensor, beside: Branch | None = None, after: Branch | None = None, *, keys: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D).

        Args:
            x: (B, N, D).
            beside: gets the MLP's input (B, N, D); its result is added to the MLP's output.
            after: gets the block's output; its result takes that place.
            keys: (B, N) bool, the tokens that may be attended to; all by default.
        """
        x = self.feed_forward(self.attend(x, keys), beside)
        return x if after is None else after(x)


class Tokens(NamedTuple):
    """What a ViT makes of an image.

    Attributes:
        x: (B, h * w, D), row by row.
        grid: (h, w).
        valid: (B, h * w) bool; a token is valid where any of its pixels is.
        summary: (B, D), the class token, if there is one.
    """

    x: Tensor
    grid: tuple[int, int]
    valid: Tensor
    summary: Tensor | None = None

    def to_map(self) -> Tensor:
        """-> (B, D, h, w)."""
        return tokens_to_map(self.x, self.grid)


class ViT(nn.Module):
    """Image of any size and number of bands -> tokens, one for each patch.

    Args:
        bands: C.
        dim: width D, a multiple of 4 (positions) and of ``heads``.
        depth: blocks.
        heads: attention heads.
        patch: side of a patch in pixels.
        mlp_ratio: hidden width of the MLPs over D.
        class_token: put a learned token before the patches.

    Raises:
        ConfigError: a width that does not divide; depth or patch below 1.
    """

    def __init__(
        self,
        bands: int,
        dim: int = 64,
        depth: int = 4,
        heads: int = 4,
        patch: int = 4,
        mlp_ratio: float = 4.0,
        *,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        if min(bands, depth, patch) < 1 or dim % 4:
            raise ConfigError(
                f"{bands} bands, width {dim}, depth {depth}, patch {patch}",
                where="ViT",
                fix="use bands, depth and patch >= 1 and a width that is a multiple of 4",
            )
        self.bands, self.dim, self.patch = bands, dim, patch
        self.patch_embed = nn.Conv2d(bands, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(dim) * 0.02) if class_token else None
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def embed(self, image: Tensor, valid: Tensor | None = None) -> Tokens:
        """image (B, C, H, W), valid (B, H, W) bool -> patches before positions and blocks.

        Invalid pixels read as 0, whatever stands there. A last patch that hangs over the edge is filled with invalid
        pixels. DataError where the shapes do not fit.
        """
        image, valid = read_valid(image, valid, self.bands)
        over = [-side % self.patch for side in image.shape[-2:]]
        image = nn.functional.pad(image, (0, over[1], 0, over[0]))
        seen = nn.functional.pad(valid, (0, over[1], 0, over[0]))
        x = self.patch_embed(image)
        seen = seen.unflatten(2, (-1, self.patch)).unflatten(1, (-1, self.patch)).any(4).any(2)
        return Tokens(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]), seen.flatten(1))

    def encode(self, patches: Tokens, beside: Branches = NO_BRANCH, after: Branches = NO_BRANCH) -> Tokens:
        """What ``embed`` made -> positions, blocks and last norm. Invalid tokens are attended to by nobody."""
        unknown = [i for i in {*beside, *after} if i not in range(len(self.blocks))]
        if unknown:
            raise ConfigError(f"no block {unknown[0]}", where="ViT", fix=f"use 0 to {len(self.blocks) - 1}")
        x, keys = patches.x + sincos_positions(self.dim, *patches.grid, like=patches.x), patches.valid
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
            keys = nn.functional.pad(keys, (1, 0), value=True)
        for i, block in enumerate(self.blocks):
            x = block(x, beside.get(i), after.get(i), keys=keys)
        x = self.norm(x)
        if self.class_token is None:
            return patches._replace(x=x)
        return patches._replace(x=x[:, 1:], summary=x[:, 0])

    def forward(
        self, image: Tensor, valid: Tensor | None = None, beside: Branches = NO_BRANCH, after: Branches = NO_BRANCH
    ) -> Tokens:
        """image (B, C, H, W), valid (B, H, W) bool -> Tokens. ``beside``, ``after``: see ``TransformerBlock``."""
        return self.encode(self.embed(image, valid), beside, after)


def read_valid(image: Tensor, valid: Tensor | None, bands: int) -> tuple[Tensor, Tensor]:
    """image (B, C, H, W) with 0 in its invalid pixels, and valid (B, H, W) bool; DataError where shapes do not fit."""
    if image.ndim != 4 or image.shape[1] != bands or min(image.shape[2:]) < 1:
        raise DataError(
            f"an image of shape {tuple(image.shape)}", where=f"a body for {bands} bands", fix="give (B, C, H, W)"
        )
    shape = image.shape[:1] + image.shape[2:]
    if valid is None:
        return image, torch.ones(shape, dtype=torch.bool, device=image.device)
    if valid.shape != shape or valid.dtype != torch.bool:
        raise DataError(
            f"valid is {valid.dtype} {tuple(valid.shape)}", where="valid", fix=f"give bool of shape {tuple(shape)}"
        )
    return image.masked_fill(~valid[:, None], 0), valid


def sincos_positions(dim: int, height: int, width: int, *, like: Tensor, scale: float = 1.0) -> Tensor:
    """(height * width, dim) fixed positions: half of dim for the row, half for the column, each sines then cosines.

    dim divides by 4. ``scale`` is the distance of neighbours, as in Scale-MAE (2022, arXiv 2212.14532).
    """
    halves = []
    for places in (torch.arange(height, device=like.device), torch.arange(width, device=like.device)):
        rate = 10_000.0 ** (-torch.arange(dim // 4, device=like.device) / (dim // 4))
        angle = places[:, None] * scale * rate
        halves.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    rows = halves[0][:, None].expand(-1, width, -1)
    columns = halves[1][None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(like.dtype)


def tokens_to_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, h * w, D) -> map (B, D, h, w); DataError where the number of tokens is another."""
    if x.ndim != 3 or x.shape[1] != grid[0] * grid[1]:
        raise DataError(f"tokens {tuple(x.shape)}", where=f"a grid of {grid[0]} x {grid[1]}", fix="give (B, h * w, D)")
    return x.transpose(1, 2).unflatten(2, grid)
