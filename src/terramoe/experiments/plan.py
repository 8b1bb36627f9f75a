"""What is to be run: everything that decides the result, as plain data that goes to ``config.yaml`` and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from terramoe.data import BlockSplit, FieldSplit, RandomSplit, Scene, Split, Splitter
from terramoe.errors import ConfigError
from terramoe.training import TrainSettings


@dataclass(frozen=True)
class SplitSettings:
    """How test pixels are kept apart.

    Attributes:
        kind: "block" (default), "field" or "random" (a control that leaks).
        folds: the scene is cut into this many; seed s tests fold s modulo folds.
        block: side of a block, in pixels.
        guard: width of the band without training, in pixels.
        train_size: share that trains, of a random split.
        seed: of the dealing.
    """

    kind: Literal["block", "field", "random"] = "block"
    folds: int = 3
    block: int = 16
    guard: int = 4
    train_size: float = 0.1
    seed: int = 0

    def splitter(self, kind: str | None = None) -> Splitter:
        """The splitter of this or another kind with these settings."""
        kind = kind or self.kind
        if kind == "block":
            return BlockSplit(self.folds, self.block, self.guard, self.seed)
        if kind == "field":
            return FieldSplit(self.folds, self.guard, self.seed)
        if kind == "random":
            return RandomSplit(self.folds, self.train_size, self.seed)
        raise ConfigError(f"there is no split '{kind}'", where="split", fix="use block, field or random")


@dataclass(frozen=True)
class Plan:
    """One experiment on one scene.

    Attributes:
        system: name in the registry.
        model: settings of the system that differ from the paper's.
        train: how it is trained; ``train.seed`` is the first seed.
        split: how test pixels are kept apart.
        seeds: how many runs.
        twin: also train the dense twin of equal active compute.
        normaliser: "standard" or "minmax", fitted on training pixels.
        lenient: go on although a fold has no training pixel of a class; its test pixels count as errors.
        reduced: what was made smaller than in the paper, for the run's card.
    """

    system: str = "mambamoe"
    model: Mapping[str, Any] = field(default_factory=dict)
    train: TrainSettings = field(default_factory=TrainSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    seeds: int = 1
    twin: bool = False
    normaliser: Literal["standard", "minmax"] = "standard"
    lenient: bool = False
    reduced: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}", where="plan", fix="use at least 1")

    def run_seeds(self) -> range:
        """The seeds of the runs."""
        return range(self.train.seed, self.train.seed + self.seeds)

    def folds(self, scene: Scene) -> dict[int, Split]:
        """The fold that each seed tests."""
        splits = list(self.split.splitter().masks(scene.labels))
        return {seed: splits[seed % len(splits)] for seed in self.run_seeds()}

    def plain(self) -> dict[str, Any]:
        """As plain values for YAML or JSON."""
        return {**asdict(self), "model": dict(self.model), "reduced": list(self.reduced)}


def scene_digest(scene: Scene) -> str:
    """Sixteen hexadecimal digits that change with any pixel or label of the scene."""
    digest = hashlib.sha256()
    for array in (scene.image, scene.valid, scene.labels):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]
