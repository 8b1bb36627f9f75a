"""A claim: the smallest honest test of what is distinctive in a system, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from terramoe.data import Scene
from terramoe.experiments.plan import Plan
from terramoe.experiments.study import Measure, Variant

Expected = Literal["better", "tie"]


@dataclass(frozen=True)
class Statement:
    """One variant against another.

    Attributes:
        text: the statement, as a sentence.
        a, b: names of variants.
        expected: "better": A is better than B by more than the region of practical equivalence; "tie": within it.
        reported: the paper's own figure for it, with its protocol, or "".
    """

    text: str
    a: str
    b: str
    expected: Expected = "better"
    reported: str = ""


@dataclass(frozen=True)
class MeasuredStatement:
    """A number measured on every run of a variant, whose mean over seeds must lie above a bound.

    Attributes:
        text, reported: see ``Statement``.
        variant: its name. measure: name in ``RunRecord.measures``. above: the bound.
        against: another variant: the same measure of its run with the same seed is subtracted.
    """

    text: str
    variant: str
    measure: str
    above: float = 0.0
    reported: str = ""
    against: str = ""


@dataclass(frozen=True)
class Claim:
    """What a system's paper says is distinctive, and how it is tested here.

    Attributes:
        system: name in the registry.
        about: the design of the test, in a sentence or two.
        scene: makes the data. plan: of the trainings.
        variants: what is trained. statements: what is asked.
        measure: what else to measure on each run, or None.
        rope: points of overall accuracy that make no difference, fixed beforehand.
        seen: what of its results was seen before it was as it is now, or "".
    """

    system: str
    about: str
    scene: Callable[[], Scene]
    plan: Plan
    variants: tuple[Variant, ...]
    statements: tuple[Statement | MeasuredStatement, ...]
    measure: Measure | None = None
    rope: float = 0.5
    seen: str = ""
