"""Run a claim that is measured variant by variant and seed by seed, and judge its statements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import stats

from terramoe.errors import ConfigError, DataError
from terramoe.evaluation import Interval
from terramoe.evaluation.comparison import Verdict, verdict_of
from terramoe.evaluation.holm import holm
from terramoe.experiments.card import plain
from terramoe.experiments.claims.rows_claim import Above, Compared, RowsClaim
from terramoe.experiments.experiment import Progress, Silent
from terramoe.experiments.reproduce import Outcome, Reproduction, Result, SeedComparison
from terramoe.experiments.reproduce import plain as plain_claim
from terramoe.storage import write_json
from terramoe.systems import CONTROLS, ROUTED

CONTROL_ROPE = 1.0  # percent of the control's measure
Measures = Mapping[str, np.ndarray]  # metric -> (seeds,)


def reproduce_rows(claim: RowsClaim, folder: Path, progress: Progress | None = None) -> Reproduction:
    """Run a claim, resumable variant by variant within each seed.

    Raises:
        ConfigError: the folder holds runs of another claim. DataError: data that are not there, or a damaged file.
    """
    progress = progress or Silent()
    identity = hashlib.sha256(f"{claim.system} {claim.about} {claim.variants}".encode()).hexdigest()
    found: dict[str, dict[str, list[float]]] = {name: {} for name in claim.variants}
    total, done = claim.seeds * len(claim.variants), 0
    for seed in range(claim.first_seed, claim.first_seed + claim.seeds):
        for variant in claim.variants:
            done += 1
            path = folder / "runs" / f"{variant.replace(' ', '-')}.{seed}.json"
            if not path.exists():
                progress.stage(f"run {done} of {total}: {variant}, seed {seed}")
                measures = {name: float(value) for name, value in claim.measure(variant, seed).items()}
                write_json(path, plain({"claim": identity, "measures": measures}))
            for name, value in _load(path, identity).items():
                found[variant].setdefault(name, []).append(np.nan if value is None else value)
    if not all(found.values()):
        raise ConfigError("a variant measured nothing", where=claim.system, fix="return its measures by name")
    values = {variant: {m: np.array(v) for m, v in measures.items()} for variant, measures in found.items()}
    reproduction = Reproduction(judge_rows(claim, values), *_against_controls(claim, values))
    write_json(folder / "claim.json", plain_claim(claim, reproduction))
    return reproduction


def judge_rows(claim: RowsClaim, values: Mapping[str, Measures]) -> list[Result]:
    """The verdicts; p-values of the comparisons are corrected within the claim (Holm)."""
    changes = {s: _change(values, s.a, s.b, s.metric) for s in claim.statements if isinstance(s, Compared)}
    corrected = dict(zip(changes, holm([_p_value(c) for c in changes.values()]), strict=True))
    results = []
    for statement in claim.statements:
        if isinstance(statement, Above):
            over = values[statement.variant][statement.metric] - statement.bound
            interval = _interval(over)
            outcome: Outcome = "cannot tell"
            if interval.low > 0 or interval.high <= 0:
                outcome = "reproduced" if interval.low > 0 else "not reproduced"
            p_value, unit = _p_value(over), statement.metric
        else:
            change = changes[statement]
            interval, p_value, unit = _interval(change), float(corrected[statement]), f"% of {statement.metric}"
            outcome = _outcome(verdict_of(interval, statement.rope), statement, p_value)
        results.append(Result(statement.text, statement.reported, interval, unit, claim.seeds, float(p_value), outcome))
    return results


def _outcome(verdict: Verdict, statement: Compared, p_value: float) -> Outcome:
    wanted = {"higher": "better", "lower": "worse", "tie": "tie"}[statement.expected]
    if verdict == "cannot tell" or (verdict in ("better", "worse") and p_value >= 0.05):
        return "cannot tell"
    return "reproduced" if verdict == wanted else "not reproduced"


def _against_controls(
    claim: RowsClaim, values: Mapping[str, Measures]
) -> tuple[dict[str, tuple[float, float]], dict[str, SeedComparison]]:
    """Mean and standard deviation of the claim's metric for each variant, and the routed system minus each control."""
    own = {name: measures[claim.metric] for name, measures in values.items() if claim.metric in measures}
    scores = {name: (float(v.mean()), float(v.std(ddof=min(1, len(v) - 1)))) for name, v in own.items()}
    names = [name for name in CONTROLS if name in own and ROUTED in own]
    changes = {name: _change(values, ROUTED, name, claim.metric) for name in names}
    corrected = dict(zip(changes, holm([_p_value(c) for c in changes.values()]), strict=True))
    found = {}
    for name, change in changes.items():
        interval = _interval(change)
        better = interval if claim.higher_is_better else Interval(-interval.value, -interval.high, -interval.low)
        verdict = verdict_of(better, CONTROL_ROPE)
        sure = corrected[name] < 0.05 or verdict == "tie"
        found[name] = SeedComparison(interval, verdict if sure else "cannot tell")
    return scores, found


def _change(values: Mapping[str, Measures], a: str, b: str, metric: str) -> np.ndarray:
    """(seeds,) change from b to a in percent of |b|."""
    try:
        ours, theirs = values[a][metric], values[b][metric]
    except KeyError as error:
        raise ConfigError(
            f"there is no {error} to compare", where="claim", fix="name a variant and its measure"
        ) from error
    return 100 * (ours - theirs) / np.abs(theirs)


def _interval(values: np.ndarray) -> Interval:
    """Mean over seeds with its 95 % interval (Student's t)."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, -np.inf, np.inf)
    reach = float(stats.sem(values) * stats.t.ppf(0.975, count - 1))
    return Interval(mean, mean - reach, mean + reach)


def _p_value(values: np.ndarray) -> float:
    """Two-sided, of the hypothesis that the mean is 0."""
    if len(values) < 2:
        return 1.0
    error = float(stats.sem(values))
    return float(2 * stats.t.sf(abs(values.mean()) / max(error, 1e-12), len(values) - 1))


def _load(path: Path, identity: str) -> dict[str, float | None]:
    try:
        stored = json.loads(path.read_text())
        same, measures = stored["claim"] == identity, stored["measures"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("this file is damaged", where=path, fix="delete it; it is made again") from error
    if not same:
        raise ConfigError("this run was made for another claim", where=path, fix="use another folder with -o")
    return measures
