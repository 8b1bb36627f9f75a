"""Crops of one scene, drawn so that batch number n of a seed is always the same batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from terramoe.errors import DataError, SplitError
from terramoe.tasks import IGNORE


def batch_seed(*numbers: int) -> int:
    """One 64-bit seed from several whole numbers; close numbers give unrelated seeds."""
    low, high = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return (int(high) << 32 | int(low)) >> 1  # below 2**63, as torch wants it


@dataclass(frozen=True)
class SceneCrops:
    """Training crops of a scene.

    Attributes:
        image: (bands, H, W) float32, normalised.
        valid: (H, W) bool: pixels that the network may see. Test pixels are False here, so that training never
            reads them, not even as neighbours.
        labels: (H, W) int64, -1 where a pixel does not train.
        size: side of a crop. batch: crops in a batch. seed, balanced, flips: see ``TrainSettings``.
    """

    image: Tensor
    valid: Tensor
    labels: Tensor
    size: int
    batch: int
    seed: int
    balanced: bool = True
    flips: bool = True

    def __post_init__(self) -> None:
        height, width = self.labels.shape
        if min(height, width) < self.size:
            raise DataError(
                f"the scene has {height} x {width} pixels, a crop {self.size} x {self.size}",
                where="training crops",
                fix=f"use --train.crop {min(height, width)} or less",
            )
        if not bool((self.labels != IGNORE).any()):
            raise SplitError("no pixel is left to train on", where="training crops", fix="use a smaller guard or block")

    def draw(self, epoch: int, step: int, rank: int = 0) -> dict[str, Tensor]:
        """The batch of this epoch, step and process: ``image`` (B, bands, S, S), ``valid`` and ``mask`` (B, S, S)."""
        generator = np.random.default_rng(batch_seed(self.seed, epoch, step, rank))
        crops = [self._crop(generator) for _ in range(self.batch)]
        return {key: torch.stack([crop[key] for crop in crops]) for key in crops[0]}

    def _crop(self, generator: np.random.Generator) -> dict[str, Tensor]:
        row, column = self._anchor(generator)
        top = _start(row, self.size, self.labels.shape[0], generator)
        left = _start(column, self.size, self.labels.shape[1], generator)
        window = (..., slice(top, top + self.size), slice(left, left + self.size))
        crop = {"image": self.image[window], "valid": self.valid[window], "mask": self.labels[window]}
        axes = [axis for axis in (-1, -2) if self.flips and generator.random() < 0.5]
        return {key: value.flip(axes) for key, value in crop.items()}

    def _anchor(self, generator: np.random.Generator) -> tuple[int, int]:
        """A labelled pixel that the crop shall contain."""
        labelled = self.labels != IGNORE
        if self.balanced:
            classes = torch.unique(self.labels[labelled])
            labelled = self.labels == classes[generator.integers(len(classes))]
        positions = labelled.nonzero()
        row, column = positions[generator.integers(len(positions))].tolist()
        return row, column


def _start(pixel: int, size: int, length: int, generator: np.random.Generator) -> int:
    """First row (or column) of a crop that contains the pixel and lies inside the scene."""
    low, high = max(0, pixel - size + 1), min(pixel, length - size)
    return int(generator.integers(low, high + 1))
