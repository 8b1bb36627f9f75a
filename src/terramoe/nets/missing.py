"""Missing sensors: which of them a sample has as a pattern, its embedding, and dropping sensors in training.

Patterns are numbers: bit s is set where sensor s is there. With S sensors 0 is "none" and 2^S - 1 "all".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError, DataError

_MOST_SENSORS = 12  # 4095 patterns


def presence_pattern(available: Tensor) -> Tensor:
    """available (..., S) bool -> (...,) int64 in 0 .. 2^S - 1; a key for routers and statistics."""
    return (available.long() << torch.arange(available.shape[-1], device=available.device)).sum(-1)


def presence_code(available: Tensor) -> Tensor:
    """One-hot code of the pattern: available (..., S) bool -> (..., 2^S - 1) float; all 0 where no sensor is there."""
    size = 1 << _checked_sensors(available.shape[-1], "presence_code")
    return nn.functional.one_hot(presence_pattern(available), size)[..., 1:].to(torch.get_default_dtype())


class MissingEmbedding(nn.Module):
    """Pattern of available sensors -> vector: a linear map of the one-hot code.

    Args:
        sensors: S.
        dim: width D.

    Raises:
        ConfigError: S outside 1 .. 12, a width below 1.
        DataError: another number of sensors.

    Source: MaMOL, 2025, arXiv 2511.11460.
    """

    def __init__(self, sensors: int, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ConfigError(f"width {dim}", where="MissingEmbedding", fix="use at least 1")
        self.sensors = _checked_sensors(sensors, "MissingEmbedding")
        self.linear = nn.Linear((1 << sensors) - 1, dim)

    def forward(self, available: Tensor) -> Tensor:
        """available (..., S) bool -> (..., D)."""
        if available.shape[-1] != self.sensors:
            raise DataError(
                f"{available.shape[-1]} sensors, expected {self.sensors}",
                where="MissingEmbedding",
                fix="build the embedding with the number of sensors of the data",
            )
        return self.linear(presence_code(available).to(self.linear.weight.dtype))


def modality_dropout(
    shape: int | Sequence[int], sensors: int, rate: float, generator: torch.Generator | None = None
) -> Tensor:
    """Sensors to keep in training: (*shape, S) bool, True where the sensor stays.

    With probability ``rate`` a sample loses some of its sensors, never all: every non-empty proper subset is equally
    likely. A single sensor is never lost. On samples that lack sensors already, ``available & kept`` may be empty:
    keep ``available`` there. Drawn on the generator's device. ConfigError: a rate outside 0 .. 1, S outside 1 .. 12.
    """
    full = (1 << _checked_sensors(sensors, "modality_dropout")) - 1
    if not 0 <= rate <= 1:
        raise ConfigError(f"rate {rate}", where="modality_dropout", fix="use a probability from 0 to 1")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    device = "cpu" if generator is None else generator.device
    lost = torch.rand(shape, generator=generator, device=device) < rate
    pattern = torch.full(shape, full, device=device)
    if sensors > 1:
        pattern = torch.where(lost, torch.randint(1, full, shape, generator=generator, device=device), pattern)
    return (pattern[..., None] >> torch.arange(sensors, device=device) & 1).bool()


def _checked_sensors(sensors: int, where: str) -> int:
    if not 1 <= sensors <= _MOST_SENSORS:
        raise ConfigError(f"{sensors} sensors", where=where, fix=f"use 1 to {_MOST_SENSORS}")
    return sensors
