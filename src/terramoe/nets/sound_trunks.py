"""Bodies for recordings: spectrograms, and two trunks that hear what a source is and where it lies.

Multi-Task Mixture-of-Experts Model for Underwater Target Localization and Recognition, 2025, doi:10.3390/rs17172961.

Shapes: B recordings, F frequencies, T moments, C channels, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.nets.statistics_pooling import AttentiveStatisticsPooling

QUIET = 1e-5  # added to magnitudes before the logarithm
SQUEEZE = 16  # channels over the width between, of the channels' gate


class Spectrogram(nn.Module):
    """Recordings (B, samples) -> (B, F, T), natural logarithm of the magnitudes in windows (Hann's).

    F = n_fft // 2 + 1, T = 1 + samples // hop; beyond its ends a recording is silent, so any length will do.

    Args:
        n_fft, hop: samples of a window, and from one to the next.
    """

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found = torch.stft(
            x, self.n_fft, self.hop, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        return (found.abs() + QUIET).log()


def convolution(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution over time that keeps the length, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
        nn.BatchNorm1d(outputs),
        nn.ReLU(),
    )


class ClassTrunk(nn.Module):
    """Spectrograms (B, F, T) -> (B, D): three convolutions, mean over time, linear map, ReLU."""

    def __init__(self, frequencies: int, width: int, embedding: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            convolution(frequencies, width, 5), convolution(width, 2 * width, 3), convolution(2 * width, 4 * width, 3)
        )
        self.linear = nn.Linear(4 * width, embedding)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.relu(self.linear(self.convolutions(x).mean(2)))


class SqueezedResidual(nn.Module):
    """Series (B, C, T) -> (B, C, T): a residual pair of dilated convolutions between two of width 1, then each channel
    is weighed by what all of them are like on average (Squeeze-and-Excitation Networks, 2018, arXiv 1709.01507).
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.before, self.after = convolution(width, width), convolution(width, width)
        second = convolution(width, width, 3, dilation + 3)[:-1]  # its ReLU follows the sum
        self.pair = nn.Sequential(convolution(width, width, 3, dilation), second)
        narrow = max(1, width // SQUEEZE)
        self.gate = nn.Sequential(
            nn.Linear(width, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, width, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.before(x)
        x = self.after(torch.relu(x + self.pair(x)))
        return x * self.gate(x.mean(2))[..., None]


class PlaceTrunk(nn.Module):
    """Spectrograms (B, F, T) -> a vector (B, D) for each value, by name."""

    def __init__(self, frequencies: int, width: int, bottleneck: int, embedding: int, names: Sequence[str]) -> None:
        super().__init__()
        self.first = convolution(frequencies, width, 5)
        self.second, self.third = SqueezedResidual(width, 2), SqueezedResidual(width, 3)
        self.mix = nn.Conv1d(2 * width, 2 * width, 1)
        self.pool, self.norm = AttentiveStatisticsPooling(2 * width, bottleneck), nn.BatchNorm1d(4 * width)
        self.vectors = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(4 * width, embedding), nn.BatchNorm1d(embedding)) for name in names}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See the class."""
        second = self.second(self.first(x))
        x = torch.relu(self.mix(torch.cat([second, self.third(second)], dim=1)))
        x = self.norm(self.pool(x))
        return {name: vector(x) for name, vector in self.vectors.items()}
