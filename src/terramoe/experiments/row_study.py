"""Train a table system and its controls on the same folds with the same seeds; resumable training by training."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from terramoe.data.row_table import RowTable
from terramoe.errors import ConfigError, DataError
from terramoe.evaluation import Comparison, Interval, compare, confusion, overall_accuracy
from terramoe.evaluation.holm import holm
from terramoe.evaluation.intervals import interval
from terramoe.evaluation.row_scores import (
    ValueComparison,
    ValueScores,
    block_moments,
    compare_values,
    value_scores,
)
from terramoe.experiments.card import plain
from terramoe.experiments.experiment import Progress, Silent
from terramoe.experiments.row_plan import RowPlan
from terramoe.experiments.row_split import RowFold, row_folds
from terramoe.inference.row_predictor import RowPrediction, RowPredictor
from terramoe.storage import write_json
from terramoe.systems import ROUTED
from terramoe.systems.table_system import TableSystem


@dataclass(frozen=True)
class RowRun:
    """What one training of one variant gave on its test rows.

    Attributes:
        units: (B,) ids of the blocks, groups or times that were tested.
        moments: (B, T, 7) sums over the rows of a unit, T targets that are values.
        counts: (B, K, K) confusions of the class, or None.
        seconds: of the fit. train, test: rows.
    """

    variant: str
    seed: int
    units: np.ndarray
    moments: np.ndarray
    counts: np.ndarray | None
    seconds: float
    train: int
    test: int


@dataclass(frozen=True)
class VariantScores:
    """Pooled scores of one variant: of each value target, and of the class."""

    values: dict[str, ValueScores]
    accuracy: Interval | None
    per_seed: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class RowStudy:
    """Everything that a run on a table found.

    Attributes:
        plan, table: what was asked, on what; rows that cannot train are out of the table.
        scores: by variant. comparisons: the routed system against each control. p_holm: corrected.
        predictor: the routed system of the first seed, fitted on the training rows of its fold.
        fold: of the first seed. prediction: of that fold's test rows.
        left_out: rows of the file without a target, feature, place or time that was needed.
    """

    plan: RowPlan
    table: RowTable
    scores: dict[str, VariantScores]
    comparisons: dict[str, ValueComparison | Comparison]
    p_holm: dict[str, float]
    predictor: RowPredictor
    fold: RowFold
    prediction: RowPrediction
    left_out: int


def run_rows(plan: RowPlan, table: RowTable, folder: Path, progress: Progress | None = None) -> RowStudy:
    """Train, score and compare; finished trainings found in ``folder`` are not run again.

    Raises:
        ConfigError: a plan that cannot be, or a folder with trainings of other settings or data.
        DataError: no targets, or too few rows. SplitError: see ``row_folds``.
    """
    plan.check()
    progress = progress or Silent()
    system = plan.build(plan.seed)
    table, left_out = trainable(table, system)
    folds = row_folds(plan.split, table)
    digest = plan.digest(table.digest())
    variants = (ROUTED, *plan.control_names())
    runs: dict[str, list[RowRun]] = {name: [] for name in variants}
    first: RowPredictor | None = None
    total = plan.seeds * len(variants)
    for number in range(plan.seeds):
        seed = plan.seed + number
        fold = folds[seed % len(folds)]
        for variant in variants:
            path = folder / "runs" / f"{variant}.{seed}.json"
            done = sum(map(len, runs.values()))
            mine = number == 0 and variant == ROUTED
            if path.exists() and not mine:
                runs[variant].append(_load(path, digest))
                continue
            progress.stage(f"training {done + 1} of {total}: {variant}, seed {seed}")
            predictor, seconds = _fit(plan.build(seed).control(variant), table, fold, plan.system)
            test = table.at(fold.test)
            run = score_rows(predictor, test, fold.unit, variant, seed, seconds=seconds, train=len(fold.train))
            _save(path, run, digest)
            runs[variant].append(run)
            first = predictor if mine else first
    own = folds[plan.seed % len(folds)]
    comparisons = {name: _compare(runs[ROUTED], runs[name], plan.rope) for name in variants[1:]}
    p_values = dict(zip(comparisons, holm([c.p_value for c in comparisons.values()]), strict=True))
    study = RowStudy(
        plan=plan,
        table=table,
        scores={name: pool_runs(found, table) for name, found in runs.items()},
        comparisons=comparisons,
        p_holm=p_values,
        predictor=first,
        fold=own,
        prediction=first.predict(table.at(own.test)),
        left_out=left_out,
    )
    write_json(folder / "results.json", plain_study(study))
    return study


def trainable(table: RowTable, system: TableSystem) -> tuple[RowTable, int]:
    """The rows that can train and test, and how many cannot. DataError if too few can."""
    if not table.target_names:
        raise DataError("no target is named", where=table.name, fix="name the column to predict with --target")
    usable = system.readable(table.features)
    usable &= np.isfinite(table.targets).all(axis=1)
    for known in (table.places, table.times):
        if known is not None:
            usable &= np.isfinite(known.reshape(len(table), -1)).all(axis=1)
    if usable.sum() < 10:
        raise DataError(
            f"{usable.sum()} of {len(table)} rows have all that is needed", where=table.name, fix="give 10 or more"
        )
    return table.at(usable), int((~usable).sum())


def targets_of(table: RowTable) -> np.ndarray:
    """y as the systems take it: (n,) classes, (n,) or (n, targets) values."""
    y = table.targets
    if table.class_names and y.shape[1] == 1:
        return y[:, 0].astype(np.int64)
    return y[:, 0] if y.shape[1] == 1 else y


def _fit(system: TableSystem, table: RowTable, fold: RowFold, name: str) -> tuple[RowPredictor, float]:
    mine = table.at(fold.train)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a budget of steps is a setting, not a defect of the data
        fitted = system.fit(mine.features, targets_of(mine), mine.groups)
    seconds = time.perf_counter() - started
    return RowPredictor(name, fitted, table.feature_names, table.target_names, table.class_names), seconds


def score_rows(
    predictor: RowPredictor,
    test: RowTable,
    unit: np.ndarray,
    variant: str,
    seed: int,
    *,
    seconds: float = 0.0,
    train: int = 0,
) -> RowRun:
    """Predict test rows and sum up by unit (N,)."""
    found = predictor.predict(test)
    first = 1 if test.class_names else 0
    moments = block_moments(test.targets[:, first:], found.values[:, first:], found.std[:, first:], unit)
    counts = None
    if test.class_names:
        truth, said = (values[:, 0].astype(int) + 1 for values in (test.targets, found.values))  # counted from 1
        parts = [unit == u for u in np.unique(unit)]
        counts = np.stack([confusion(truth[part], said[part], len(test.class_names)) for part in parts])
    return RowRun(variant, seed, np.unique(unit), moments, counts, seconds, train, len(test))


def _stack(runs: list[RowRun]) -> tuple[np.ndarray, np.ndarray]:
    """Seed and unit of each row of the concatenated runs."""
    seeds = np.concatenate([np.full(len(r.units), r.seed) for r in runs])
    return seeds, np.concatenate([r.units for r in runs])


def pool_runs(runs: list[RowRun], table: RowTable) -> VariantScores:
    """Scores over the test rows of all runs of a variant."""
    seeds, units = _stack(runs)
    moments = np.concatenate([r.moments for r in runs])
    names = table.target_names[1:] if table.class_names else table.target_names
    values = dict(zip(names, value_scores(moments, seeds, units), strict=True)) if names else {}
    accuracy, each = None, tuple(np.sqrt(r.moments[..., 5].sum() / max(r.moments[..., 0].sum(), 1)) for r in runs)
    if runs[0].counts is not None:
        counts = np.concatenate([r.counts for r in runs])
        accuracy = interval(overall_accuracy, counts)
        each = tuple(overall_accuracy(r.counts.sum(0)) for r in runs)
    return VariantScores(values, accuracy, tuple(map(float, each)), float(np.mean([r.seconds for r in runs])))


def _compare(ours: list[RowRun], control: list[RowRun], rope: float) -> ValueComparison | Comparison:
    seeds, units = _stack(ours)
    if ours[0].counts is not None and ours[0].moments.shape[1] == 0:
        pair = (np.concatenate([r.counts for r in runs]) for runs in (ours, control))
        return compare(ROUTED, control[0].variant, *pair, seeds, units, rope=rope)
    pair = (np.concatenate([r.moments for r in runs]) for runs in (ours, control))
    return compare_values(*pair, seeds, units, rope)


def plain_study(study: RowStudy) -> dict[str, Any]:
    """Scores and comparisons as JSON-able values."""
    return plain(
        {
            "plan": study.plan.plain(),
            "rows": len(study.table),
            "left_out": study.left_out,
            "scores": {name: asdict(found) for name, found in study.scores.items()},
            "comparisons": {
                name: {
                    "difference": asdict(c.difference if isinstance(c, ValueComparison) else c.overall),
                    "verdict": c.verdict,
                    "p_holm": study.p_holm[name],
                }
                for name, c in study.comparisons.items()
            },
        }
    )


def _save(path: Path, run: RowRun, digest: str) -> None:
    arrays = {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in vars(run).items()}
    write_json(path, {"digest": digest, "value_targets": run.moments.shape[1], **arrays})


def _load(path: Path, digest: str) -> RowRun:
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        made_for, targets = stored.pop("digest"), stored.pop("value_targets")
        moments = np.array(stored["moments"], dtype=np.float64).reshape(len(stored["units"]), targets, 7)
        counts = None if stored["counts"] is None else np.array(stored["counts"])
        run = RowRun(**{**stored, "units": np.array(stored["units"]), "moments": moments, "counts": counts})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("this file is damaged", where=path, fix="delete it; it is made again") from error
    if made_for != digest:
        raise ConfigError(
            "this training was made with other settings or data", where=path, fix="use another folder with -o"
        )
    return run
