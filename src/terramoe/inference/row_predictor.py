"""A fitted table system with what it must know of the table: names, classes, where rows may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terramoe.data.row_table import RowTable
from terramoe.errors import DataError, ModelFileError
from terramoe.moe import Routing
from terramoe.storage import load_estimator, save_estimator
from terramoe.systems.table_registry import table_system_class
from terramoe.systems.table_system import TableSystem

CHUNK = 8192  # rows that are routed at a time


@dataclass(frozen=True)
class RowPrediction:
    """What a model says about N rows; NaN, or -1 for an expert, where a row lacks a feature that the model needs.

    Attributes:
        values: (N, T): values, and the number of the class.
        std: (N, T) standard deviations, NaN for a class.
        probability: (N, K) of the classes, or None.
        experts: by layer: (N, 3) most used expert, its share of the weight, and the entropy (nats) of the shares; a row
            with several items, such as the steps of a trace, has their mean shares.
    """

    values: np.ndarray
    std: np.ndarray
    probability: np.ndarray | None
    experts: dict[str, np.ndarray]


@dataclass(frozen=True)
class RowPredictor:
    """A fitted system and its columns."""

    name: str
    system: TableSystem
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def predict(self, table: RowTable) -> RowPrediction:
        """Predict a table with the model's features.

        Raises:
            DataError: other features.
        """
        if table.feature_names != self.feature_names:
            given, own = (", ".join(names[:5]) for names in (table.feature_names, self.feature_names))
            fix = "give the columns of the training table"
            raise DataError(f"features {given} ..., the model's are {own} ...", where=table.name, fix=fix)
        usable = self.system.readable(table.features)
        count, size = len(self.target_names), len(table)
        values, std = np.full((size, count), np.nan), np.full((size, count), np.nan)
        probability = np.full((size, len(self.class_names)), np.nan) if self.class_names else None
        experts: dict[str, np.ndarray] = {}
        for part in chunks(np.flatnonzero(usable)):
            x = table.features[part]
            values[part] = self.system.predict(x).reshape(len(part), -1)
            if self.system.task != "classes":
                std[part] = self.system.predict_std(x).reshape(len(part), -1)
            if probability is not None:
                known = np.asarray(getattr(self.system, "classes_", np.arange(len(self.class_names))), dtype=np.int64)
                probability[part] = 0.0  # of a class that no training row had
                probability[np.ix_(part, known)] = self.system.predict_proba(x)
            for layer, record in self.system.routing(x).items():
                shares = row_shares(record, len(part))
                top = shares.argmax(axis=1)
                entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1)
                found = experts.setdefault(layer, np.tile([-1.0, np.nan, np.nan], (size, 1)))
                found[part] = np.stack([top, shares[np.arange(len(part)), top], entropy], axis=1)
        return RowPrediction(values, std, probability, experts)

    def save(self, folder: Path, settings: dict[str, Any], extra: dict[str, Any]) -> Path:
        """Write the model into a run folder; ``extra`` is kept beside the columns."""
        data = {
            "features": list(self.feature_names),
            "targets": list(self.target_names),
            "classes": list(self.class_names),
        }
        return save_estimator(folder, self.system, system=self.name, settings=settings, data=data | extra)


def load_row_predictor(path: str | Path) -> RowPredictor:
    """Read a run folder or its model.skops; ModelFileError if it is not what it says."""
    stored = load_estimator(path)
    try:
        data = stored.data
        names = (tuple(data[key]) for key in ("features", "targets", "classes"))
        right = isinstance(stored.estimator, table_system_class(stored.system))
    except (KeyError, TypeError) as error:
        raise ModelFileError("the manifest lacks the columns", where=path, fix="train it with this version") from error
    if not right:
        raise ModelFileError(f"the model is no {stored.system}", where=path, fix="train it again")
    return RowPredictor(stored.system, stored.estimator, *names)


def chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Indices, so many at a time."""
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def row_shares(record: Routing, rows: int) -> np.ndarray:
    """(rows, E) share of each expert in the weight that a row hands out, mean over its items; 1 / E if it is none."""
    weights = record.dense().detach().cpu().double().numpy()
    total = weights.sum(axis=1, keepdims=True)
    shares = np.divide(weights, total, out=np.full_like(weights, 1 / weights.shape[1]), where=total > 0)
    return shares.reshape(rows, -1, shares.shape[1]).mean(axis=1)
