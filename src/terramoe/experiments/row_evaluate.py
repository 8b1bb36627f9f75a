"""Score a stored table model on a table, without ever counting a row that it was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from terramoe.data.row_table import RowTable
from terramoe.errors import DataError, ModelFileError
from terramoe.experiments.card import plain
from terramoe.experiments.row_plan import RowPlan
from terramoe.experiments.row_split import RowSplitSettings, row_folds
from terramoe.experiments.row_study import VariantScores, pool_runs, score_rows, trainable
from terramoe.inference.row_predictor import RowPredictor
from terramoe.storage import load_estimator


@dataclass(frozen=True)
class RowEvaluation:
    """Scores of a stored model: which rows were counted, in words, how many, and the scores."""

    which: str
    rows: int
    scores: VariantScores

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return plain({"which": self.which, "rows": self.rows, **asdict(self.scores)})


def plan_of_model(path: str | Path) -> RowPlan:
    """The plan that a stored model was trained by; ModelFileError if the manifest lacks it."""
    try:
        stored = dict(load_estimator(path).data["plan"])
        split = RowSplitSettings(**stored.pop("split"))
        return RowPlan(**{**stored, "split": split})
    except (KeyError, TypeError) as error:
        raise ModelFileError("the manifest lacks the plan", where=path, fix="train it with this version") from error


def evaluate_rows(path: str | Path, predictor: RowPredictor, table: RowTable) -> RowEvaluation:
    """Score a model: on the table it was trained on its own test rows alone, on another all rows that have the targets.

    Raises:
        ModelFileError: the manifest lacks the plan.
        DataError: other targets or classes, no row that counts, or the training table without the groups of the fit.
    """
    if table.target_names != predictor.target_names:
        raise DataError(
            f"targets {', '.join(table.target_names) or 'none'}, the model's are {', '.join(predictor.target_names)}",
            where=table.name,
            fix="name the model's targets with --target",
        )
    known = load_estimator(path).data
    plan = plan_of_model(path)
    table, _ = trainable(table, predictor.system)
    if table.digest() == known.get("table"):
        folds = row_folds(plan.split, table)
        fold = folds[plan.seed % len(folds)]
        rows, unit, which = fold.test, fold.unit, "the test rows of its run"
    elif table.numbers_digest() == known.get("numbers"):
        raise DataError(
            "this is the table it was trained on, but its places, times or groups are not those of the fit",
            where=table.name,
            fix="name the same columns (--group, --longitude, --latitude, --time), so that training rows do not count",
        )
    else:
        table = _with_classes(table, predictor)
        rows = np.arange(len(table))
        unit = rows if table.groups is None else np.unique(table.groups, return_inverse=True)[1].ravel()
        which = "all rows: not the table it was trained on"
    run = score_rows(predictor, table.at(rows), unit, "routed", plan.seed)
    return RowEvaluation(which, len(rows), pool_runs([run], table))


def _with_classes(table: RowTable, predictor: RowPredictor) -> RowTable:
    """The table with class numbers of the model."""
    if not predictor.class_names:
        return table
    unknown = sorted(set(table.class_names) - set(predictor.class_names))
    if unknown:
        raise DataError(f"class {unknown[0]} is none of the model's", where=table.name, fix="use the training classes")
    number = np.array([predictor.class_names.index(name) for name in table.class_names])
    targets = table.targets.copy()
    targets[:, 0] = number[targets[:, 0].astype(np.int64)]
    return replace(table, targets=targets, class_names=predictor.class_names)
