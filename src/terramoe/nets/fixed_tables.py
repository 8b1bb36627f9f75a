"""The tables of sines and cosines that Presto and Galileo keep among their weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def month_table(width: int) -> Tensor:
    """(12, width): the sine of the month's angle in the first half of a row, its cosine in the second; 0 is January."""
    angle = torch.arange(12) * (2 * math.pi / 12)
    return torch.stack([angle.sin(), angle.cos()], dim=1).repeat_interleave(width // 2, dim=1)


def step_table(steps: int, width: int, base: float, *, interleaved: bool) -> Tensor:
    """(steps, width): sines and cosines of step * base^(-2 i / width), alternating or in two halves.

    Source: Attention Is All You Need, 2017, arXiv 1706.03762, with base 10,000.
    """
    angle = torch.arange(steps)[:, None] * base ** (-torch.arange(0, width, 2) / width)
    both = [angle.sin(), angle.cos()]
    return torch.stack(both, dim=-1).flatten(1) if interleaved else torch.cat(both, dim=1)
