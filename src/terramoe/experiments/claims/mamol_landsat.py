"""MaMOL on a real optical scene with thermal bands: clear ground, thin cirrus and cloud when a sensor is missing.

The same questions as in ``mamol``: is it no worse than an MLP whose training drops sensors, and are the routed adapters
worth their place?
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from terramoe.data import Scene, open_benchmark
from terramoe.experiments.claims.claim import Claim
from terramoe.experiments.claims.mamol import RATE, REDUCED, SMALL, VARIANTS, beside_mlp, statements
from terramoe.experiments.plan import Plan, SplitSettings
from terramoe.training import TrainSettings

STEP = 6  # pixels from one that is kept to the next
LEFT_OUT = ("no shared", "no static", "shuffled codes")  # variants, for time


def thinned_clouds() -> Scene:
    """Every sixth pixel of every sixth row of the benchmark landsat8-clouds: 101 x 105 pixels, 180 m apart."""
    scene, kept = open_benchmark("landsat8-clouds"), (slice(None, None, STEP), slice(None, None, STEP))
    return replace(
        scene,
        image=scene.image[:, *kept].copy(),
        valid=scene.valid[kept].copy(),
        labels=scene.labels[kept].copy(),
        transform=None,
    )


REAL_LANDSAT = Claim(
    system="mamol",
    about="Landsat 8, every sixth pixel of a scene with clouds, 101 x 105 pixels, 8 reflective and 2 thermal bands; "
    "clear, thin cirrus, cloud, by the quality band. Blocks of 16 pixels with a guard of 3, five folds, 250 + 350 "
    "steps with 70 % of the pixels lacking a sensor. Reduced: patches of 3 x 3 pixels, a transformer of width 32 "
    "trained here.",
    scene=thinned_clouds,
    plan=Plan(
        model={**SMALL, "width": 32, "stem_width": 32, "patch": 3},
        train=TrainSettings(
            seed=10, steps=350, pretrain_steps=250, batch=64, missing_rate=RATE, crop=64, save_every=1000
        ),
        split=SplitSettings(kind="block", folds=5, block=16, guard=3),
        seeds=5,
        reduced=REDUCED,
    ),
    variants=tuple(v for v in VARIANTS if v.name not in LEFT_OUT),
    statements=tuple(
        s for s in statements(("reflective", "thermal"), measure="accuracy_at_70") if s.against not in LEFT_OUT
    ),
    measure=partial(beside_mlp, rate=RATE),
    seen="The first seed, also with more steps or variants, before these were cut for time.",
)
