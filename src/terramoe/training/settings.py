"""How a system is trained on a scene."""

from __future__ import annotations

from dataclasses import dataclass

from terramoe.errors import ConfigError


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training.

    Attributes:
        steps: optimiser steps in all.
        steps_per_epoch: steps between two lines of the history (a crop has no natural epoch).
        batch: crops a step, or patches.
        crop: side of a crop, in pixels, and of a window in prediction. A system of patches has its own size of them.
        unlabelled: patches more a step, around pixels that do not train, for semi-supervised systems of patches.
        missing_rate: share of the patches that lose some of their sensors, for multi-sensor systems.
        pretrain_steps: steps before the others that train the body of a system which then freezes it.
        learning_rate: of Adam, at the first step; it falls as (1 - step / steps) ** power.
        power: exponent of that polynomial.
        clip: largest gradient norm.
        seed: decides initial weights, data order and noise.
        balanced: draw crops around a class first, then a pixel of it; otherwise around any training pixel.
        flips: mirror crops at random.
        save_every: steps between two state files.
        accelerator: "cpu", "cuda" or another that Lightning Fabric knows.
        precision: as Lightning Fabric names it, such as "32-true" or "bf16-mixed".
    """

    steps: int = 200
    steps_per_epoch: int = 20
    batch: int = 4
    crop: int = 64
    unlabelled: int = 0
    missing_rate: float = 0.0
    pretrain_steps: int = 0
    learning_rate: float = 1e-3
    power: float = 0.9
    clip: float = 10.0
    seed: int = 0
    balanced: bool = True
    flips: bool = True
    save_every: int = 20
    accelerator: str = "cpu"
    precision: str = "32-true"

    @property
    def all_steps(self) -> int:
        """Steps of both phases."""
        return self.pretrain_steps + self.steps

    def __post_init__(self) -> None:
        for name in ("steps", "steps_per_epoch", "batch", "crop", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="training", fix="use at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="training", fix="use a number above 0")
        for name in ("unlabelled", "pretrain_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="training", fix="use 0 or more")
        if not 0 <= self.missing_rate <= 1:
            raise ConfigError(f"missing_rate is {self.missing_rate}", where="training", fix="use a share in 0..1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}", where="training", fix="use 0 or a positive whole number")
