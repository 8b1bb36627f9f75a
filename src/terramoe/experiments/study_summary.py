"""What a study says: scores of every variant, and every system against its controls and against the other systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from terramoe.evaluation import (
    Interval,
    Ranks,
    average_accuracy,
    interval,
    kappa,
    merge_blocks,
    overall_accuracy,
    rank_systems,
)
from terramoe.evaluation.family import Family, Tally, compare_all, compare_with_controls
from terramoe.experiments.card import plain
from terramoe.experiments.record import RunRecord
from terramoe.systems import ROUTED


@dataclass(frozen=True)
class VariantScore:
    """One variant over its runs.

    Attributes:
        overall, average, kappa: pooled over runs, with 95 % intervals over blocks; accuracies as shares.
        per_seed: overall accuracy of each run. ece: mean over runs.
        total, active: parameters; active is a mean over runs. flops: per pixel, mean.
        train_seconds, predict_seconds: means. peak_mib: largest.
        effective_experts: mean over layers and runs. dead_experts: sum over layers and runs. dropped_share: mean.
        measures: what else was measured on the runs, by name: mean and standard deviation (n - 1).
    """

    overall: Interval
    average: Interval
    kappa: Interval
    per_seed: tuple[float, ...]
    ece: float
    total: int
    active: float
    flops: float
    train_seconds: float
    predict_seconds: float
    peak_mib: float
    effective_experts: float
    dead_experts: int
    dropped_share: float
    measures: Mapping[str, tuple[float, float]]

    @property
    def spread(self) -> float:
        """Standard deviation of overall accuracy over runs (n - 1); 0 for a single run."""
        return float(np.std(self.per_seed, ddof=1)) if len(self.per_seed) > 1 else 0.0


@dataclass(frozen=True)
class StudySummary:
    """Everything that the tables and the report of a study show.

    Attributes:
        scores: by label, in the order of training.
        controls: for each system, its routed variant against its other variants.
        systems: the routed variants against each other, or None if there is one system.
        tallies: wins, ties and losses of each system against its controls.
        ranks: of all variants over blocks (summed over seeds), or None for fewer than three variants or blocks.
        rope: half-width of the region of practical equivalence, in points.
    """

    scores: dict[str, VariantScore]
    controls: dict[str, Family]
    systems: Family | None
    tallies: dict[str, Tally]
    ranks: Ranks | None
    rope: float

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return plain(
            {
                "rope": self.rope,
                "scores": {label: asdict(score) for label, score in self.scores.items()},
                "against_controls": {system: _rows(family) for system, family in self.controls.items()},
                "systems": None if self.systems is None else _rows(self.systems),
                "tallies": {system: asdict(t) for system, t in self.tallies.items()},
                "ranks": None if self.ranks is None else asdict(self.ranks),
            }
        )


def summarise_study(records: Sequence[RunRecord], *, rope: float = 0.5) -> StudySummary:
    """Summarise records of ``run_study``; every variant must have the same seeds and folds.

    Args:
        rope: in points of overall accuracy, fixed before anything is trained.
    """
    runs: dict[tuple[str, str], list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (r.seed, r.fold)):
        runs.setdefault((record.system, record.variant), []).append(record)
    order = dict.fromkeys((r.system, r.variant) for r in records)
    runs = {key: runs[key] for key in order}
    first = next(iter(runs.values()))
    seed_of_row = np.concatenate([np.full(len(r.blocks), r.seed) for r in first])
    block_of_row = np.concatenate([r.blocks for r in first])
    counts = {key: np.concatenate([r.counts for r in found]) for key, found in runs.items()}
    controls = {
        system: compare_with_controls(system, own, seed_of_row, block_of_row, rope=rope)
        for system in dict.fromkeys(system for system, variant in runs if variant == ROUTED)
        if len(own := {label_of(*key): c for key, c in counts.items() if key[0] == system}) > 1
    }
    routed = {system: c for (system, variant), c in counts.items() if variant == ROUTED}
    return StudySummary(
        scores={label_of(*key): _score(found) for key, found in runs.items()},
        controls=controls,
        systems=compare_all(routed, seed_of_row, block_of_row, rope=rope) if len(routed) > 1 else None,
        tallies={system: family.tallies()[system] for system, family in controls.items()},
        ranks=_ranks({label_of(*key): merge_blocks(c, block_of_row) for key, c in counts.items()}),
        rope=rope,
    )


def label_of(system: str, variant: str) -> str:
    """Name of a variant in tables."""
    return system if variant == ROUTED else f"{system}, {variant}"


def _ranks(counts: Mapping[str, np.ndarray]) -> Ranks | None:
    """Variants ranked by overall accuracy on every block (blocks, K, K)."""
    scores = np.stack([overall_accuracy(c) for c in counts.values()], axis=1)
    return rank_systems(list(counts), scores) if min(scores.shape) > 2 else None


def _score(runs: Sequence[RunRecord]) -> VariantScore:
    counts = merge_blocks(np.concatenate([r.counts for r in runs]), np.concatenate([r.blocks for r in runs]))
    layers = [s for r in runs for s in r.layers.values()]

    def mean(name: str) -> float:
        return float(np.mean([getattr(r.cost, name) for r in runs]))

    return VariantScore(
        overall=interval(overall_accuracy, counts),
        average=interval(average_accuracy, counts),
        kappa=interval(kappa, counts),
        per_seed=tuple(float(overall_accuracy(r.counts.sum(0))) for r in runs),
        ece=float(np.mean([r.ece for r in runs])),
        total=runs[0].cost.total,
        active=mean("active"),
        flops=mean("flops"),
        train_seconds=mean("train_seconds"),
        predict_seconds=mean("predict_seconds"),
        peak_mib=max(r.cost.peak_mib for r in runs),
        effective_experts=float(np.mean([s.effective_experts for s in layers])) if layers else float("nan"),
        dead_experts=sum(s.dead_experts for s in layers),
        dropped_share=float(np.mean([s.dropped_share for s in layers])) if layers else 0.0,
        measures={name: _mean_and_spread([r.measures[name] for r in runs]) for name in runs[0].measures},
    )


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _rows(family: Family) -> list[dict[str, Any]]:
    return [
        {"a": a, "b": b, **asdict(comparison), "p_holm": family.p_holm[a, b]}
        for (a, b), comparison in family.comparisons.items()
    ]
