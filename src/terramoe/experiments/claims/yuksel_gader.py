"""Yuksel and Gader: does a mixture of HMM experts find the soil by itself, and does it detect mines better for it?

Alarms of a simulated ground-penetrating radar over mines and over rocks, voids and roots, in dry sand and in wet clay;
nobody says which soil it is. A sequence is what the traverse says about edges in each of 15 traces.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score, roc_curve

from terramoe.data.simulators.mines import edge_features, mine_alarms
from terramoe.data.worlds.fields import stream
from terramoe.evaluation.information import information, largest
from terramoe.experiments.claims.rows_claim import Above, Compared, RowsClaim
from terramoe.mixtures import MixtureOfExpertsClassifier
from terramoe.systems.yuksel_gader import YukselGaderHMM

ALARMS = 300  # to train on, and as many again to test on
DETECTION = 0.9  # share of the mines that must be found
SHUFFLES, CHANCE = 199, 0.95
FEATURES = 4  # energies of echoes, changes, rising and falling edges


class Alarms(NamedTuple):
    """Sequences (n, T, 4), 1 for a mine else 0 (n,), soil (n,)."""

    sequences: np.ndarray
    mine: np.ndarray
    soil: np.ndarray


@lru_cache(maxsize=1)
def alarms(seed: int) -> tuple[Alarms, Alarms]:
    """To train on and to test on; energies span decades, so their logarithms are taken."""
    found = mine_alarms(2 * ALARMS, seed)
    sequences = np.log(np.maximum(edge_features(found.scans), 1e-12))
    parts = (slice(ALARMS), slice(ALARMS, None))
    return tuple(Alarms(sequences[part], found.mine[part], found.soil[part]) for part in parts)


def model_of(variant: str, seed: int) -> YukselGaderHMM | MixtureOfExpertsClassifier:
    """The system, its controls, one pair of HMMs in two more forms, or a mixture that knows no sequence."""
    routed = YukselGaderHMM(FEATURES, random_state=seed)
    return {
        "routed": routed,
        "dense ergodic": routed.control("dense").set_params(topology="ergodic"),
        "one pair": YukselGaderHMM(FEATURES, n_experts=1, random_state=seed),
        "told the soil": YukselGaderHMM(FEATURES, n_experts=1, random_state=seed),  # one in each
        "plain mixture": MixtureOfExpertsClassifier(routed.n_experts, random_state=seed),
    }.get(variant) or routed.control(variant)


def rows_of(variant: str, sequences: np.ndarray) -> np.ndarray:
    """(n, T, 4) -> (n, 4) means over time for the plain mixture, else (n, T * 4)."""
    return sequences.mean(axis=1) if variant == "plain mixture" else sequences.reshape(len(sequences), -1)


def false_alarms(mine: np.ndarray, score: np.ndarray) -> float:
    """Share of what is no mine (%) that sounds an alarm at the threshold that finds 90 % of the mines."""
    alarm, found, _ = roc_curve(mine, score, drop_intermediate=False)
    return 100 * float(alarm[np.argmax(found >= DETECTION)])


def soil_found(gate: np.ndarray, soil: np.ndarray, seed: int) -> dict[str, float]:
    """Mutual information of chosen expert and true soil as a share of the most there could be, %, and that over what
    95 % of shuffled choices have.
    """
    most, draw = max(largest(gate, soil), 1e-12), stream(seed, "shuffled gate")
    shuffled = [information(draw.permutation(gate), soil) / most for _ in range(SHUFFLES)]
    share = information(gate, soil) / most
    return {"soil_share": 100 * share, "soil_above_chance": 100 * (share - float(np.quantile(shuffled, CHANCE)))}


def measure(variant: str, seed: int) -> Mapping[str, float]:
    """Area under the ROC curve (%), false alarms at 90 % detection (%), and what the gate knows of the soil (%)."""
    train, test = alarms(seed)
    x, score = rows_of(variant, test.sequences), np.empty(len(test.mine))
    parts = [(train.soil == s, test.soil == s) for s in (0, 1)] if variant == "told the soil" else [(slice(None),) * 2]
    for learns, asked in parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = model_of(variant, seed).fit(rows_of(variant, train.sequences[learns]), train.mine[learns])
        score[asked] = model.predict_proba(x[asked])[:, 1]
    found = {"auc": 100 * roc_auc_score(test.mine, score), "false_alarms": false_alarms(test.mine, score)}
    if variant in ("routed", "random", "plain mixture"):
        routing = model.routing(x)
        routing = routing["contexts"] if isinstance(routing, dict) else routing
        found.update(soil_found(routing.dense().argmax(1).numpy(), test.soil, seed))
    return found


CLAIM = RowsClaim(
    system="yuksel-gader",
    about=f"Simulated radar alarms, half over mines, in two soils: {ALARMS} to train on and {ALARMS} to test on, 15 "
    "traces of 4 edge features. 'dense' is one pair of HMMs of as many states as gate and experts have in all, 'one "
    "pair' has as many as an expert, 'told the soil' is such a pair for each true soil, as from a perfect gate (added "
    "after the first run). A seed is a new field.",
    variants=("routed", "dense", "uniform", "random", "dense ergodic", "one pair", "told the soil", "plain mixture"),
    measure=measure,
    statements=(
        Compared("the mixture ranks alarms better than one pair of HMMs", "routed", "one pair", "auc", "higher"),
        Compared("the mixture ranks alarms better than one pair as large", "routed", "dense", "auc", "higher"),
        Compared("so it does than one as large and free to return", "routed", "dense ergodic", "auc", "higher"),
        Compared("the mixture ranks alarms better than a plain one", "routed", "plain mixture", "auc", "higher"),
        Compared("a learned gate beats equal weights", "routed", "uniform", "auc", "higher"),
        Compared("a learned gate beats a drawn expert", "routed", "random", "auc", "higher"),
        Compared("fewer false alarms than one pair of HMMs", "routed", "one pair", "false_alarms", rope=5.0),
        Compared("fewer false alarms than a plain mixture", "routed", "plain mixture", "false_alarms", rope=5.0),
        Compared("knowing the soil would help a pair of HMMs", "told the soil", "one pair", "auc", "higher"),
        Above("the gate finds the soil that nobody labelled", "routed", "soil_above_chance"),
    ),
    metric="auc",
    unit="%",
    higher_is_better=True,
)
