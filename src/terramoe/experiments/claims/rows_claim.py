"""A claim about a system that is no network over scenes: what is measured, variant by variant and seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Compared:
    """One variant against another by a measure, as the change in percent of B's value.

    Attributes:
        text: the statement, as a sentence.
        a, b: names of variants. metric: name of the measure.
        expected: "lower" or "higher": A's value is, by more than the region of practical equivalence; "tie": within it.
        rope: percent of B's value that make no difference, fixed beforehand.
        reported: the paper's own figure for it, with its protocol, or "".
    """

    text: str
    a: str
    b: str
    metric: str
    expected: Literal["lower", "higher", "tie"] = "lower"
    rope: float = 1.0
    reported: str = ""


@dataclass(frozen=True)
class Above:
    """A measure of a variant whose mean over seeds must lie above a bound."""

    text: str
    variant: str
    metric: str
    bound: float = 0.0
    reported: str = ""


@dataclass(frozen=True)
class RowsClaim:
    """What a system's paper says is distinctive, and how it is tested here.

    Attributes:
        system: name in the registry.
        about: the design of the test, in a sentence or two.
        variants: what is trained; "routed" is the system, and controls bear the names of ``systems.CONTROLS``.
        measure: (variant, seed) -> measures by name; makes its data from the seed, the same for every variant.
        statements: what is asked.
        metric: the measure by which the controls are compared, with its unit in words.
        higher_is_better: of that measure.
        seeds: how many. first_seed: the first of them, beyond those that were seen while the claim was designed.
        seen: what of its results was seen before it was as it is now, or "".
    """

    system: str
    about: str
    variants: tuple[str, ...]
    measure: Callable[[str, int], Mapping[str, float]]
    statements: tuple[Compared | Above, ...]
    metric: str
    unit: str = ""
    higher_is_better: bool = False
    seeds: int = 5
    first_seed: int = 0
    seen: str = ""
