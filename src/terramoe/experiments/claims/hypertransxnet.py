"""HyperTransXNet: does a learned frequency mask see through a sensor's stripes, and does a router that learns help?

Three crops differ by a faint signature in their spectra, three by how far apart their rows stand. The sensor flies
along the rows, and each of its columns has a gain of its own: its slit's for all bands, its detectors' for each band.
So rows and stripes lie the same way, but stripes have all frequencies and rows have one: what a mask can tell apart.
Smoothing helps the one family of crops and harms the other: what an expert for each family is good for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from terramoe.data import Scene, Split, indian_pines
from terramoe.data.worlds.fields import cells, stream
from terramoe.data.worlds.spectra import band_reflectance, stand_ins
from terramoe.evaluation.probe import Factor, probe_routing
from terramoe.experiments.assess import Assessment
from terramoe.experiments.claims.claim import Claim, MeasuredStatement, Statement
from terramoe.experiments.plan import Plan, SplitSettings
from terramoe.experiments.study import Variant, with_controls
from terramoe.training import TrainSettings

SIZE, FIELDS = 128, 72
CENTRES = np.linspace(430.0, 980.0, 24)  # nanometres
SPACING = (2.25, 3.0, 4.5)  # columns from row to row
SIGNATURE = 0.004  # reflectance: standard deviation over the bands
ROWS = 0.1  # amplitude of the rows, relative
SLIT, DETECTORS = 0.05, 0.06  # standard deviations of a column's gains
NOISE = 0.01  # reflectance


def striped_crops(seed: int = 0) -> Scene:
    """A scene of 128 x 128 pixels, 24 bands, six crops, seen by columns of unequal gain."""
    generator = stream(seed, "striped crops")
    field = cells(SIZE, FIELDS, generator, rounds=2)
    crop = (generator.permutation(FIELDS) % 6)[field]
    phase = generator.uniform(0, 2 * np.pi, FIELDS)[field]
    base = band_reflectance(stand_ins(), CENTRES, np.full(CENTRES.size, 20.0))
    signatures = gaussian_filter1d(generator.standard_normal((3, CENTRES.size)), 2, axis=1)
    signatures *= SIGNATURE / signatures.std(axis=1, keepdims=True)
    spectra = np.concatenate([base["grass"] + signatures, np.tile(base["straw"], (3, 1))])
    spacing = np.array((np.inf, np.inf, np.inf, *SPACING))[crop]
    light = 1 + np.where(crop >= 3, ROWS * np.sin(2 * np.pi * np.arange(SIZE) / spacing + phase), 0)
    image = np.moveaxis(spectra[crop], -1, 0) * light
    slit, detectors = generator.standard_normal(SIZE), generator.standard_normal((CENTRES.size, 1, SIZE))
    image *= 1 + SLIT * slit + DETECTORS * detectors
    image += NOISE * generator.standard_normal(image.shape)
    return Scene(
        name="striped crops",
        image=image.astype(np.float32),
        valid=np.ones((SIZE, SIZE), dtype=bool),
        labels=crop.astype(np.int64) + 1,
        class_values=(1, 2, 3, 4, 5, 6),
        class_names=("grass a", "grass b", "grass c", "narrow rows", "middle rows", "wide rows"),
        wavelengths=tuple(CENTRES.tolist()),
    )


def family_followed(assessment: Assessment, scene: Scene, split: Split) -> dict[str, float]:
    """How much more the first block's experts say about the family of the crop than chance would."""
    experts = assessment.tile.routing["block1"][0]
    inside = split.test & (experts >= 0)
    family = (scene.labels[inside] > 3).astype(int)
    factor = Factor(family, split.blocks[inside], np.argwhere(inside))
    found = probe_routing(experts[inside].astype(int), {"family": factor}, draws=199).findings["family"]
    return {"family_share": found.share.value, "family_above_chance": found.share.value - found.chance[0]}


_WITHOUT_ROUTER = Variant(
    "hypertransxnet",
    "random-frozen",
    model={"weigh": "ones", "balance": 0.0},  # no gradient reaches the router: that is the released code's gate
)
_IDENTITY = Variant("hypertransxnet", "identity", model={"frequency": ()})
_ROUTING = (
    Statement("a router that learns beats the released code's, which stays as it was drawn", "routed", "random-frozen"),
    Statement("learned routing beats the dense twin of equal active compute", "routed", "dense"),
    Statement("learned routing beats the dense twin of equal parameters", "routed", "wide"),
    Statement("learned routing beats all experts with equal weight", "routed", "uniform"),
    Statement("learned routing beats experts drawn at random", "routed", "random"),
)
_MODEL = {"patch": 9, "reduced": 16, "width": 16, "blocks": 2, "heads": 2}

CLAIM = Claim(
    system="hypertransxnet",
    about="Six crops under a striping sensor, 128 x 128 pixels, 24 bands; blocks of 16 pixels with a guard of 4, 500 "
    "steps. Reduced: patches of 9 pixels, two blocks of width 16 and 32, and the mask along the width of the image.",
    scene=lambda: striped_crops(1),  # settings were chosen on scene 0
    plan=Plan(
        model={**_MODEL, "frequency": ("width",)},
        train=TrainSettings(steps=500, batch=32, learning_rate=2e-3, save_every=500),
        split=SplitSettings(kind="block", folds=5, block=16, guard=4),
        seeds=5,
    ),
    variants=(
        *with_controls("hypertransxnet"),
        _WITHOUT_ROUTER,
        _IDENTITY,
        Variant("hypertransxnet", "channels", model={"frequency": ("channels",)}),
    ),
    statements=(
        Statement("a learned mask across the stripes beats the released code's identity", "routed", "identity"),
        Statement("it beats a mask along the channels, the axis of the code", "routed", "channels"),
        *_ROUTING,
        MeasuredStatement("the gate follows the family of crops", "routed", "family_above_chance"),
    ),
    measure=family_followed,
)

REAL_CLAIM = replace(
    CLAIM,
    about="Indian Pines, 16 classes, blocks of 12 pixels with a guard of 4, 400 steps. Reduced: patches of 9 pixels, "
    "two blocks of width 16 and 32. The mask lies along the channels, as in the code; no stripes are added.",
    scene=indian_pines,
    plan=Plan(
        model={**_MODEL, "reduced": 30},
        train=TrainSettings(steps=400, batch=32, learning_rate=2e-3, save_every=400),
        split=SplitSettings(kind="block", folds=5, block=12, guard=4),
        seeds=5,
        lenient=True,
    ),
    variants=(*with_controls("hypertransxnet"), _WITHOUT_ROUTER, _IDENTITY),
    statements=(
        Statement("a learned mask along the channels beats the released code's identity", "routed", "identity"),
        *_ROUTING,
    ),
    measure=None,
)
