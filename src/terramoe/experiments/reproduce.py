"""Run claims and give a verdict on each statement: reproduced, not reproduced, or cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from terramoe.data import Scene
from terramoe.evaluation import Comparison, Interval, Verdict, overall_accuracy
from terramoe.evaluation.family import Family, compare_pairs, tally
from terramoe.experiments.claims import Claim, MeasuredStatement, RowsClaim, Statement
from terramoe.experiments.experiment import Progress
from terramoe.experiments.record import RunRecord
from terramoe.experiments.study import run_study
from terramoe.storage import write_json
from terramoe.systems import CONTROLS, ROUTED

Outcome = Literal["reproduced", "not reproduced", "cannot tell"]
ACCURACY = "overall_accuracy"  # the measure of a claim over scenes


@dataclass(frozen=True)
class Result:
    """The verdict on one statement.

    Attributes:
        statement: its text. reported: the paper's own figure, or "".
        found: the difference in points of overall accuracy or in percent of a measure, or the measured number, with
            95 % interval over blocks and seeds (over seeds alone for measures).
        unit: "points" or the name of the measure. seeds: how many.
        p_value: two-sided, corrected within the claim (Holm) for differences; of the mean for a measured number.
        outcome: the verdict.
    """

    statement: str
    reported: str
    found: Interval
    unit: str
    seeds: int
    p_value: float
    outcome: Outcome


@dataclass(frozen=True)
class SeedComparison:
    """The routed system against a control over seeds: the difference with its interval, and the verdict."""

    overall: Interval
    verdict: Verdict


@dataclass(frozen=True)
class Reproduction:
    """All that running a claim found.

    Attributes:
        results: the verdicts on its statements.
        scores: mean and standard deviation (n - 1) over seeds of each variant's overall accuracy or the claim's metric.
        controls: the routed system minus each of the four controls among the variants, as one family of comparisons: in
            points of accuracy, or in percent of the control's metric.
    """

    results: list[Result]
    scores: dict[str, tuple[float, float]]
    controls: Mapping[str, Comparison | SeedComparison]


def reproduce(
    claim: Claim, folder: Path, progress: Progress | None = None, *, scene: Scene | None = None
) -> Reproduction:
    """Run a claim, resumable run by run, and write ``claim.json``.

    Args:
        scene: the claim's own scene, if it is made already.

    Raises:
        ConfigError: the folder holds runs of other settings; see ``run_study``.
    """
    scene = claim.scene() if scene is None else scene
    records = run_study(claim.plan, claim.variants, scene, folder, progress, claim.measure)
    runs = _by_variant(records)
    scores = {name: [overall_accuracy(r.counts.sum(0)) for r in found] for name, found in runs.items()}
    controls = [(ROUTED, name) for name in CONTROLS if name in runs and ROUTED in runs]
    found = Reproduction(
        results=judge(claim, records),
        scores={n: (float(np.mean(a)), float(np.std(a, ddof=min(1, len(a) - 1)))) for n, a in scores.items()},
        controls={b: c for (_, b), c in _compare(claim, runs, controls).comparisons.items()} if controls else {},
    )
    write_json(folder / "claim.json", plain(claim, found))
    return found


def _by_variant(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    runs: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (r.seed, r.fold)):
        runs.setdefault(record.variant, []).append(record)
    return runs


def _compare(claim: Claim, runs: Mapping[str, Sequence[RunRecord]], pairs: Sequence[tuple[str, str]]) -> Family:
    first = next(iter(runs.values()))
    seeds = np.concatenate([np.full(len(r.blocks), r.seed) for r in first])
    blocks = np.concatenate([r.blocks for r in first])
    counts = {name: np.concatenate([r.counts for r in found]) for name, found in runs.items()}
    return compare_pairs(pairs, counts, seeds, blocks, rope=claim.rope)


def judge(claim: Claim, records: Sequence[RunRecord]) -> list[Result]:
    """The verdicts on a claim's statements."""
    runs = _by_variant(records)
    first = next(iter(runs.values()))
    family = _compare(claim, runs, [(s.a, s.b) for s in claim.statements if isinstance(s, Statement)])
    results = []
    for statement in claim.statements:
        if isinstance(statement, MeasuredStatement):
            results.append(_measured(statement, runs))
            continue
        found = family.comparisons[statement.a, statement.b]
        outcome: Outcome = "cannot tell" if found.verdict == "cannot tell" else "not reproduced"
        if found.verdict == statement.expected:
            outcome = "reproduced"
        p_value = family.p_holm[statement.a, statement.b]
        results.append(
            Result(statement.text, statement.reported, found.overall, "points", len(first), p_value, outcome)
        )
    return results


def plain(claim: Claim | RowsClaim, found: Reproduction) -> dict[str, Any]:
    """As JSON-able values."""
    rows = isinstance(claim, RowsClaim)
    controls = {name: {"difference": asdict(c.overall), "verdict": c.verdict} for name, c in found.controls.items()}
    return {
        "system": claim.system,
        "about": claim.about,
        "metric": claim.metric if rows else ACCURACY,
        "unit": claim.unit if rows else "%",
        "results": [asdict(result) for result in found.results],
        "scores": {name: {"mean": mean, "sd": sd} for name, (mean, sd) in found.scores.items()},
        "controls": controls,
    }


def score_text(claim: Mapping[str, Any], variant: str) -> str:
    """Mean and standard deviation over seeds of a variant's measure, for people: accuracy in percent."""
    mean, sd = (claim["scores"][variant][key] for key in ("mean", "sd"))
    if claim["metric"] == ACCURACY:
        return f"{100 * mean:.1f} ± {100 * sd:.1f}"
    return f"{mean:.4g} ± {sd:.2g}"


def controls_table(claims: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table over all claims: the routed system's measure, and what it differs by from each control."""
    minus = " | ".join(f"minus {name}" for name in CONTROLS)
    rows = [
        f"| claim | measure | routed | {minus} | won, tied, lost, cannot tell |",
        f"|---|---|---|{'---|' * len(CONTROLS)}---|",
    ]
    for name, claim in claims.items():
        if ROUTED not in claim["scores"]:
            continue
        accuracy = claim["metric"] == ACCURACY
        measure = claim["metric"].replace("_", " ") + (f", {claim['unit']}" if claim["unit"] else "")
        cells = [f"`{name}`", measure, score_text(claim, ROUTED)]
        for control in CONTROLS:
            found = claim["controls"].get(control)
            value, low, high = (found["difference"][key] for key in ("value", "low", "high")) if found else (0, 0, 0)
            unit = "points" if accuracy else "%"
            cells.append(f"{value:+.1f} [{low:+.1f}, {high:+.1f}] {unit}" if found else "–")
        count = tally(found["verdict"] for found in claim["controls"].values())
        rows.append(f"| {' | '.join((*cells, f'{count.wins}, {count.ties}, {count.losses}, {count.unknown}'))} |")
    return "\n".join(rows)


def results_table(claims: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table over all claims, from what ``plain`` made of each."""
    rows = ["| system | statement | found, 95 % | seeds | the paper's figure | verdict |", "|---|---|---|---|---|---|"]
    for system, claim in claims.items():
        for r in claim["results"]:
            digits = 1 if r["unit"] == "points" or r["unit"].startswith("%") else 3
            value, low, high = (f"{r['found'][key]:+.{digits}f}" for key in ("value", "low", "high"))
            unit = "points" if r["unit"] == "points" else r["unit"].replace("_", " ")
            cells = (f"`{system}`", r["statement"], f"{value} [{low}, {high}] {unit}", str(r["seeds"]))
            rows.append(f"| {' | '.join((*cells, r['reported'] or '–', r['outcome']))} |")
    return "\n".join(rows)


def _measured(statement: MeasuredStatement, variants: Mapping[str, Sequence[RunRecord]]) -> Result:
    runs, measure = variants[statement.variant], statement.measure
    values = np.array([r.measures[measure] for r in runs]) - statement.above
    if statement.against:  # both lists are in the order of the seeds
        values -= np.array([r.measures[measure] for r in variants[statement.against]])
    mean, error = values.mean(), stats.sem(values) if len(values) > 1 else np.inf
    reach = error * stats.t.ppf(0.975, max(len(values) - 1, 1))
    low, high = np.clip([mean - reach, mean + reach], -1e9, 1e9)
    outcome: Outcome = "reproduced" if low > 0 else "not reproduced" if high <= 0 else "cannot tell"
    p_value = 2 * stats.t.sf(abs(mean) / max(error, 1e-12), max(len(values) - 1, 1))
    found = Interval(float(mean), float(low), float(high))
    return Result(statement.text, statement.reported, found, statement.measure, len(values), float(p_value), outcome)
