"""Patches of one scene, drawn so that batch number n of a seed is always the same batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from terramoe.errors import SplitError
from terramoe.nets.missing import modality_dropout
from terramoe.tasks import IGNORE
from terramoe.training.crops import batch_seed


@dataclass(frozen=True)
class ScenePatches:
    """Training patches of a scene, each around one training pixel, for systems that see patches.

    Attributes:
        image, valid, labels, batch, seed, balanced, flips: see ``SceneCrops``.
        size: side of a patch.
        unlabelled: patches more in each batch, around pixels with data that do not train, for semi-supervised losses.
        pool: (H, W) bool, the pixels that those may be around, or None for all.
        sensors: number of sensors, 0 where they are not told apart.
        available: (sensors, H, W) bool, which sensors a pixel has, or None for all.
        missing_rate: share of the patches that lose some of their sensors, for the training only.
        domains: (H, W) int64, or None; see ``Scene``.
    """

    image: Tensor
    valid: Tensor
    labels: Tensor
    size: int
    batch: int
    seed: int
    balanced: bool = True
    flips: bool = True
    unlabelled: int = 0
    pool: Tensor | None = None
    sensors: int = 0
    available: Tensor | None = None
    missing_rate: float = 0.0
    domains: Tensor | None = None
    _pools: tuple[Tensor, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flat = self.labels.flatten()
        trains = flat != IGNORE
        if not bool(trains.any()):
            raise SplitError("no pixel is left to train on", where="training patches", fix="use a smaller guard")
        classes = flat[trains].unique().tolist() if self.balanced else []
        pools = [(flat == number).nonzero().squeeze(1) for number in classes] or [trains.nonzero().squeeze(1)]
        rest = self.valid.flatten() & ~trains
        rest = (rest if self.pool is None else rest & self.pool.flatten()).nonzero().squeeze(1)
        object.__setattr__(self, "_pools", (*pools, rest))

    def draw(self, epoch: int, step: int, rank: int = 0) -> dict[str, Tensor]:
        """The batch of this epoch, step and process, N = batch + unlabelled.

        ``image`` (N, bands, p, p); ``valid``, ``wanted`` and ``mask`` (N, p, p), the last two about the patch's own
        pixel only; ``available`` (N, sensors, p, p) where sensors are told apart; ``domain`` (N, p, p) where there are
        domains, counted from 0.
        """
        numbers = (self.seed, epoch, step, rank)
        generator = np.random.default_rng(batch_seed(*numbers))
        pixel = torch.cat([self._labelled(generator), self._unlabelled(generator)])
        rows, columns = self._window(pixel, generator)
        reach = self.size // 2
        centre = torch.zeros(len(pixel), self.size, self.size, dtype=torch.bool)
        centre[:, reach, reach] = True
        batch = {
            "image": _look(self.image, rows, columns, 0.0).transpose(0, 1),
            "valid": _look(self.valid, rows, columns, False),
            "wanted": centre,
            "mask": torch.where(centre, self.labels.flatten()[pixel][:, None, None], IGNORE),
        }
        if self.sensors:
            batch["available"] = self._presence(pixel, batch_seed(*numbers, 2))[..., None, None].expand(
                -1, -1, self.size, self.size
            )
        if self.domains is not None:
            batch["domain"] = (self.domains.flatten()[pixel] - 1)[:, None, None].expand_as(centre)
        return batch

    def _labelled(self, generator: np.random.Generator) -> Tensor:
        pools = self._pools[:-1]
        chosen = [pools[i] for i in generator.integers(len(pools), size=self.batch)]
        return torch.stack([pool[generator.integers(len(pool))] for pool in chosen])

    def _unlabelled(self, generator: np.random.Generator) -> Tensor:
        rest = self._pools[-1]
        count = self.unlabelled if len(rest) else 0
        return rest[torch.from_numpy(generator.integers(max(len(rest), 1), size=count))]

    def _window(self, pixel: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Rows and columns (N, p) of the patches, some of them counted backwards: a mirrored patch."""
        width = self.labels.shape[1]
        steps = torch.arange(self.size) - self.size // 2
        turn = 1 - 2 * torch.from_numpy(generator.integers(0, 2 if self.flips else 1, size=(2, len(pixel), 1)))
        return (pixel // width)[:, None] + turn[0] * steps, (pixel % width)[:, None] + turn[1] * steps

    def _presence(self, pixel: Tensor, seed: int) -> Tensor:
        """(N, sensors) bool."""
        present = torch.ones(len(pixel), self.sensors, dtype=torch.bool)
        if self.available is not None:
            present = self.available.flatten(1).T[pixel]
        if not self.missing_rate:
            return present
        generator = torch.Generator().manual_seed(seed)
        kept = present & modality_dropout((len(pixel),), self.sensors, self.missing_rate, generator)
        return torch.where(kept.any(1, keepdim=True), kept, present)


def _look(values: Tensor, rows: Tensor, columns: Tensor, outside: float | bool) -> Tensor:
    """(..., H, W) at rows and columns (N, p) -> (..., N, p, p)."""
    height, width = values.shape[-2:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    found = values[..., rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return torch.where(inside, found, outside)
