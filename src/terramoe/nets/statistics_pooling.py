"""Pooling of series over time: attention says which moments count, mean and standard deviation say what they hold.

Attentive Statistics Pooling for Deep Speaker Embedding, 2018, doi:10.21437/Interspeech.2018-993, with weights for each
channel as in ECAPA-TDNN, 2020, arXiv 2005.07143.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError

FLOOR = 1e-9  # of a variance: the root's slope is unbounded at 0


class AttentiveStatisticsPooling(nn.Module):
    """Series (B, C, T) -> (B, 2 C): weighted mean, then weighted standard deviation of each channel.

        a = softmax over time of V tanh(W x + b) + k;   mean = sum_t a x;   variance = sum_t a (x - mean)^2

    With equal weights it is the mean and the standard deviation (divided by T). A series of one moment has deviation
    ``FLOOR`` ** 0.5.

    Args:
        channels: C.
        bottleneck: width between W and V.

    Raises:
        ConfigError: a width below 1.
    """

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        if min(channels, bottleneck) < 1:
            raise ConfigError(
                f"{channels} channels, bottleneck {bottleneck}",
                where="AttentiveStatisticsPooling",
                fix="use at least 1 of each",
            )
        self.down = nn.Conv1d(channels, bottleneck, 1)
        self.up = nn.Conv1d(bottleneck, channels, 1)

    def attention(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T), for each channel a distribution over time."""
        return torch.softmax(self.up(torch.tanh(self.down(x))), dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, 2 C)."""
        weight = self.attention(x)
        mean = (weight * x).sum(2)
        variance = (weight * (x - mean[..., None]).square()).sum(2)  # the difference of squares would cancel
        return torch.cat([mean, variance.clamp_min(FLOOR).sqrt()], dim=1)
