"""Several systems and controls at once: pairs of one family, Holm's correction, wins, ties and losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from terramoe.errors import ConfigError
from terramoe.evaluation.comparison import ROPE, Comparison, Verdict, compare
from terramoe.evaluation.holm import holm

LEVEL = 0.05


@dataclass(frozen=True)
class Tally:
    """How often a system came out better, equal or worse, and how often nothing could be said."""

    wins: int = 0
    ties: int = 0
    losses: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class Family:
    """Comparisons that are read together.

    Attributes:
        comparisons: by (name of A, name of B). A "better" or "worse" also holds after Holm's correction; where it
            does not, the verdict became "cannot tell".
        p_holm: corrected p-value of the hypothesis of no difference, under the same keys.
    """

    comparisons: dict[tuple[str, str], Comparison]
    p_holm: dict[tuple[str, str], float]

    def tallies(self) -> dict[str, Tally]:
        """Wins, ties and losses of every system, in the order of first appearance."""
        verdicts: dict[str, list[Verdict]] = {}
        for (a, b), found in self.comparisons.items():
            verdicts.setdefault(a, []).append(found.verdict)
            verdicts.setdefault(b, []).append(_mirrored(found.verdict))
        return {name: tally(values) for name, values in verdicts.items()}


def tally(verdicts: Iterable[Verdict]) -> Tally:
    """Count verdicts, of one family or of one pair over several scenes."""
    values = list(verdicts)
    return Tally(*(values.count(kind) for kind in ("better", "tie", "worse", "cannot tell")))


def compare_with_controls(
    system: str,
    counts: Mapping[str, np.ndarray],
    seed_of_row: np.ndarray,
    block_of_row: np.ndarray,
    *,
    rope: float = ROPE,
) -> Family:
    """One system against each of the others: the family is as large as the number of controls.

    Args:
        system: name of the one; a key of ``counts``.
        counts: (rows, K, K) confusion counts by name, row for row the same block of the same seed.
        seed_of_row, block_of_row, rope: see ``compare``.

    Raises:
        ConfigError: the system has no counts.
    """
    if system not in counts:
        raise ConfigError(f"there are no counts of '{system}'", where="comparison", fix=f"use one of {list(counts)}")
    pairs = [(system, other) for other in counts if other != system]
    return compare_pairs(pairs, counts, seed_of_row, block_of_row, rope=rope)


def compare_all(
    counts: Mapping[str, np.ndarray], seed_of_row: np.ndarray, block_of_row: np.ndarray, *, rope: float = ROPE
) -> Family:
    """Every system against every other, as one family; arguments as in ``compare_with_controls``."""
    return compare_pairs(list(combinations(counts, 2)), counts, seed_of_row, block_of_row, rope=rope)


def compare_pairs(
    pairs: Sequence[tuple[str, str]],
    counts: Mapping[str, np.ndarray],
    seed_of_row: np.ndarray,
    block_of_row: np.ndarray,
    *,
    rope: float = ROPE,
) -> Family:
    """The given pairs (name of A, name of B), as one family; other arguments as in ``compare_with_controls``."""
    found = {(a, b): compare(a, b, counts[a], counts[b], seed_of_row, block_of_row, rope=rope) for a, b in pairs}
    corrected = holm(np.array([comparison.p_value for comparison in found.values()]))
    p_holm = dict(zip(found, corrected.tolist(), strict=True))
    return Family({pair: _corrected(c, p_holm[pair], len(pairs)) for pair, c in found.items()}, p_holm)


def _corrected(comparison: Comparison, p_holm: float, tests: int) -> Comparison:
    """Take back a "better" or "worse" that does not stand the correction."""
    if comparison.verdict not in ("better", "worse") or p_holm < LEVEL:
        return comparison
    sentence = f"Cannot tell: alone it would read '{comparison.sentence}', but not as one of {tests} comparisons."
    return replace(comparison, verdict="cannot tell", sentence=sentence)


def _mirrored(verdict: Verdict) -> Verdict:
    return {"better": "worse", "worse": "better"}.get(verdict, verdict)
