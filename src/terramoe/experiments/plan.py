"""What is to be run: everything that decides the result, as plain data that goes to ``config.yaml`` and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from terramoe.data import (
    BlockSplit,
    FieldSplit,
    GroupSplit,
    KNNDMSplit,
    OfficialSplit,
    RandomSplit,
    Scene,
    Split,
    Splitter,
    open_raster,
    read_labels,
)
from terramoe.errors import ConfigError
from terramoe.training import TrainSettings


@dataclass(frozen=True)
class SplitSettings:
    """How test pixels are kept apart.

    Attributes:
        kind: "block" (default), "field", "random" (a control that leaks), "knndm" (distances as in deployment),
            "group" (leave a region, season or sensor out) or "official" (one fold, as a benchmark prescribes).
        folds: the scene is cut into this many; seed s tests fold s modulo folds. Each group is a fold.
        block: side of a block, in pixels.
        guard: width of the band without training, in pixels, of block, field and group; kNNDM matches distances
            instead, and keeps no band.
        train_size: share that trains, of a random split.
        seed: of the dealing.
        groups: raster of the groups, numbered from 1, of a group split.
        official: raster with 1 train, 2 guard, 3 test, of an official split.
    """

    kind: Literal["block", "field", "random", "knndm", "group", "official"] = "block"
    folds: int = 3
    block: int = 16
    guard: int = 4
    train_size: float = 0.1
    seed: int = 0
    groups: str | None = None
    official: str | None = None

    def splitter(
        self,
        kind: str | None = None,
        area: np.ndarray | None = None,
        *,
        groups: np.ndarray | None = None,
        official: np.ndarray | None = None,
        places: np.ndarray | None = None,
    ) -> Splitter:
        """The splitter of this or another kind with these settings.

        Args:
            area: (H, W) bool, the deployment area of kNNDM; None for the whole raster.
            groups, official, places: (H, W) int64, what the scene brings itself; a raster that the settings name comes
                first.

        Raises:
            ConfigError: no such kind, or its raster is not named. DataError: the raster cannot be read.
        """
        kind = kind or self.kind
        if kind == "block":
            return BlockSplit(self.folds, self.block, self.guard, self.seed)
        if kind == "field":
            return FieldSplit(self.folds, self.guard, self.seed)
        if kind == "random":
            return RandomSplit(self.folds, self.train_size, self.seed)
        if kind == "knndm":
            return KNNDMSplit(self.folds, area, seed=self.seed)
        if kind == "group":
            groups = _read(self.groups, "groups") if groups is None or self.groups else groups
            return GroupSplit(groups, guard=self.guard, seed=self.seed)
        if kind == "official":
            official = _read(self.official, "official") if official is None or self.official else official
            return OfficialSplit(official, places)
        raise ConfigError(
            f"there is no split '{kind}'", where="split", fix="use block, field, random, knndm, group or official"
        )

    def for_scene(self, scene: Scene, kind: str | None = None) -> Splitter:
        """The splitter of this or another kind for a scene, with the domains and the official split that it brings."""
        return self.splitter(kind, scene.valid, groups=scene.domains, official=scene.official, places=scene.places)


def _read(path: str | None, name: str) -> np.ndarray:
    """(H, W) int64 of the raster that a split needs."""
    if path is None:
        raise ConfigError(f"no raster is named for this split: {name}", where="split", fix=f"add --split.{name} FILE")
    with open_raster(path) as raster:
        size = {"height": raster.height, "width": raster.width}
    return read_labels(path, **size)


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
        splits = list(self.split.for_scene(scene).masks(scene.labels))
        return {seed: splits[seed % len(splits)] for seed in self.run_seeds()}

    def plain(self) -> dict[str, Any]:
        """As plain values for YAML or JSON."""
        return {**asdict(self), "model": dict(self.model), "reduced": list(self.reduced)}


def labels_digest(scene: Scene) -> str:
    """Sixteen hexadecimal digits of where what is labelled: the same for one ground seen by other sensors."""
    return hashlib.sha256(np.ascontiguousarray(scene.labels)).hexdigest()[:16]


def scene_digest(scene: Scene) -> str:
    """Sixteen hexadecimal digits that change with any pixel or label of the scene."""
    digest = hashlib.sha256()
    for array in (scene.image, scene.valid, scene.labels, scene.available, scene.domains, scene.official):
        if array is not None:
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]
