"""Pretraining of a ViT without labels: hide patches, predict their pixels.

This is SimMIM (A Simple Framework for Masked Image Modeling, 2021, arXiv 2111.09886): hidden patches enter the encoder
as mask tokens, one linear layer predicts the pixels, the loss is L1. Masked Autoencoders (2021, arXiv 2111.06377) leave
hidden patches out of the encoder and need a second transformer as decoder; that saves compute at scale, not here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.nets.vit import ViT, read_valid


class PixelDecoder(nn.Module):
    """Mask token and linear head that turn a ViT's tokens back into pixels: (B, h * w, D) -> (B, C, h * p, w * p).

    Args:
        vit: whose bands C, width D and patch side p it is for; the ViT itself is not kept.
    """

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.bands, self.patch = vit.bands, vit.patch
        self.mask_token = nn.Parameter(torch.randn(vit.dim) * 0.02)
        self.head = nn.Linear(vit.dim, vit.bands * vit.patch**2)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, h * w, D) -> pixels (B, C, h * p, w * p)."""
        pixels = self.head(x).unflatten(2, (self.bands, self.patch, self.patch)).unflatten(1, grid)
        return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # (B, C, h, p, w, p) -> (B, C, H, W)


def choose_hidden(valid: Tensor, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide ``ratio`` of the valid tokens of each image, at least one: valid (B, N) -> hidden (B, N) bool.

    Noise is torch's global one unless a generator is given.
    """
    device = valid.device if generator is None else generator.device
    noise = torch.rand(valid.shape, generator=generator, device=device).to(valid.device).masked_fill(~valid, 2.0)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    count = (valid.sum(1, keepdim=True) * ratio).round().clamp_min(1)
    return (rank < count) & valid


def masked_reconstruction_loss(
    vit: ViT,
    decoder: PixelDecoder,
    image: Tensor,
    valid: Tensor | None = None,
    ratio: float = 0.6,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean absolute error over the valid pixels of hidden patches.

    Args:
        vit, decoder: what is trained.
        image: (B, C, H, W), standardised.
        valid: (B, H, W) bool; what stands in an invalid pixel counts nowhere.
        ratio: share of each image's valid patches that is hidden, 0 < ratio < 1.
        generator: of the choice; torch's global one by default, so that a seeded step repeats.

    Returns:
        Scalar; 0 where nothing is valid.

    Raises:
        ConfigError: a ratio out of range.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"ratio = {ratio}", where="masked_reconstruction_loss", fix="use 0 < ratio < 1")
    image, valid = read_valid(image, valid, vit.bands)
    patches = vit.embed(image, valid)
    hidden = choose_hidden(patches.valid, ratio, generator)
    shown = torch.where(hidden[..., None], decoder.mask_token.to(patches.x.dtype), patches.x)
    height, width = image.shape[-2:]
    predicted = decoder(vit.encode(patches._replace(x=shown)).x, patches.grid)[..., :height, :width]
    spread = hidden.unflatten(1, patches.grid).repeat_interleave(vit.patch, 1).repeat_interleave(vit.patch, 2)
    counted = (spread[:, :height, :width] & valid)[:, None]
    error = (predicted - image).abs() * counted
    return error.sum() / (counted.sum() * vit.bands).clamp_min(1)
