"""SpectralX: does a frozen body with routed adapters carry over to a region under another sky?

A simulated world of two regions, seen in 32 bands. Air and calibration differ between them as much as in the world
"delta", and so do the shares of the classes: region A trains, region B tests. Sizes, steps and learning rate were
chosen by single runs in another world (seed 0), so no test pixel here was looked at before. And on Jasper Ridge, a real
scene of 198 bands, with the same sizes: there is no other sky there, only other blocks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import maximum_filter

from terramoe.data import Scene, Split, open_benchmark
from terramoe.data.worlds import Band, Recipe, Sensor, make_world
from terramoe.experiments.assess import Assessment
from terramoe.experiments.claims.claim import Claim, MeasuredStatement, Statement
from terramoe.experiments.plan import Plan, SplitSettings
from terramoe.experiments.study import Variant
from terramoe.systems.spectralx import ATTRIBUTES, SpectralX
from terramoe.training import TrainSettings

CROP, SIZE = 32, 128
TRAIN, GUARD, TEST = 1, 2, 3
# 32 bands from 460 to 950 nm, the range of the instrument of WHU-OHS
BANDS = tuple(Band(f"{nm:.0f} nm", float(nm), 15.0) for nm in np.linspace(460, 950, 32))
WORLD = Recipe(
    about="two regions under different air, six classes of vegetation and soil, 32 bands",
    shares={
        "needleleaf forest": 0.15,
        "broadleaf forest": 0.2,
        "grassland": 0.2,
        "maize": 0.2,
        "soybean": 0.15,
        "bare soil": 0.1,
    },
    sensors=(Sensor("hyperspectral", "optical", "optical", 10, BANDS),),
    latitudes=(45.0, 45.0),
    zones=True,
    texture=0.08,
    haze=(0.0, 0.04),
    gain_spread=0.05,
    offset_spread=0.004,
    noise=0.03,
)


def two_regions(seed: int = 1) -> Scene:
    """Region A (domain 1) trains, but for a guard as wide as a crop along region B (domain 2), which tests."""
    world = make_world(WORLD, size=SIZE, seed=seed)
    region = world.regime("region")
    near = maximum_filter(region, size=CROP + 1, mode="nearest") == 1
    scene = world.scene()
    return replace(
        scene,
        wavelengths=tuple(band.centre for band in BANDS),
        domains=region.astype(np.int64) + 1,
        domain_names=("A", "B"),
        official=np.where(region == 1, TEST, np.where(near, GUARD, TRAIN)),
    )


def gates_of_attributes(assessment: Assessment, scene: Scene, split: Split) -> dict[str, float]:
    """How far apart the gates of the two attributes are in region B, in the trained model and before training.

    The distance of two histograms of weight over the experts is half the sum of their absolute differences, 0 to 1; it
    is averaged over the adapted blocks. And the share of parameters below the heads that stage 2 trains.
    """
    return _gates(assessment, {"image": crops_of(assessment.predictor.normaliser(scene.image), split.test)})


def gates_on_blocks(assessment: Assessment, scene: Scene, split: Split) -> dict[str, float]:
    """The same over crops of the whole scene, with the training pixels hidden: no crop fits into a test block."""
    hidden = np.where(split.train, 0, scene.valid)[None]
    crops = crops_of(assessment.predictor.normaliser(scene.image), scene.valid)
    return _gates(assessment, {"image": crops, "valid": crops_of(hidden, scene.valid)[:, 0].bool()})


def _gates(assessment: Assessment, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    system = assessment.predictor.system
    found = {"trained_share": trained_share(system)}
    if not system.adapters:
        return found | {"gate_distance": 0.0, "gate_distance_gained": 0.0}
    torch.manual_seed(assessment.seed)
    trained, start = (gate_distance(s.eval(), **batch) for s in (system, SpectralX(system.config)))
    return found | {"gate_distance": trained, "gate_distance_gained": trained - start}


def crops_of(image: np.ndarray, inside: np.ndarray) -> torch.Tensor:
    """Image (bands, H, W) -> its crops that lie wholly inside, side by side: (n, bands, CROP, CROP)."""
    places = [
        (slice(row, row + CROP), slice(column, column + CROP))
        for row in range(0, inside.shape[0] - CROP + 1, CROP // 2)
        for column in range(0, inside.shape[1] - CROP + 1, CROP)
    ]
    return torch.from_numpy(np.stack([image[:, *place] for place in places if inside[place].all()]))


def gate_distance(system: SpectralX, image: torch.Tensor, valid: torch.Tensor | None = None) -> float:
    """Mean over the blocks of the distance between the spatial and the spectral tokens' histograms of weight.

    Args:
        image: crops (n, bands, CROP, CROP). valid: (n, CROP, CROP) bool, all if None.
    """
    with torch.inference_mode():
        routings = system({"image": image} if valid is None else {"image": image, "valid": valid}).routings.values()
    distances = []
    for routing in routings:
        weight, attribute = routing.dense(), routing.keys["task"]
        spatial, spectral = (weight[attribute == i].sum(0) for i in range(len(ATTRIBUTES)))
        distances.append(float((spatial / spatial.sum() - spectral / spectral.sum()).abs().sum()) / 2)
    return float(np.mean(distances))


def trained_share(system: SpectralX) -> float:
    """Share of the parameters below the heads that stage 2 trains."""
    heads = {id(p) for part in (system.decoder, system.rebuild, system.head) for p in part.parameters()}
    sizes = [(p.numel(), p.requires_grad) for p in system.parameters() if id(p) not in heads]
    return sum(size for size, trains in sizes if trains) / sum(size for size, _ in sizes)


CLAIM = Claim(
    system="spectralx",
    about="Two regions of a simulated world, 128 x 128 pixels, 32 bands, 6 classes, other air and calibration in each: "
    "A trains, B tests, with a guard of half a crop. Reduced: a body of 4 blocks of width 64, 120 steps of both "
    "reconstructions, adapters at two blocks, 16 spectral tokens, a linear head.",
    scene=two_regions,
    plan=Plan(
        model={
            "dim": 64,
            "depth": 4,
            "heads": 4,
            "cell": 4,
            "adapted": (1, 3),
            "tokeniser_dim": 32,
            "queries_side": 8,
            "spectral_queries": 16,
            "bottleneck": 32,
            "expert_width": 16,
            "refine_queries": 8,
        },
        train=TrainSettings(steps=150, pretrain_steps=120, batch=8, crop=CROP, learning_rate=2e-3, save_every=400),
        split=SplitSettings(kind="official"),
        seeds=5,
    ),
    variants=(
        Variant("spectralx"),
        Variant("spectralx", "dense", "dense"),
        Variant("spectralx", "wide", "wide"),
        Variant("spectralx", "uniform", "uniform"),
        Variant("spectralx", "random", "random"),
        Variant("spectralx", "single adapter", model={"experts": 1, "top_k": 1, "expert_width": 64}),
        Variant("spectralx", "head only", model={"tune": "head"}),
        Variant("spectralx", "full fine-tuning", model={"tune": "full"}),
    ),
    statements=(
        Statement("in region B AoMoA beats a linear head on what stage 1 gives", "routed", "head only"),
        Statement("in region B AoMoA beats full fine-tuning", "routed", "full fine-tuning"),
        Statement("AoMoA beats a single adapter of equal parameters", "routed", "single adapter"),
        Statement("AoMoA beats two adapters that are always used", "routed", "dense"),
        Statement("routers beat the average of all adapters", "routed", "uniform"),
        Statement("routers beat adapters drawn at random", "routed", "random"),
        MeasuredStatement(  # routers drawn at random are apart already: what counts is what training adds
            "training drives the gates of the two attributes apart", "routed", "gate_distance_gained"
        ),
    ),
    measure=gates_of_attributes,
)


REAL_JASPER = replace(
    CLAIM,
    about="Jasper Ridge, 100 x 100 pixels, 198 bands, 4 materials; blocks of 16 pixels with a guard of 4, five folds. "
    "Reduced: a body of 4 blocks of width 64, 100 steps of both reconstructions and 120 more, 4 crops a step, adapters "
    "at two blocks, 16 spectral tokens, a linear head.",
    scene=lambda: open_benchmark("jasper"),
    plan=replace(
        CLAIM.plan,
        train=replace(CLAIM.plan.train, steps=120, pretrain_steps=100, batch=4),
        split=SplitSettings(kind="block", folds=5, block=16, guard=4),
    ),
    variants=tuple(v for v in CLAIM.variants if v.name != "single adapter"),
    statements=tuple(
        replace(s, text=s.text.removeprefix("in region B "))
        for s in CLAIM.statements
        if isinstance(s, MeasuredStatement) or s.b != "single adapter"
    ),
    measure=gates_on_blocks,
    seen="The first seed, also with more steps or variants, before these were cut for time.",
)
