"""Do the tests themselves tell the truth? Simulated errors and routings, the real comparison, audit and probe.

    python -m terramoe.experiments.null

Equal systems must rarely be called different, a planted difference must be found, a leaky split must be flagged, and
the probe must name a planted cause and stay silent where none was planted. No network is trained.

What it says about the size of a study, from 400 simulations of ``ErrorWorld`` each, for a system that is 2 points
better. The power is given for the weaker claim, that it is better at all (p < 0.05), and for the stronger one, the
verdict "better" by more than half a point. Equal systems had p < 0.05 in 1.5 to 6.5 % of the cases, and a verdict
"better" or "worse" in at most 2.2 %.

    each seed tests all blocks                     each seed tests one of three folds
     3 seeds,  64 blocks   0.48   0.32              3 seeds, 144 blocks   0.43   0.30
     5 seeds, 100 blocks   0.80   0.57              9 seeds, 144 blocks   0.94   0.68
     5 seeds, 144 blocks   0.84   0.61             15 seeds, 144 blocks   0.99   0.87
    10 seeds, 100 blocks   0.96   0.79              9 seeds, 256 blocks   0.97   0.83
     8 seeds, 144 blocks   0.97   0.85              9 seeds, 400 blocks   0.99   0.92

A bootstrap over the blocks alone calls equal systems different in 9 to 24 % of such cases (150 simulations each). And
blocks must be wider than errors are alike: with 16 pixels and a ``reach`` of 2, 4, 5, 8 pixels, p < 0.05 came up in 5,
5, 6 and 10 % of 500 comparisons of equal systems (five seeds, 100 blocks).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from terramoe.data import BlockSplit, RandomSplit, Scene, audit_split
from terramoe.evaluation.comparison import Comparison, compare
from terramoe.evaluation.family import LEVEL, compare_with_controls
from terramoe.evaluation.probe import probe_routing
from terramoe.experiments.simulated_errors import ErrorWorld, simulate_errors
from terramoe.experiments.simulated_routing import candidate_factors, simulate_routing

EFFECT = 2.0  # points that a study should be able to find
RECOMMENDED = ErrorWorld(blocks=12, seeds=8)
CONTROLS = 4  # of the family that is simulated
GUARD = 4  # pixels: patch radius of the audited splits


def comparisons(world: ErrorWorld, effect: float, count: int, seed: int = 0) -> Iterator[Comparison]:
    """Compare a system with an effect and one without, ``count`` times."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        errors = simulate_errors(world, [effect, 0.0], generator)
        yield compare("A", "B", *errors.counts, errors.seed_of_row, errors.block_of_row)


def false_positive_rate(world: ErrorWorld, count: int, seed: int = 0) -> float:
    """Share of comparisons of equal systems with p < 0.05; a verdict "better" or "worse" is rarer still."""
    return float(np.mean([c.p_value < LEVEL for c in comparisons(world, 0.0, count, seed)]))


def power(world: ErrorWorld, count: int, seed: int = 0) -> float:
    """Share of comparisons with a system 2 points better in which the verdict is "better": by more than the region of
    practical equivalence."""
    return float(np.mean([c.verdict == "better" for c in comparisons(world, EFFECT, count, seed)]))


def family_error_rate(world: ErrorWorld, count: int, seed: int = 0) -> float:
    """Share of families, a system against equal controls, in which any corrected p-value is below 0.05."""
    generator = np.random.default_rng(seed)
    alarms = 0
    for _ in range(count):
        errors = simulate_errors(world, [0.0] * (1 + CONTROLS), generator)
        names = ("system", *(f"control {number}" for number in range(CONTROLS)))
        counts = dict(zip(names, errors.counts, strict=True))
        family = compare_with_controls("system", counts, errors.seed_of_row, errors.block_of_row)
        alarms += min(family.p_holm.values()) < LEVEL
    return alarms / count


def leak_flagged(seed: int = 0) -> bool:
    """Is a random split of a patchy scene flagged, and a block split with a guard band not?"""
    generator = np.random.default_rng(seed)
    labels = np.kron(generator.integers(1, 4, (16, 16)), np.ones((8, 8), dtype=np.int64))
    image = generator.normal(size=(4, 4))[:, labels] + 0.3 * generator.normal(size=(4, *labels.shape))
    names = ("a", "b", "c")
    scene = Scene("simulated", image.astype(np.float32), labels > 0, labels, (1, 2, 3), names)
    random, block = (
        audit_split(scene, next(splitter.masks(labels)), radius=GUARD)
        for splitter in (RandomSplit(seed=seed), BlockSplit(block=16, guard=GUARD, seed=seed))
    )
    return random.leaks and not block.leaks


def probe_rates(count: int, seed: int = 0) -> tuple[float, float]:
    """How often the planted cause alone is named, and how often any is named where none was planted."""
    generator = np.random.default_rng(seed)
    found = alarms = 0
    for number in range(count):
        factors = candidate_factors(generator)
        cause = list(factors)[number % len(factors)]
        routing = simulate_routing(factors[cause].values, generator)
        found += probe_routing(routing, factors, draws=199, seed=number).follows == (cause,)
        silent = probe_routing(simulate_routing(None, generator), factors, draws=199, seed=number)
        alarms += bool(silent.follows or silent.along)
    return found / count, alarms / count


def run_null(
    count: int = 200, world: ErrorWorld = RECOMMENDED, say: Callable[[str], None] = print
) -> dict[str, float | bool]:
    """All of it, as one record; ``say`` hears how far it is."""
    study = f"{world.seeds} seeds, {world.blocks**2} blocks"
    say(f"equal systems, {study}: {count} comparisons")
    false_positives = false_positive_rate(world, count, seed=1)
    say(f"  {false_positives:.3f} called different")
    folded = replace(world, folds=3)
    say(f"  {false_positive_rate(folded, count, seed=2):.3f} if each seed tests its own third of the blocks")
    say(f"  {family_error_rate(world, count // 2, seed=3):.3f} of families of {CONTROLS} controls, after correction")
    say(f"a system {EFFECT:g} points better, {study}: {count} comparisons")
    found = power(world, count, seed=4)
    say(f"  {found:.3f} called better")
    say("audit of a random and of a block split")
    flagged = leak_flagged()
    say(f"routing with and without a planted cause: {count // 2} of each")
    named, alarms = probe_rates(count // 2)
    return {
        "false_positive_rate": false_positives,
        "power": found,
        "leak_flagged": flagged,
        "probe_found": named,
        "probe_false_alarms": alarms,
    }


if __name__ == "__main__":
    print(json.dumps(run_null(say=lambda text: print(text, file=sys.stderr, flush=True))))
