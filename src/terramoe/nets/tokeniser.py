"""A map summarised by a few tokens, each a learned weighted mean of its pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError


class LearnedTokeniser(nn.Module):
    """``A = softmax over pixels of x W_a``, ``tokens = A^T (x W_v)``; invalid pixels have weight 0.

    Args:
        dim: channels C of the map.
        tokens: tokens per map.
        dim_out: channels of a token.

    Raises:
        ConfigError: a count below 1.

    Sources: Visual Transformers: Token-based Image Representation and Processing for Computer Vision, 2020, arXiv
    2006.03677; used for patches in Multimodal Fusion Transformer for Remote Sensing Image Classification, 2023, arXiv
    2203.16952.
    """

    def __init__(self, dim: int, tokens: int, dim_out: int) -> None:
        super().__init__()
        if min(dim, tokens, dim_out) < 1:
            raise ConfigError(
                f"{tokens} tokens from {dim} to {dim_out} channels",
                where="LearnedTokeniser",
                fix="use at least 1 of each",
            )
        self.attend = nn.Linear(dim, tokens, bias=False)  # an offset would cancel in the softmax
        self.value = nn.Linear(dim, dim_out, bias=False)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), valid (B, H, W) bool or None -> (B, tokens, dim_out); 0 for a map without valid pixels."""
        pixels = x.flatten(2).mT  # (B, H * W, C)
        if valid is None:
            return self.attend(pixels).softmax(1).mT @ self.value(pixels)
        keep = valid.flatten(1)[..., None]
        pixels = torch.where(keep, pixels, 0)
        # The softmax of a map without any valid pixel would be NaN: give its pixels equal weight, their values are 0.
        scores = self.attend(pixels).masked_fill(~keep & keep.any(1, keepdim=True), -torch.inf)
        return scores.softmax(1).mT @ self.value(pixels)
