"""Numbers and sentences as the report and the terminal show them."""

from __future__ import annotations

import math

from terramoe.data.scenes import INDIAN_PINES
from terramoe.evaluation import Interval
from terramoe.experiments import Experiment, Scores


def percent(value: float, digits: int = 1) -> str:
    """A share as percent; a dash where there is none."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}"


def percent_interval(interval: Interval) -> str:
    """ "71.2 [68.0, 74.1]" from shares."""
    if math.isnan(interval.value):
        return "–"
    return f"{percent(interval.value)} [{percent(interval.low)}, {percent(interval.high)}]"


def mean_and_spread(scores: Scores) -> str:
    """ "68.2 ± 4.9" over seeds; the value alone for a single seed."""
    mean, spread = scores.mean_and_spread
    return f"{percent(mean)} ± {percent(spread)}" if len(scores.per_seed) > 1 else percent(mean)


def verdict(experiment: Experiment) -> str:
    """The first sentence of the report."""
    if experiment.comparison is not None:
        return experiment.comparison.sentence
    name, scores = next(iter(experiment.scores.items()))
    return (
        f"{name}: {percent_interval(scores.overall)} % overall accuracy. No control was trained, so this says nothing "
        "about routing: add --twin true."
    )


def above_baselines(experiment: Experiment) -> str:
    """How far the score is above knowing the place alone and above single pixels, on the same fold."""
    audit = next(row for row in experiment.audits if row.name == experiment.plan.split.kind)
    name, runs = next(iter(experiment.runs.items()))
    score = next(
        (s for s, run in zip(experiment.scores[name].per_seed, runs, strict=True) if run.fold == audit.fold), None
    )
    if score is None:
        return f"No run tested fold {audit.fold}, for which the baselines were computed."
    return (
        f"On fold {audit.fold} of the {audit.name} split {name} reaches {percent(score)} %: "
        f"{100 * (score - audit.coordinates):+.1f} points against the nearest training pixel by coordinates alone "
        f"({percent(audit.coordinates)} %) and {100 * (score - audit.logistic):+.1f} against logistic regression on "
        f"single pixels ({percent(audit.logistic)} %)."
    )


def cost_row(experiment: Experiment, name: str) -> dict[str, str]:
    """Cost and routing of one model, means over its runs."""
    runs = experiment.runs[name]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    layers = [s for run in runs for s in run.statistics.values()]
    return {
        "total": f"{runs[0].cost.total:,}",
        "active": f"{mean([r.cost.active for r in runs]):,.0f}",
        "train": f"{mean([r.cost.train_seconds for r in runs]):.0f}",
        "predict": f"{mean([r.cost.predict_seconds for r in runs]):.1f}",
        "memory": f"{max(r.cost.peak_mib for r in runs):,.0f}",
        "effective": f"{mean([s.effective_experts for s in layers]):.2f} of {len(layers[0].load)}" if layers else "–",
        "dead": str(sum(s.dead_experts for s in layers)),
        "dropped": percent(mean([s.dropped_share for s in layers])) if layers else "–",
    }


def next_command(experiment: Experiment, folder: str) -> str:
    """What to type next: after the packaged scene one's own, after one's own scene a map."""
    if experiment.scene.name == INDIAN_PINES:
        return "terramoe fit YOUR_IMAGE.tif YOUR_LABELS.tif -o run --twin true"
    return f"terramoe predict {folder} YOUR_IMAGE.tif -o maps"
