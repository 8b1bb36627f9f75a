"""Scaling curves: the same system with more experts and more choices."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from terramoe.data import Scene
from terramoe.errors import ConfigError
from terramoe.evaluation import Interval
from terramoe.experiments.plan import Plan
from terramoe.experiments.record import RunRecord
from terramoe.experiments.study import Variant
from terramoe.experiments.study_summary import VariantScore
from terramoe.systems import make_config, system_class


@dataclass(frozen=True)
class ScalingPoint:
    """One size of a system, over its runs.

    Attributes:
        experts, top_k: E and k.
        overall: accuracy with its interval over blocks. spread: standard deviation over seeds.
        total, active, flops: parameters, those that an item uses, operations per pixel.
        entropy: mean entropy of the router's distribution, in nats.
        effective_experts, dead_experts: mean over layers and seeds.
        largest_load: largest share of an expert, mean over layers and seeds; 1/E is balance.
        pixels_per_second: of prediction. train_seconds: mean. peak_mib: of the process so far.
    """

    experts: int
    top_k: int
    overall: Interval
    spread: float
    total: int
    active: float
    flops: float
    entropy: float
    effective_experts: float
    dead_experts: float
    largest_load: float
    pixels_per_second: float
    train_seconds: float
    peak_mib: float


def scaling_variants(
    plan: Plan, system: str, scene: Scene, experts: Sequence[int], top_k: Sequence[int]
) -> list[Variant]:
    """The system with every number of experts and choices that go together (k at most E).

    Raises:
        ConfigError: a number below 1, no pair at all, or a size that the system refuses.
    """
    pairs = [(e, k) for k in sorted(set(top_k)) for e in sorted(set(experts)) if k <= e]
    if not pairs or min(*experts, *top_k) < 1:
        raise ConfigError(
            f"experts {list(experts)} with top-k {list(top_k)}", where="scale", fix="use numbers from 1, some k <= E"
        )
    config = make_config(system, {"bands": scene.bands, "classes": scene.classes, **plan.model})
    cls, variants = system_class(system), []
    for e, k in pairs:
        scaled = asdict(cls.scaled(config, e, k))
        changed = {key: value for key, value in scaled.items() if value != asdict(config)[key]}
        variants.append(Variant(system, f"E{e}-k{k}", model=changed))
    return variants


def scaling_points(
    records: Sequence[RunRecord], scores: dict[str, VariantScore], pixels: int
) -> dict[str, ScalingPoint]:
    """Points by label of the variant.

    Args:
        records: of ``run_study`` on ``scaling_variants``. scores: of ``summarise_study``.
        pixels: of the scene, which each prediction covers whole.
    """
    points = {}
    for label, score in scores.items():
        name = label.rpartition(", ")[2]
        runs = [r for r in records if r.variant == name]
        layers = [layer for r in runs for layer in r.layers.values()]
        experts, top_k = (int(part[1:]) for part in name.split("-"))
        points[label] = ScalingPoint(
            experts=experts,
            top_k=top_k,
            overall=score.overall,
            spread=score.spread,
            total=score.total,
            active=score.active,
            flops=score.flops,
            entropy=float(np.mean([s.entropy for s in layers])),
            effective_experts=score.effective_experts,
            dead_experts=float(np.mean([s.dead_experts for s in layers])),
            largest_load=float(np.mean([max(s.load) for s in layers])),
            pixels_per_second=pixels / score.predict_seconds,
            train_seconds=score.train_seconds,
            peak_mib=score.peak_mib,
        )
    return points


def scaling_csv(points: Sequence[ScalingPoint]) -> str:
    """A table with one row a size."""
    rows = []
    for point in points:
        plain = asdict(point)
        low_high = {f"overall_{key}": value for key, value in plain.pop("overall").items()}
        rows.append({key: round(v, 6) if isinstance(v, float) else v for key, v in {**plain, **low_high}.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
