"""MixtureRS: do sparse experts in place of feed-forward networks help to fuse spectra with heights?

The scene has three pairs of classes: one pair differs in its spectra, one in its heights, one in neither alone. Asked
is also how much is lost where the height raster lies one or two pixels off, and whether the LiDAR's token and the
hyperspectral ones choose different experts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from terramoe.data import Scene, Split, open_benchmark
from terramoe.data.worlds.fusion import xor_fusion
from terramoe.experiments.assess import Assessment
from terramoe.experiments.claims.claim import Claim, MeasuredStatement, Statement
from terramoe.experiments.plan import Plan, SplitSettings
from terramoe.experiments.study import Variant
from terramoe.inference import predict_array
from terramoe.training import TrainSettings

OFFSETS = (1, 2)  # pixels
DIFFERENT = 0.25  # share of the LiDAR tokens' choices that would have to change to be those of the other tokens


def fusion_measures(assessment: Assessment, scene: Scene, split: Split) -> dict[str, float]:
    """Accuracy lost when the LiDAR lies some pixels off, and how differently the two sensors' tokens choose."""
    straight = accuracy_under_offset(assessment, scene, split, 0)
    lost = {f"loss_{n}px": straight - accuracy_under_offset(assessment, scene, split, n) for n in OFFSETS}
    return {**lost, "token_difference": token_difference(assessment, scene, split)}


def accuracy_under_offset(assessment: Assessment, scene: Scene, split: Split, offset: int) -> float:
    """Share of right test pixels when the second sensor's bands are moved right and down by so many pixels."""
    first = scene.sensors[0][1]
    moved = np.pad(scene.image[first:], ((0, 0), (offset, 0), (offset, 0)), mode="edge")
    image = np.concatenate([scene.image[:first], moved[:, : scene.height, : scene.width]])
    tile = predict_array(assessment.predictor, image, scene.valid, available=scene.available, hide=split.train)
    return float((tile.probability.argmax(0) + 1 == scene.labels)[split.test].mean())


def token_difference(assessment: Assessment, scene: Scene, split: Split) -> float:
    """Total variation between the experts of the LiDAR token and of the others, 0..1, the mean over blocks.

    0: both choose alike; 1: they share no expert. Over all choices on the test pixels.
    """
    batch = {
        "image": torch.from_numpy(assessment.predictor.normaliser(scene.image))[None],
        "valid": torch.from_numpy(scene.valid & ~split.train)[None],
        "wanted": torch.from_numpy(split.test)[None],
    }
    system = assessment.predictor.system
    with torch.inference_mode():
        routings = system(batch).routings.values()
    found = []
    for routing in routings:
        lidar = routing.item % (1 + system.config.tokens) == 0
        shares = [torch.bincount(routing.expert[t], minlength=routing.num_experts).double() for t in (lidar, ~lidar)]
        found.append(0.5 * (shares[0] / shares[0].sum() - shares[1] / shares[1].sum()).abs().sum())
    return float(torch.stack(found).mean())


CLAIM = Claim(
    system="mixturers",
    about="A simulated scene of 96 x 96 pixels, 32 hyperspectral bands and heights, 6 classes of which two need both "
    "sensors at once; blocks of 16 pixels with a guard of 4, 300 steps. Reduced: patches of 5 x 5 pixels, width 32.",
    scene=lambda: xor_fusion(96, 1),  # settings were tried on scene 0
    plan=Plan(
        model={"patch": 5, "width": 32, "heads": 4, "filters": 4, "hidden": 64},
        train=TrainSettings(seed=10, steps=300, batch=64, crop=64, save_every=300),
        split=SplitSettings(kind="block", folds=5, block=16, guard=4),
        seeds=5,
        reduced=("patches of 5 x 5 pixels for 11 x 11", "width 32 for 64", "experts half as wide"),
    ),
    variants=(
        Variant("mixturers"),
        Variant("mixturers", "dense", "dense"),
        Variant("mixturers", "wide", "wide"),
        Variant("mixturers", "uniform", "uniform"),
        Variant("mixturers", "random", "random"),
    ),
    statements=(
        Statement(
            "routed experts and one network of equal active width are alike",
            "routed",
            "dense",
            "tie",
            reported="Houston 2013, official split: 88.64 % OA; its dense parent reports 89.80 % there",
        ),
        Statement("routed experts and one network of equal parameters are alike", "routed", "wide", "tie"),
        Statement("routed experts beat their average", "routed", "uniform"),
        Statement("routed experts beat experts drawn at random", "routed", "random"),
        MeasuredStatement(
            "with heights two pixels off, the dense network loses more than routed experts do",
            "dense",
            "loss_2px",
            against="routed",
        ),
        MeasuredStatement(
            "LiDAR and hyperspectral tokens choose different experts", "routed", "token_difference", above=DIFFERENT
        ),
    ),
    measure=fusion_measures,
)

REAL_CLAIM = replace(
    CLAIM,
    about="MUUFL Gulfport, 90 x 90 pixels, 64 hyperspectral bands, a surface model and 4 profiles of it, 5 materials; "
    "blocks of 15 pixels with a guard of 3, 300 steps. Reduced: patches of 5 x 5 pixels, width 32.",
    scene=lambda: open_benchmark("muufl"),
    plan=replace(CLAIM.plan, split=SplitSettings(kind="block", folds=5, block=15, guard=3)),
)


def tokens_measured(assessment: Assessment, scene: Scene, split: Split) -> dict[str, float]:
    """How differently the two sensors' tokens choose. Offsets mean nothing for heights as smooth as these."""
    return {"token_difference": token_difference(assessment, scene, split)}


REAL_SENTINEL = replace(
    CLAIM,
    about="Slovenia, 101 x 100 pixels, NDVI of Sentinel-2 in ten quarters beside heights, 4 covers of which forest is "
    "three quarters; blocks of 15 pixels with a guard of 3, 300 steps. Reduced: patches of 5 x 5 pixels, width 32.",
    scene=lambda: open_benchmark("slovenia-ndvi"),
    plan=replace(CLAIM.plan, split=SplitSettings(kind="block", folds=5, block=15, guard=3)),
    statements=(
        *(s for s in CLAIM.statements if isinstance(s, Statement)),
        MeasuredStatement(
            "the heights' token and those of NDVI choose different experts",
            "routed",
            "token_difference",
            above=DIFFERENT,
        ),
    ),
    measure=tokens_measured,
    seen="The first seed, also with more steps or variants, before these were cut for time.",
)
