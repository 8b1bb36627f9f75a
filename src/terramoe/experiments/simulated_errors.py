"""Errors of systems that were never trained: only where the truth is planted can a test be tested.

A pixel is right where a sum of random maps is above 0. One map is common to all systems (hard places are hard for
all), one belongs to the system (what it is good at, whatever the seed), one to the single training, and a number to
the single training as well (a lucky or unlucky one). All maps are smooth, so that the errors of neighbours are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, stats


@dataclass(frozen=True)
class ErrorWorld:
    """What is simulated. The spreads are relative to the common map; as they stand they give differences between
    systems with a standard deviation of 3 points over blocks, 6 over single cells and 1 over seeds.

    Two small networks on Indian Pines differed by 0, 10 and 0 (same network, other weights), and by 11, 6 and 0
    points (network against forest), on 63 blocks of 16 x 16 pixels with five seeds.

    Attributes:
        blocks: along each side of the square. block: side of a block in pixels.
        seeds: trainings of each system. folds: seed s tests fold s modulo folds; 1 lets every seed test all blocks.
        reach: standard deviation of the smoothing, in pixels; likeness ends at about four times that.
        accuracy: of a system without an effect.
        common, own, training, luck: standard deviations of the parts.
    """

    blocks: int = 12
    block: int = 16
    seeds: int = 8
    folds: int = 1
    reach: float = 2.0
    accuracy: float = 0.7
    common: float = 1.0
    own: float = 0.15
    training: float = 0.25
    luck: float = 0.02


@dataclass(frozen=True)
class Errors:
    """Confusion counts as ``compare`` takes them.

    Attributes:
        counts: (rows, 2, 2) for each system. seed_of_row, block_of_row: (rows,).
    """

    counts: list[np.ndarray]
    seed_of_row: np.ndarray
    block_of_row: np.ndarray


def simulate_errors(world: ErrorWorld, effects: list[float], generator: np.random.Generator) -> Errors:
    """Errors of one system for each effect: how many points better it is than ``accuracy``, in the long run."""
    numbers = np.arange(world.blocks**2)
    blocks = [numbers[numbers % world.folds == seed % world.folds] for seed in range(world.seeds)]
    hard = world.common * _field(world, generator)
    spread = np.sqrt(world.common**2 + world.own**2 + world.training**2 + world.luck**2)
    counts = []
    for effect in effects:
        level = spread * stats.norm.ppf(world.accuracy + effect / 100)
        own = level + hard + world.own * _field(world, generator)
        rows = []
        for tested in blocks:
            score = own + world.training * _field(world, generator) + world.luck * generator.standard_normal()
            rows.append(_right_per_block(score > 0, world)[tested])
        counts.append(_confusions(np.concatenate(rows), world.block**2))
    return Errors(counts, np.repeat(np.arange(world.seeds), [len(b) for b in blocks]), np.concatenate(blocks))


def _field(world: ErrorWorld, generator: np.random.Generator) -> np.ndarray:
    """A smooth map of expected mean 0 and variance 1. Its own mean is kept: it is what makes blocks a sample."""
    side = world.blocks * world.block
    noise = generator.standard_normal((side, side), dtype=np.float32)
    return ndimage.gaussian_filter(noise, world.reach, mode="wrap") * (2 * np.sqrt(np.pi) * world.reach)


def _right_per_block(right: np.ndarray, world: ErrorWorld) -> np.ndarray:
    return right.reshape(world.blocks, world.block, world.blocks, world.block).sum((1, 3)).ravel()


def _confusions(right: np.ndarray, pixels: int) -> np.ndarray:
    counts = np.zeros((len(right), 2, 2), dtype=np.int64)
    counts[:, 0, 0], counts[:, 0, 1] = right, pixels - right
    return counts
