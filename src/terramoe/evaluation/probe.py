"""What does the routing follow: sensor, place, season, class, or nothing that is known?

The mutual information of experts with each candidate factor is set against what chance gives. Three traps are avoided:

- All pixels of a window share one decision, and neighbouring windows are alike. So chance moves the whole map of
  experts, or exchanges those of whole acquisitions, and never moves single pixels or windows.
- Factors go together: a sensor flies over one region, a crop grows in another. So a factor counts only if it still
  tells something about the experts once each other factor is known (conditional information).
- Many factors are tried. So p-values are corrected (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from terramoe.errors import DataError
from terramoe.evaluation.holm import holm
from terramoe.evaluation.information import MapShift, UnitShuffle, codes, information, largest, nats
from terramoe.evaluation.intervals import Interval

LEVEL = 0.05


@dataclass(frozen=True)
class Factor:
    """A candidate cause.

    Attributes:
        values: (N,) of each item or pixel: class, sensor, month, region ...
        units: (N,) ids of groups that may be taken as independent of each other in this factor, and that hold whole
            routed items: spatial blocks for class or place, acquisitions for season or sensor.
        positions: for factors that lie on a map, as class and place do: (N, 2) row and column, or (N, 3) image, row
            and column. Chance then moves the map of experts; without positions it exchanges those of units.
    """

    values: np.ndarray
    units: np.ndarray
    positions: np.ndarray | None = None

    def chance(self) -> UnitShuffle | MapShift:
        """How experts look that have nothing to do with this factor."""
        return UnitShuffle(self.units) if self.positions is None else MapShift(self.positions)


@dataclass(frozen=True)
class Finding:
    """One factor and the routing.

    Attributes:
        information: mutual information of experts and factor, in nats.
        share: information over the most it could be, with 95 % interval over units: 1 if one determines the other.
        chance: mean share and its 95th percentile when the factor has nothing to do with the routing.
        p_value: share of such draws that reach the information; corrected for the number of factors.
        given: for each other factor that goes with the routing too: share of information left once that factor is
            known, and its p-value, corrected for the number of such questions.
    """

    information: float
    share: Interval
    chance: tuple[float, float]
    p_value: float
    given: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Probe:
    """What the routing follows.

    Attributes:
        findings: by factor.
        follows: factors that tell about the experts whatever other factor is known.
        along: factors that go with the routing but add nothing once another is known: name of the factor -> of those.
        sentence: the verdict for people.
    """

    findings: dict[str, Finding]
    follows: tuple[str, ...]
    along: dict[str, tuple[str, ...]]
    sentence: str


def probe_routing(experts: np.ndarray, factors: Mapping[str, Factor], *, draws: int = 499, seed: int = 0) -> Probe:
    """Ask for each factor whether the routing follows it.

    Args:
        experts: (N,) ids of the top expert; N items or pixels in reading order.
        factors: by name.
        draws: of chance for each p-value, and resamples of units for each interval.

    Raises:
        DataError: a factor of another length than the experts.
    """
    for name, factor in factors.items():
        if not len(experts) == len(factor.values) == len(factor.units):
            raise DataError(
                f"{len(experts)} experts, {len(factor.values)} values, {len(factor.units)} units",
                where=f"factor '{name}'",
                fix="give one of each per item",
            )
    generator = np.random.default_rng(seed)
    expert = codes(experts)
    values = {name: codes(factor.values) for name, factor in factors.items()}
    shuffles = {name: factor.chance() for name, factor in factors.items()}
    alone = {name: _test(expert, values[name], None, shuffles[name], draws, generator) for name in factors}
    p_alone = _corrected({name: test.p_value for name, test in alone.items()})
    suspects = [name for name in factors if p_alone[name] < LEVEL]
    pairs = {
        (name, other): _test(expert, values[name], values[other], shuffles[name], draws, generator)
        for name in suspects
        for other in suspects
        if name != other
    }
    p_pairs = _corrected({pair: test.p_value for pair, test in pairs.items()})
    findings = {
        name: Finding(
            information=alone[name].information,
            share=_interval(expert, values[name], codes(factor.units), alone[name].share, draws, generator),
            chance=alone[name].chance,
            p_value=p_alone[name],
            given={other: (pairs[name, other].share, p_pairs[name, other]) for n, other in pairs if n == name},
        )
        for name, factor in factors.items()
    }
    lost = {name: tuple(o for o, (_, p) in findings[name].given.items() if p >= LEVEL) for name in suspects}
    follows = tuple(name for name in suspects if not lost[name])
    along = {name: others for name, others in lost.items() if others}
    return Probe(findings, follows, along, _sentence(findings, follows, along))


@dataclass(frozen=True)
class _Test:
    information: float
    share: float
    chance: tuple[float, float]
    p_value: float


def _test(
    expert: np.ndarray,
    factor: np.ndarray,
    given: np.ndarray | None,
    shuffle: UnitShuffle | MapShift,
    draws: int,
    generator: np.random.Generator,
) -> _Test:
    """Information against that of chance, within the groups of another factor if there is one."""
    found = information(expert, factor, given)
    by_chance = np.array([information(expert[shuffle.draw(generator)], factor, given) for _ in range(draws)])
    most = largest(expert, factor, given)
    shares = by_chance / most if most > 0 else np.zeros(draws)
    return _Test(
        information=found,
        share=found / most if most > 0 else 0.0,
        chance=(float(shares.mean()), float(np.percentile(shares, 95))),
        p_value=float((1 + (by_chance >= found - 1e-12).sum()) / (draws + 1)),
    )


def _interval(
    expert: np.ndarray, factor: np.ndarray, unit: np.ndarray, share: float, draws: int, generator: np.random.Generator
) -> Interval:
    """Share of information over units drawn with replacement.

    A resample holds fewer different units than the data and looks more orderly, so its shares lie too high on
    average; they are moved down by that much.
    """
    experts, values, units = (int(column.max(initial=0)) + 1 for column in (expert, factor, unit))
    cells = np.bincount((unit * experts + expert) * values + factor, minlength=units * experts * values)
    tables = cells.reshape(units, experts * values).astype(np.float64)
    times = generator.multinomial(units, np.full(units, 1 / units), size=draws)
    shares = np.array([_share_of(table.reshape(experts, values)) for table in times @ tables])
    low, high = np.percentile(shares + share - shares.mean(), [2.5, 97.5])
    return Interval(share, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))


def _share_of(table: np.ndarray) -> float:
    """Information of an (experts, values) table over the most it could be."""
    experts, values = nats(table.sum(1)), nats(table.sum(0))
    most = min(experts, values)
    return (experts + values - nats(table)) / most if most > 0 else 0.0


def _corrected(p_values: dict) -> dict:
    return dict(zip(p_values, holm(np.array(list(p_values.values()))).tolist(), strict=True))


def _sentence(findings: dict[str, Finding], follows: tuple[str, ...], along: dict[str, tuple[str, ...]]) -> str:
    if not follows and not along:
        return f"The routing follows none of {', '.join(findings)}: noise, or something that was not asked for."
    described = {
        name: f"{name} ({100 * finding.share.value:.0f} % of the most it could)" for name, finding in findings.items()
    }
    parts = []
    if follows:
        parts.append(f"The routing follows {' and '.join(described[name] for name in follows)}")
    else:
        parts.append("The routing follows something, but what is not settled")
    for name, others in along.items():
        twins = [other for other in others if name in along.get(other, ())]
        if not twins:
            parts.append(f"{described[name]} goes along and adds nothing to {' or '.join(others)}")
        elif name < min(twins):  # said once
            parts.append(f"{' and '.join(described[twin] for twin in [name, *twins])} cannot be told apart here")
    silent = [name for name in findings if name not in follows and name not in along]
    if silent:
        parts.append(f"{', '.join(silent)}: no more than chance")
    return "; ".join(parts) + "."
