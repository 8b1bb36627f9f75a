"""What is to be run on a table: everything that decides the result, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from terramoe._version import __version__
from terramoe.errors import ConfigError
from terramoe.evaluation.row_scores import ROPE
from terramoe.experiments.row_split import RowSplitSettings
from terramoe.systems import CONTROLS
from terramoe.systems.table_registry import build_table_system
from terramoe.systems.table_system import TableSystem


@dataclass(frozen=True)
class RowPlan:
    """Everything that decides a run on a table.

    Attributes:
        system: name in the registry of table systems. model: settings of the system.
        split: how test rows are kept apart.
        seeds: trainings; seed s tests fold s modulo folds.
        seed: the first of them.
        controls: names of ``systems.CONTROLS`` to train beside; None takes all that the system has.
        rope: percent of the error (points of accuracy for classes) that make no practical difference.
    """

    system: str
    model: Mapping[str, Any] = field(default_factory=dict)
    split: RowSplitSettings = field(default_factory=RowSplitSettings)
    seeds: int = 3
    seed: int = 0
    controls: tuple[str, ...] | None = ("dense",)
    rope: float = ROPE

    def build(self, seed: int) -> TableSystem:
        """An unfitted system with a seed of its own. ConfigError for an unknown system or setting."""
        if "random_state" in self.model:
            raise ConfigError("random_state is set by the plan", where="system config", fix="use --seed")
        return build_table_system(self.system, {**self.model, "random_state": seed})

    def control_names(self) -> tuple[str, ...]:
        """The controls to train. ConfigError for one that there is not."""
        own = self.build(self.seed).controls
        names = own if self.controls is None else self.controls
        unknown = [name for name in names if name not in CONTROLS]
        if unknown:
            raise ConfigError(f"there is no control '{unknown[0]}'", where="controls", fix=f"use {', '.join(CONTROLS)}")
        return tuple(name for name in names if name in own)

    def check(self) -> None:
        """ConfigError for a plan that cannot be."""
        if self.seeds < 1:
            raise ConfigError(f"{self.seeds} seeds", where="plan", fix="use 1 or more")
        self.control_names()

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return json.loads(json.dumps(asdict(self)))

    def digest(self, table: str) -> str:
        """SHA-256 of what decides one training, given the table's digest."""
        facts = {"system": self.system, "model": dict(self.model), "split": asdict(self.split), "table": table}
        facts["version"] = __version__
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()
