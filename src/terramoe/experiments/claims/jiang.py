"""Jiang et al.: do experts that are trained two at a time differ, at no loss, and does each stand for its variables?

Moist air is carried, lifted and wrung out over hills (``warm_rain``) for 300 hours; from a cell's neighbourhood of two
hours, in six groups of variables, the precipitation of the next hour is told. The last hours are the test.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr

from terramoe.data.simulators.warm_rain import GROUPS, VARIABLES, CellRows, cell_rows, simulate_rain
from terramoe.evaluation.metrics_regression import mae, rmse
from terramoe.experiments.claims.rows_claim import Above, Compared, RowsClaim
from terramoe.systems.jiang import JiangPrecipitation

if TYPE_CHECKING:
    import pandas as pd

HOURS, CELLS, KNOWN, REACH = 300, 24, 2, 2  # simulated, drawn of each hour; hours and cells to each side that are seen
TRAIN_UNTIL, TEST_FROM, BLOCK = 200, 224, 10  # a day's gap; hours that are held out together
WET = 1.0  # mm in an hour
OF_ONE = KNOWN * (2 * REACH + 1) ** 2  # columns of a variable
SETTINGS: dict[str, Any] = {
    "groups": tuple(len(names) * OF_ONE for names in GROUPS.values()), "hidden": (32, 16), "validation": 0.1,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "all together": {"trained": 16},
    "all together, as few updates": {"trained": 16, "steps": 300},  # 2 of 16 experts at a time: an eighth of 2400
    "no dissimilarity": {"dissimilarity": 0.0},
    "no knowledge": {"knowledge": False},
}


class Cells(NamedTuple):
    """The rows of a seed, and which of them (N,) bool train and test; those of the gap do neither."""

    rows: CellRows
    train: np.ndarray
    test: np.ndarray


@lru_cache(maxsize=1)
def cells(seed: int) -> Cells:
    """24 cells of each hour."""
    rows = cell_rows(simulate_rain(HOURS, seed), CELLS, seed, hours=KNOWN, reach=REACH)
    return Cells(rows, rows.hour < TRAIN_UNTIL, rows.hour >= TEST_FROM)


def rain_table(seed: int = 0) -> pd.DataFrame:
    """The rows as a table for the command line; ``rain_table(0).to_csv("rain.csv", index=False)``.

    Columns: time (hours), x and y (m), then the 700 features in the system's order ("lift_-1_12": a variable, an hour,
    a neighbour), and precipitation_next (mm).
    """
    import pandas as pd

    rows = cells(seed).rows
    side = 2 * REACH + 1
    names = [f"{v}_{h}_{n}".replace(" ", "-") for v in VARIABLES for h in range(1 - KNOWN, 1) for n in range(side**2)]
    table = pd.DataFrame(rows.values, columns=names)
    for place, (name, values) in enumerate((("time", rows.hour), ("x", 3000 * rows.column), ("y", -3000 * rows.row))):
        table.insert(place, name, values)
    return table.assign(precipitation_next=rows.target)


def forecast(variant: str, seed: int) -> dict[str, float]:
    """Errors (mm) and CSI in the test; for mixtures how alike experts are and whose the variables are."""
    rows, train, test = cells(seed)
    if variant == "persistence":
        return scores(rows.target[test], rows.now[test])
    system = JiangPrecipitation(**SETTINGS, random_state=seed)
    system = system.control(variant if variant in system.controls else "routed")
    system = system.set_params(**VARIANTS.get(variant, {}))
    system.fit(rows.values[train], rows.target[train], groups=rows.hour[train] // BLOCK)
    X, y = rows.values[test], rows.target[test]
    found = scores(y, system.predict(X))
    return found if variant == "dense" else found | interpreted(system, X, y, seed)


def scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Critical success index: hits / (hits + misses + false alarms) of hours with at least WET mm."""
    wet, told = truth >= WET, found >= WET
    csi = float((wet & told).sum() / max((wet | told).sum(), 1))
    return {"rmse": rmse(truth, found), "mae": mae(truth, found), "csi": csi}


def contributions(system: JiangPrecipitation, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E, n) outputs of the experts, scaled, and their weights (E, n)."""
    x = torch.as_tensor(system.x_scaler_.transform(X), dtype=torch.float32)
    with torch.no_grad():
        outputs = system.network_.layer.bank.run_all(x)[..., 0]
        return outputs.double().numpy(), system.network_(x).routings["router"].dense().T.double().numpy()


def interpreted(system: JiangPrecipitation, X: np.ndarray, y: np.ndarray, seed: int) -> dict[str, float]:
    """How alike the experts' outputs are, and where a group's variables count.

    correlation: mean over pairs. own_share: of all the change of the experts' contributions when the columns of a group
    are shuffled between rows, the part that falls on its own experts, mean over groups; less the part that would if all
    experts changed alike. gate_follows: rank correlation over groups of the error that shuffling leaves with the mean
    weight that the router gives to the group's experts, 0 if it weighs all alike.
    """
    outputs, weights = contributions(system, X)
    correlation = np.corrcoef(outputs)
    of_expert = np.array(system.expert_groups())
    start, share, cost, mass = 0, [], [], []
    generator = np.random.default_rng(seed)
    for group, columns in enumerate(system.groups):
        shuffled = X.copy()
        part = slice(start, start + columns)
        shuffled[:, part], start = X[generator.permutation(len(X)), part], start + columns
        others, other_weights = contributions(system, shuffled)
        change = np.abs(others * other_weights - outputs * weights).mean(axis=1)
        mine = of_expert == group
        share.append(change[mine].sum() / change.sum() - mine.mean())
        cost.append(rmse(y, system.predict(shuffled)))
        mass.append(weights[mine].mean())
    return {
        "correlation": float(correlation[np.triu_indices(len(outputs), 1)].mean()),
        "own_share": float(np.mean(share)),
        "gate_follows": float(spearmanr(cost, mass).statistic) if np.ptp(mass) > 1e-6 else 0.0,
    }


CLAIM = RowsClaim(
    system="jiang",
    about="Warm rain over hills, 64 x 64 cells of 3 km, 300 hours, 24 cells an hour with 5 x 5 neighbours of two hours "
    "and 14 variables; hours up to 200 train (a tenth of them, in tens, chooses the step), those from 224 on are the "
    "test. Experts of widths 32 and 16, 2400 steps.",
    variants=("routed", "dense", "uniform", *VARIANTS, "persistence"),
    measure=forecast,
    statements=(
        Compared(
            "experts trained two at a time are less alike than 16 trained together",
            "routed",
            "all together",
            "correlation",
            rope=5.0,
        ),
        Compared("without loss: as good as 16 trained together", "routed", "all together", "rmse", "tie", rope=2.0),
        Compared(
            "better than 16 trained together with as few updates of each",
            "routed",
            "all together, as few updates",
            "rmse",
            rope=2.0,
        ),
        Compared("the dissimilarity loss makes them less alike", "routed", "no dissimilarity", "correlation", rope=5.0),
        Compared("experts of one group each are less alike", "routed", "no knowledge", "correlation", rope=5.0),
        Compared("and forecast as well as experts that see all", "routed", "no knowledge", "rmse", "tie", rope=2.0),
        Compared(
            "the mixture beats one network with as many parameters",
            "routed",
            "dense",
            "rmse",
            rope=2.0,
            reported="significantly better than all baselines (abstract)",
        ),
        Compared("a learned router beats equal weights", "routed", "uniform", "rmse", rope=2.0),
        Compared("it beats persistence", "routed", "persistence", "rmse", rope=2.0),
        Compared("it finds wet hours better than persistence", "routed", "persistence", "csi", "higher", rope=2.0),
        Above("what a group's variables change falls on its experts", "routed", "own_share", bound=0.1),
        Above("the router weighs the groups that count", "routed", "gate_follows", bound=0.0),
    ),
    metric="rmse",
    unit="mm in the next hour",
)
