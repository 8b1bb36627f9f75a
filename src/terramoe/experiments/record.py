"""What is kept of one trained model: enough to compare it with any other on the same fold, in one small JSON file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from terramoe.errors import ModelFileError
from terramoe.evaluation import Cost, average_accuracy, kappa, overall_accuracy, reliability
from terramoe.experiments.assess import Assessment
from terramoe.moe import LayerStatistics
from terramoe.storage import write_json


@dataclass(frozen=True)
class RunRecord:
    """One trained model on one fold.

    Attributes:
        system: name in the registry. variant: "routed", a control, or another name for what was changed.
        seed, fold, split: which run; split is the name of its kind.
        train_pixels, test_pixels: how many.
        counts: (blocks, K, K) confusion counts of each test block. blocks: (blocks,) their ids.
        ece, brier: calibration of the test predictions.
        final_loss: mean training loss of the last epoch.
        cost: see its class. layers: statistics of every routed layer.
        measures: what else a study measured on the run, by name.
        identity: everything that decided the result, for resuming.
    """

    system: str
    variant: str
    seed: int
    fold: int
    split: str
    train_pixels: int
    test_pixels: int
    counts: np.ndarray
    blocks: np.ndarray
    ece: float
    brier: float
    final_loss: float
    cost: Cost
    layers: Mapping[str, LayerStatistics]
    identity: Mapping[str, Any]
    measures: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, object]:
        """One line of ``results.csv``."""
        total = self.counts.sum(0)
        layers = list(self.layers.values())
        cost = {k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(self.cost).items()}
        return {
            "system": self.system,
            "variant": self.variant,
            "seed": self.seed,
            "split": self.split,
            "fold": self.fold,
            "train_pixels": self.train_pixels,
            "test_pixels": self.test_pixels,
            "overall_accuracy": round(float(overall_accuracy(total)), 6),
            "average_accuracy": round(float(average_accuracy(total)), 6),
            "kappa": round(float(kappa(total)), 6),
            "ece": round(self.ece, 6),
            "brier": round(self.brier, 6),
            "final_loss": round(self.final_loss, 6),
            **cost,
            "entropy": round(float(np.mean([s.entropy for s in layers])), 4) if layers else "",
            "effective_experts": round(float(np.mean([s.effective_experts for s in layers])), 3) if layers else "",
            "dead_experts": sum(s.dead_experts for s in layers),
            "dropped_share": round(float(np.mean([s.dropped_share for s in layers])), 6) if layers else "",
            **{name: round(value, 6) for name, value in self.measures.items()},
        }

    def save(self, path: Path) -> None:
        """Write as JSON, in one step."""
        plain = {**vars(self), "counts": self.counts.tolist(), "blocks": self.blocks.tolist()}
        plain |= {"cost": asdict(self.cost), "layers": {name: asdict(s) for name, s in self.layers.items()}}
        write_json(path, plain)


def record_of(
    assessment: Assessment,
    *,
    system: str,
    variant: str,
    split: str,
    train_pixels: int,
    identity: Mapping[str, Any],
    measures: Mapping[str, float] | None = None,
) -> RunRecord:
    """What is kept of an assessed model."""
    calibration = reliability(assessment.probability, assessment.truth)
    return RunRecord(
        system=system,
        variant=variant,
        seed=assessment.seed,
        fold=assessment.fold,
        split=split,
        train_pixels=train_pixels,
        test_pixels=len(assessment.truth),
        counts=assessment.counts,
        blocks=assessment.blocks,
        ece=calibration.ece,
        brier=calibration.brier,
        final_loss=sum(assessment.history.losses[-1].values()),
        cost=assessment.cost,
        layers=assessment.statistics,
        identity=identity,
        measures=measures or {},
    )


def load_record(path: Path) -> RunRecord:
    """Read a record; ModelFileError if the file is damaged."""
    try:
        plain = json.loads(path.read_text())
        layers = {n: LayerStatistics(**{**s, **_tuples(s)}) for n, s in plain.pop("layers").items()}
        arrays = {key: np.array(plain.pop(key), dtype=np.int64) for key in ("counts", "blocks")}
        return RunRecord(**{**plain, **arrays, "cost": Cost(**plain["cost"]), "layers": layers})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError("the record of a run is damaged", where=path, fix="delete it to train anew") from error


def results_csv(records: Iterable[RunRecord]) -> str:
    """A table with one row a run."""
    rows = [record.row() for record in records]
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)  # some runs have measures of their own
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _tuples(statistics: Mapping[str, Any]) -> dict[str, tuple]:
    return {key: tuple(value) for key, value in statistics.items() if isinstance(value, list)}
