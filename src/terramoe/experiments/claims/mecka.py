"""MECKA: do classifiers of several sources, none of which knows all classes, help each other on an unlabelled target?

Eight kinds of tile under four cameras. Each of three sources has labels of five kinds; the fourth camera is the target,
whose tiles are there without labels, and other tiles of which test.
"""

from __future__ import annotations

import numpy as np
import torch

from terramoe.data import Scene, Split
from terramoe.data.worlds.tiles import coverage, scene_tiles
from terramoe.experiments.assess import Assessment
from terramoe.experiments.claims.claim import Claim, MeasuredStatement, Statement
from terramoe.experiments.plan import Plan, SplitSettings
from terramoe.experiments.study import Variant
from terramoe.training import TrainSettings

TILE, COUNT = 17, 40
SEED = 1  # of the scene: that of seed 0 served to choose the completions, so its test tiles are spent
KNOWN = coverage()[:-1]  # (sources, classes) bool
COVERAGE = tuple("".join("01"[int(known)] for known in row) for row in KNOWN)
ALONE = {1: (0, -1, -1), 2: (-1, 0, -1), 3: (-1, -1, 0)}


def heads_alone(assessment: Assessment, scene: Scene, split: Split) -> dict[str, float]:
    """Accuracy of single heads on test tiles, as shares: of all classes, and of those that a head's sources lack."""
    predictor = assessment.predictor
    batch = {
        "image": torch.from_numpy(predictor.normaliser(scene.image))[None],
        "valid": torch.from_numpy(scene.valid)[None],
        "wanted": torch.from_numpy(split.test)[None],
    }
    system = predictor.system
    with torch.inference_mode():
        said = system.views(system(batch).extras["features"]).argmax(-1).numpy()
    truth = scene.labels[split.test] - 1
    known = np.array(system.config.known)[:, truth]
    right = said == truth
    lacking = [row[~knows].mean() for row, knows in zip(right, known, strict=True) if not knows.all()]
    return {"best_head": float(right.mean(1).max()), "missing_classes": float(np.mean(lacking)) if lacking else 0.0}


CLAIM = Claim(
    system="mecka",
    about="Tiles of 17 x 17 pixels and 3 bands, 8 classes, three sources with 5 of them each and a target, 40 tiles of "
    "a class and source, half as many of the target to adapt to and as many to test. A small network, 500 steps on the "
    "sources, then 250 with the target. A dense twin is one head for the pooled sources. All heads answer with equal "
    "weight, so the uniform and the random control are the system itself and are left out, and equal parameters are "
    "equal compute.",
    scene=lambda: scene_tiles(TILE, COUNT, SEED),
    plan=Plan(
        system="mecka",
        model={"patch": TILE, "widths": (8, 16, 32), "head_width": 64, "coverage": COVERAGE},
        train=TrainSettings(steps=250, pretrain_steps=500, batch=24, unlabelled=24, save_every=250),
        split=SplitSettings(kind="official"),
        seeds=5,
        reduced=("tiles of 17 x 17 pixels", "three levels of 8, 16 and 32 channels"),
    ),
    variants=(
        Variant("mecka"),
        Variant("mecka", "average", model={"consistency": 0.0}),
        Variant("mecka", "extractor taught too", model={"teach_extractor": True}),
        Variant("mecka", "pooled sources", "dense"),
        *(Variant("mecka", f"source {s} alone", model={"head_of_source": heads}) for s, heads in ALONE.items()),
    ),
    statements=(
        Statement("heads that teach each other beat their plain average", "routed", "average"),
        Statement("a head for each source beats one for the pooled sources", "average", "pooled sources"),
        Statement("teaching the heads alone beats teaching the extractor too", "routed", "extractor taught too"),
        *(Statement(f"the average of all heads beats source {s} alone", "average", f"source {s} alone") for s in ALONE),
        MeasuredStatement(
            "taught heads recognise classes that their source lacks",
            "routed",
            "missing_classes",
            above=0.25,
            against="average",
        ),
        MeasuredStatement("the best single head gains by being taught", "routed", "best_head", against="average"),
    ),
    measure=heads_alone,
)
