"""MaMOL: does one model with adapters for missing sensors do as well as what is simplest, an MLP whose training drops
sensors? And does each kind of adapter help?

A real scene (if its files are there), Houston: both sensors everywhere, dropped in training and taken away in the test.
And a simulated one in which each of two sensors really lacks a third of the chips, and clouds hide one.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from terramoe.data import Scene, Split, open_benchmark
from terramoe.data.worlds import make_world
from terramoe.data.worlds.speckle import decibel
from terramoe.experiments.assess import Assessment
from terramoe.experiments.claims.claim import Claim, MeasuredStatement
from terramoe.experiments.plan import Plan, SplitSettings
from terramoe.experiments.study import Variant
from terramoe.inference import predict_array
from terramoe.nets import patches_of
from terramoe.nets.missing import modality_dropout
from terramoe.training import TrainSettings

SIZE = 144  # pixels: six chips
RATE = 0.7  # share of Houston's training pixels that lose a sensor
HIDDEN, STEPS, BATCH = 128, 3600, 64  # of the MLP; 150 epochs of Houston's training pixels
MARGIN = 0.01  # what counts as no worse


def missing_chips() -> Scene:
    """The world "missing" at its first date: optical (4 bands), radar (2), and which of them a pixel has.

    Under a cloud or in its shadow the optical sensor counts as missing. Of the pixels that have one, a third has both.
    """
    world = make_world("missing", size=SIZE, seed=1)  # settings were tried on seed 0
    found = [world.sensors[name] for name in ("optical10", "radar")]
    values = [decibel(a.values[0]) if a.sensor.kind == "radar" else a.values[0] for a in found]
    clear = world.regime("sky") == 0
    seen = [a.valid[0] & (clear | (a.sensor.kind != "optical")) for a in found]
    available = np.stack(seen)
    valid = available.any(0)
    return Scene(
        name="optical and radar with gaps",
        image=np.concatenate([np.where(there, v, 0) for there, v in zip(seen, values, strict=True)]).astype(np.float32),
        valid=valid,
        labels=np.where(valid, world.labels, 0),
        class_values=tuple(range(1, len(world.class_names) + 1)),
        class_names=world.class_names,
        sensors=tuple((a.sensor.name, len(a.sensor.bands)) for a in found),
        available=available,
    )


def beside_mlp(assessment: Assessment, scene: Scene, split: Split, *, rate: float) -> dict[str, float]:
    """Accuracy with all sensors and without each, of the system, less the MLP's, and expected at missing rates.

    Args:
        rate: share of the MLP's training pixels that lose a sensor.
    """
    patch = assessment.predictor.system.config.patch
    image = assessment.predictor.normaliser(scene.image)
    net = train_mlp(*patch_vectors(image, scene, split, split.train, patch), scene, patch, rate, assessment.seed)
    values, present, labels = patch_vectors(image, scene, split, split.test, patch)
    ours, theirs = {}, {}
    for without in (None, *range(len(scene.sensors))):
        name = "full" if without is None else f"no_{scene.sensors[without][0]}"
        missing = () if without is None else (scene.sensors[without][0],)
        tile = predict_array(
            assessment.predictor,
            scene.image,
            scene.valid,
            available=scene.available,
            hide=split.train,
            missing=missing,
        )
        left = present.clone()
        if without is not None:
            left[:, without] = False
        counts = left.any(1)  # a pixel without any sensor has no prediction
        right = torch.from_numpy(tile.probability.argmax(0)[split.test]) == labels
        ours[name] = float(right[counts].float().mean())
        with torch.inference_mode():
            guess = net(zero_missing(values, left, scene, patch)).argmax(1)
        theirs[name] = float((guess == labels)[counts].float().mean())
    without = [name for name in ours if name != "full"]
    rates = {
        f"accuracy_at_{share}": (1 - share / 100) * ours["full"]
        + share / 100 * float(np.mean([ours[name] for name in without]))
        for share in (50, 70, 90)
    }
    less = {f"{name}_less_mlp": ours[name] - theirs[name] for name in ours}
    return {**ours, **{f"mlp_{name}": value for name, value in theirs.items()}, **less, **rates}


def train_mlp(
    values: Tensor,
    present: Tensor,
    labels: Tensor,
    scene: Scene,
    patch: int,
    rate: float,
    seed: int,
    *,
    steps: int = STEPS,
) -> nn.Module:
    """Two hidden layers on the pixels of a patch, missing sensors as zeros, sensors dropped at random.

    Args:
        values: (N, bands * patch * patch). present: (N, S) bool. labels: (N,) from 0.
        rate: share of the pixels that lose a sensor, drawn anew in each step.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(values.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, scene.classes),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(values), (BATCH,))
        kept = present[chosen] & modality_dropout(BATCH, present.shape[1], rate)
        kept = torch.where(kept.any(1, keepdim=True), kept, present[chosen])
        inputs = zero_missing(values[chosen], kept, scene, patch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels[chosen]).backward()
        optimizer.step()
    return net.eval()


def patch_vectors(image: np.ndarray, scene: Scene, split: Split, chosen: np.ndarray, patch: int) -> tuple[Tensor, ...]:
    """Patches (N, bands * patch * patch) around the chosen pixels, sensors (N, S) bool and labels (N,) from 0.

    As for the system, training sees no test pixel and the test no training pixel.
    """
    everywhere = np.broadcast_to(scene.valid, (len(scene.sensors), *scene.valid.shape))
    available = everywhere if scene.available is None else scene.available
    hidden = split.test if chosen is split.train else split.train
    known = np.repeat(available, [bands for _, bands in scene.sensors], axis=0)
    batch = {
        "image": torch.from_numpy(image * known)[None],
        "valid": torch.from_numpy(scene.valid & ~hidden)[None],
        "wanted": torch.from_numpy(chosen)[None],
        "available": torch.from_numpy(available.copy())[None],
    }
    patches = patches_of(batch, patch)
    labels = patches.of_batch(torch.from_numpy(scene.labels - 1)[None])
    return patches.values.flatten(1), patches.present, labels


def zero_missing(values: Tensor, present: Tensor, scene: Scene, patch: int) -> Tensor:
    """values (N, bands * patch * patch), present (N, S) bool -> values with zeros for missing sensors."""
    spans = torch.tensor([bands * patch**2 for _, bands in scene.sensors])
    return values * present.repeat_interleave(spans, dim=1)


def statements(sensors: tuple[str, ...], measure: str) -> tuple[MeasuredStatement, ...]:
    """No worse than the MLP with all sensors and without each; and by ``measure`` each part is worth its place."""
    cases = {"full": "with all sensors that are there", **{f"no_{name}": f"without {name}" for name in sensors}}
    beside = (
        MeasuredStatement(
            f"{case}, no worse than an MLP trained with dropped sensors",
            "routed",
            f"{name}_less_mlp",
            -MARGIN,
        )
        for name, case in cases.items()
    )
    parts = (
        MeasuredStatement(f"{text}, where most pixels lack a sensor", "routed", measure, against=other)
        for other, text in AGAINST.items()
    )
    return (*beside, *parts)


AGAINST = {
    "dense": "routed adapters beat one of equal active size",
    "random": "routed adapters beat adapters drawn at random",
    "no dynamic": "the routed adapters help",
    "no shared": "the shared adapter helps",
    "no static": "the sensors' own adapters help",
    "shuffled codes": "it helps that the adapters know which sensors are missing",
}
VARIANTS = (
    Variant("mamol"),
    Variant("mamol", "dense", "dense"),
    Variant("mamol", "wide", "wide"),
    Variant("mamol", "uniform", "uniform"),
    Variant("mamol", "random", "random"),
    Variant("mamol", "no dynamic", model={"parts": ("shared", "static")}),
    Variant("mamol", "no shared", model={"parts": ("dynamic", "static")}),
    Variant("mamol", "no static", model={"parts": ("dynamic", "shared")}),
    Variant("mamol", "shuffled codes", model={"shuffled_codes": True}),
)
SMALL = {"width": 64, "depth": 2, "heads": 4, "mlp_ratio": 2, "stem_width": 64, "adapted": 2, "router_width": 32}
REDUCED = ("a small transformer of 2 blocks that is trained here for CLIP's of width 768 and 12", "small patches")

CLAIM = Claim(
    system="mamol",
    about="A simulated scene of 144 x 144 pixels, optical and radar, each missing in a third of the chips and optical "
    "under clouds too; 6 classes, blocks of 24 pixels with a guard of 4, 300 + 500 steps. Reduced: patches of 3 x 3 "
    "pixels, a transformer of width 32 trained on the pixels that have both.",
    scene=missing_chips,
    plan=Plan(
        model={**SMALL, "width": 32, "stem_width": 32, "patch": 3},
        train=TrainSettings(seed=10, steps=500, pretrain_steps=300, batch=64, crop=64, save_every=1000),
        split=SplitSettings(kind="block", folds=5, block=24, guard=4),
        seeds=5,
        reduced=REDUCED,
    ),
    variants=VARIANTS,
    statements=statements(("optical10", "radar"), measure="full"),
    measure=partial(beside_mlp, rate=0.0),
)

REAL_CLAIM = Claim(
    system="mamol",
    about="Houston 2013, the official training pixels, 144 hyperspectral bands and 21 LiDAR profiles, 15 classes; of "
    "each class, in scan order, the first 55 % train and the last 35 % test; 400 + 600 steps with 70 % of the pixels "
    "lacking a sensor. Reduced: single pixels, a transformer of width 64 trained here.",
    scene=lambda: open_benchmark("houston2013-pixels"),
    plan=Plan(
        model={**SMALL, "patch": 1},
        train=TrainSettings(
            seed=10, steps=600, pretrain_steps=400, batch=64, missing_rate=RATE, crop=64, flips=False, save_every=1000
        ),
        split=SplitSettings(kind="official"),
        seeds=5,
        reduced=REDUCED,
    ),
    variants=VARIANTS,
    statements=statements(("lidar", "hsi"), measure="accuracy_at_70"),
    measure=partial(beside_mlp, rate=RATE),
)
