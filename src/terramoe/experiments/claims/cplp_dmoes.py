"""CPLP-DMoEs: do several ways of fusing beat each alone, and candidate labels beat hard pseudo-labels?

Two classes differ in their spectrum, two in their height, and two only in the exclusive or of both, which no sum of
what the sensors say can tell. Few pixels are labelled; the others of the training area come without label.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from terramoe.data import BlockSplit, Scene, Split
from terramoe.data.benchmarks import open_benchmark
from terramoe.data.worlds.fields import stream
from terramoe.data.worlds.fusion import xor_fusion
from terramoe.experiments.assess import Assessment
from terramoe.experiments.claims.claim import Claim, MeasuredStatement, Statement
from terramoe.experiments.plan import Plan, SplitSettings
from terramoe.experiments.study import Variant
from terramoe.training import TrainSettings

SYSTEM = "cplp-dmoes"
SIZE, FOLDS, BLOCK, GUARD = 96, 3, 16, 4
LABELS = 10  # pixels of each class that are labelled
SEED = 1  # of the scene; settings were chosen on another
EXCLUSIVE = slice(4, 6)  # the classes, from 0, that only the exclusive or tells apart
TRAIN, UNUSED, TEST = 1, 2, 3


def few_labels(scene: Scene, labels: int = LABELS, seed: int = 0) -> Scene:
    """The scene with an official split: a third of its blocks tests, and so many pixels of each class train.

    All others lie in the guard or train without label.
    """
    split = next(BlockSplit(FOLDS, BLOCK, GUARD).masks(scene.labels))
    generator = stream(seed, "few labels")
    official = np.where(split.test, TEST, UNUSED)
    for value in range(1, scene.classes + 1):
        places = np.flatnonzero(split.train & (scene.labels == value))
        official.flat[generator.permutation(places)[:labels]] = TRAIN
    return replace(scene, official=official.astype(np.int64))


def exclusive_accuracy(assessment: Assessment, scene: Scene, split: Split) -> dict[str, float]:
    """Share of test pixels of the two exclusive classes that are right."""
    counts = assessment.counts.sum(0)
    return {"exclusive_accuracy": float(counts.diagonal()[EXCLUSIVE].sum() / max(counts[EXCLUSIVE].sum(), 1))}


ALONE = tuple(
    Variant(SYSTEM, f"{name} alone", "uniform", model={"fusions": (name,), "top_k": 1})
    for name in ("concat", "sum", "product")
)
VARIANTS = (
    Variant(SYSTEM),
    *ALONE,
    Variant(SYSTEM, "uniform", "uniform"),
    Variant(SYSTEM, "random", "random"),
    Variant(SYSTEM, "dense", "dense"),
    Variant(SYSTEM, "wide", "wide"),
    Variant(SYSTEM, "hard labels", model={"pseudo": "hard"}),
    Variant(SYSTEM, "labels only", model={"pseudo": "none"}),
)
STATEMENTS = (
    *(Statement(f"chosen fusions beat {variant.name}", "routed", variant.name) for variant in ALONE),
    Statement("chosen fusions beat the average of all", "routed", "uniform"),
    Statement("chosen fusions beat fusions drawn at random", "routed", "random"),
    Statement("chosen fusions beat one network of equal active size", "routed", "dense"),
    Statement("chosen fusions beat one network of equal size", "routed", "wide"),
    Statement("candidate labels beat hard pseudo-labels", "routed", "hard labels"),
    Statement("patches without label help", "routed", "labels only"),
)
PLAN = Plan(
    model={"patch": 7, "width": 32, "depth": 1},
    train=TrainSettings(seed=10, steps=300, batch=24, unlabelled=48, crop=32, learning_rate=2e-3, save_every=300),
    split=SplitSettings(kind="official"),
    seeds=5,
    reduced=("width 32 instead of 64, patches of 7 instead of 11, one convolution",),
)

CLAIM = Claim(
    system=SYSTEM,
    about=f"Simulated: three pairs of classes told apart by spectrum, height, and their exclusive or; {SIZE} x {SIZE} "
    f"pixels, 32 bands and a height. A third of the {BLOCK} x {BLOCK} blocks tests, with a guard of {GUARD}; {LABELS} "
    "pixels a class are labelled. Reduced sizes, 300 steps.",
    scene=lambda: few_labels(xor_fusion(SIZE, SEED), seed=SEED),
    plan=PLAN,
    variants=VARIANTS,
    statements=(
        *STATEMENTS,
        MeasuredStatement(
            "on the exclusive classes chosen fusions beat the sum",
            "routed",
            "exclusive_accuracy",
            against="sum alone",
        ),
    ),
    measure=exclusive_accuracy,
)

REAL_CLAIM = Claim(
    system=SYSTEM,
    about=f"MUUFL Gulfport, 90 x 90 pixels, 64 bands and 5 rasters of height. A third of the {BLOCK} x {BLOCK} blocks "
    f"tests, with a guard of {GUARD}; {LABELS} pixels a class are labelled. Reduced sizes, 300 steps.",
    scene=lambda: few_labels(open_benchmark("muufl"), seed=SEED),
    plan=PLAN,
    variants=VARIANTS,
    statements=STATEMENTS,
)
