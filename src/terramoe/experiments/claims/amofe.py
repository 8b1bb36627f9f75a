"""AMoFE: does a soft router give each place the expert whose attribute counts there?

Three regimes: crops that only narrow bands tell apart, stripes that only a sharp neighbourhood tells apart, tracks that
only the contrast to what is around tells. It is known where each lies.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from terramoe.data import Scene, Split, open_benchmark, raster_of
from terramoe.data.worlds.fusion import COARSE, three_regimes
from terramoe.data.worlds.satellites import COMMON, acquire_satellite
from terramoe.data.worlds.sensors import area_mean
from terramoe.experiments.assess import Assessment
from terramoe.experiments.claims.claim import Claim, MeasuredStatement, Statement
from terramoe.experiments.plan import Plan, SplitSettings
from terramoe.experiments.study import Variant
from terramoe.inference import Box, Predictor, WindowReader
from terramoe.training import TrainSettings

SYSTEM = "amofe"
SIZE, GUARD = 96, 4
SEED = 1  # of the scene; settings were chosen on another
ATTRIBUTES = ("spectral", "spatial", "edge")  # the expert that matches regime 0, 1, 2
NEAR = 2  # pixels: what is near a border


def expert_weights(predictor: Predictor, scene: Scene, hide: np.ndarray) -> np.ndarray:
    """(E, H, W) float: the weight that each expert has at each pixel."""
    reader = WindowReader(predictor, raster_of(scene.name, scene.image, scene.valid, scene.available), hide)
    found = np.zeros((len(predictor.system.expert_names("attributes")), scene.height, scene.width))
    for top in range(0, scene.height, predictor.window):
        rows = Box(top, 0, min(predictor.window, scene.height - top), scene.width)
        batch = reader.read(rows.grown(predictor.reach)).batch(rows, predictor.reach)
        with torch.inference_mode():
            output = predictor.system(batch)
        weights = output.layouts["attributes"].to_pixels(output.routings["attributes"].dense())[0].numpy()
        inside = slice(predictor.reach, -predictor.reach or None)
        found[:, top : top + rows.height] = weights[inside, inside].transpose(2, 0, 1)
    return found


def near_borders(labels: np.ndarray, distance: float = NEAR) -> np.ndarray:
    """(H, W) bool: pixels within ``distance`` of a pixel of another class, centre to centre."""
    found = np.zeros(labels.shape, dtype=bool)
    for value in np.unique(labels):
        inside = labels == value
        if not inside.all():
            found |= inside & (distance_transform_edt(inside) <= distance)
    return found


def regimes_followed(assessment: Assessment, scene: Scene, split: Split) -> dict[str, float]:
    """On test pixels: how much more weight each expert has in its regime than elsewhere, and accuracy near borders."""
    _, regime = three_regimes(SIZE, SEED)
    edge = near_borders(scene.labels)[split.test]
    right = assessment.probability.argmax(1) + 1 == assessment.truth
    measures = {"border_accuracy": float(right[edge].mean())}
    if assessment.predictor.system.expert_names("attributes") == ATTRIBUTES:
        weights = expert_weights(assessment.predictor, scene, split.train)[:, split.test]
        for number, name in enumerate(ATTRIBUTES):
            here = regime[split.test] == number
            measures[f"{name}_rise"] = float(weights[number, here].mean() - weights[number, ~here].mean())
    return measures


CLAIM = Claim(
    system=SYSTEM,
    about=f"Simulated: three regimes, {SIZE} x {SIZE} pixels, 24 coarse hyperspectral and 4 sharp multispectral bands, "
    f"7 classes; blocks of 16 pixels with a guard of {GUARD}, 400 steps at reduced sizes. The router is soft, and all "
    "experts drawn at random are their plain average: that control is left out.",
    scene=lambda: three_regimes(SIZE, SEED)[0],
    plan=Plan(
        model={"patch": 7, "width": 32, "subspace": 32},
        train=TrainSettings(seed=10, steps=400, batch=32, crop=32, learning_rate=2e-3, save_every=400),
        split=SplitSettings(kind="block", folds=5, block=16, guard=GUARD),
        seeds=5,
        reduced=("width and subspaces 32 instead of 64, patches of 7 instead of 11",),
    ),
    variants=(
        Variant(SYSTEM),
        *(Variant(SYSTEM, f"{name} alone", "uniform", model={"experts": (name,), "top_k": 1}) for name in ATTRIBUTES),
        Variant(SYSTEM, "uniform", "uniform"),
        Variant(SYSTEM, "dense", "dense"),
        Variant(SYSTEM, "wide", "wide"),
        Variant(SYSTEM, "without texture", model={"texture": False}),
        Variant(SYSTEM, "without decorrelation", model={"decorrelation": 0.0}),
    ),
    statements=(
        *(
            MeasuredStatement(f"the {name} expert has more weight where its attribute counts", "routed", f"{name}_rise")
            for name in ATTRIBUTES
        ),
        *(Statement(f"the soft mixture beats the {name} expert", "routed", f"{name} alone") for name in ATTRIBUTES),
        Statement("learned weights beat equal ones", "routed", "uniform"),
        Statement("three attributes beat one plain network of equal size", "routed", "dense"),
        Statement("three attributes beat one plain network of equal parameters", "routed", "wide"),
        Statement("texture statistics help the router", "routed", "without texture"),
        Statement("the penalty on equal contributions helps", "routed", "without decorrelation"),
        MeasuredStatement(
            f"within {NEAR} pixels of a border learned weights beat equal ones",
            "routed",
            "border_accuracy",
            against="uniform",
        ),
        MeasuredStatement(
            f"within {NEAR} pixels of a border the mixture beats the plain network",
            "routed",
            "border_accuracy",
            against="dense",
        ),
    ),
    measure=regimes_followed,
)


def coarse_and_sharp(scene: Scene, satellite: str, seed: int = 0) -> Scene:
    """A hyperspectral scene seen by two sensors: its own bands as means over 4 x 4 pixels, a satellite's four sharp.

    The satellite's bands are integrated from the spectra, with calibration, haze and noise of its own. Rows and columns
    that fill no coarse pixel are left out.
    """
    box = tuple(slice(size - size % COARSE) for size in (scene.height, scene.width))
    scene = replace(scene, image=scene.image[:, *box], valid=scene.valid[box], labels=scene.labels[box])
    sharp = acquire_satellite(scene, satellite, seed, bands=COMMON)
    coarse = area_mean(scene.image, COARSE).repeat(COARSE, 1).repeat(COARSE, 2)
    return replace(
        scene,
        name=f"{scene.name}, coarse, and {satellite}",
        image=np.concatenate([coarse, sharp.image]),
        sensors=(("hsi", scene.bands), ("msi", len(COMMON))),
        wavelengths=(*scene.wavelengths, *sharp.wavelengths),
    )


def borders_measured(assessment: Assessment, scene: Scene, split: Split) -> dict[str, float]:
    """Accuracy on test pixels near a border of two classes."""
    edge = near_borders(scene.labels)[split.test]
    right = assessment.probability.argmax(1) + 1 == assessment.truth
    return {"border_accuracy": float(right[edge].mean())}


REAL_SAMSON = replace(
    CLAIM,
    about=f"Samson, 92 x 92 pixels, 3 materials, 156 hyperspectral bands as means over {COARSE} x {COARSE} pixels "
    "beside 4 sharp ones of PlanetScope simulated from them; blocks of 16 pixels with a guard of 6 (patch and coarse "
    "pixel), 300 steps at reduced sizes. The control of experts drawn at random is left out as before.",
    scene=lambda: coarse_and_sharp(open_benchmark("samson"), "planetscope", SEED),
    plan=replace(
        CLAIM.plan,
        train=replace(CLAIM.plan.train, steps=300),
        split=SplitSettings(kind="block", folds=5, block=16, guard=6),
    ),
    variants=tuple(v for v in CLAIM.variants if not v.name.startswith("without")),
    statements=tuple(
        s
        for s in CLAIM.statements
        if (s.measure == "border_accuracy" if isinstance(s, MeasuredStatement) else not s.b.startswith("without"))
    ),
    measure=borders_measured,
    seen="The first seed, also with more steps or variants, before these were cut for time.",
)
