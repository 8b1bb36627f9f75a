"""Pixel classification: every pixel gets one of K classes; some pixels have no label."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IGNORE = -1  # the label of a pixel that does not count


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over labelled pixels; 0, with a gradient path, where none is labelled.

    logits (B, K, H, W), labels (B, H, W) int64 in -1..K-1 -> scalar.
    """
    total = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp_min(1)


def masked_labels(labels: Tensor, keep: Tensor) -> Tensor:
    """Labels where ``keep`` is True, IGNORE elsewhere; both (B, H, W)."""
    return torch.where(keep, labels, IGNORE)
