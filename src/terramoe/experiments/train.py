"""Train one system on one fold of a scene."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terramoe.data import Scene, Split, fit_normaliser, require_all_classes
from terramoe.errors import ConfigError, DataError, SplitError
from terramoe.experiments.plan import Plan, scene_digest
from terramoe.inference import Predictor
from terramoe.systems import ROUTED, System, build_control, make_config, system_class
from terramoe.training import History, SceneCrops, ScenePatches, TrainSettings, fit
from terramoe.training.loop import OnStep


def build_for(plan: Plan, scene: Scene, seed: int, control: str = ROUTED) -> System:
    """The plan's system for the bands and classes of a scene, or one of its controls, with the weights of a seed."""
    config = make_config(plan.system, {**facts_of(scene, plan.system), **plan.model})
    torch.manual_seed(seed)
    return build_control(system_class(plan.system), config, control)


def facts_of(scene: Scene, system: str) -> dict[str, Any]:
    """What a system's configuration takes from a scene: bands (of each sensor), classes, wavelengths, domains.

    Raises:
        ConfigError: a multi-sensor system and a scene whose sensors are not told apart.
    """
    cls = system_class(system)
    if cls.multi_sensor and not scene.sensors:
        raise ConfigError(
            f"{system} needs to know which bands are of which sensor",
            where=scene.name,
            fix="name the raster of each sensor: hsi=IMAGE.tif,lidar=HEIGHT.tif",
        )
    facts = {
        "bands": tuple(bands for _, bands in scene.sensors) if cls.multi_sensor else scene.bands,
        "classes": scene.classes,
        "wavelengths": scene.wavelengths,
        "domains": 1 if scene.domains is None else int(scene.domains.max()),
    }
    return {field.name: facts[field.name] for field in fields(cls.Config) if field.name in facts}


def check_plan(plan: Plan, scene: Scene) -> None:
    """Find at once what would stop the plan on this scene, before anything is trained or written.

    Raises:
        ConfigError: the system refuses its settings. DataError: the scene is smaller than a crop.
        SplitError: a fold has no training pixel of a class (unless the plan is lenient), or none at all.
    """
    system = build_for(plan, scene, plan.train.seed)
    smallest = min(scene.height, scene.width)
    if system.patch is None and smallest < plan.train.crop:
        raise DataError(
            f"the scene has {scene.height} x {scene.width} pixels, a crop {plan.train.crop} x {plan.train.crop}",
            where=scene.name,
            fix=f"use --train.crop {smallest} or less",
        )
    for split in plan.folds(scene).values():
        if not split.train.any() or not split.test.any():
            raise SplitError(
                "a fold has no training or no test pixel",
                where=f"{split.name} split",
                fix="use a smaller --split.guard",
            )
        if not plan.lenient:
            require_all_classes(split, scene.labels, scene.class_names)


def train_on_scene(
    plan: Plan,
    scene: Scene,
    split: Split,
    seed: int,
    *,
    control: str = ROUTED,
    state_path: Path | None = None,
    on_step: OnStep | None = None,
) -> tuple[Predictor, History]:
    """Train on the fold's training pixels; test pixels are hidden, not even seen as neighbours.

    Args:
        control: "routed", or the control to train in the system's place.

    Raises:
        ModelFileError, ConfigError: see ``training.fit``.
    """
    normaliser = fit_normaliser(scene.image, split.train, plan.normaliser, scene.seen)
    settings = replace(plan.train, seed=seed)
    system = build_for(plan, scene, seed, control)
    history = fit(
        system,
        draws_of(system, normaliser(scene.image), scene, split, settings),
        settings,
        state_path=state_path,
        fingerprint=f"{scene_digest(scene)} {split.digest()}",
        on_step=on_step,
    )
    predictor = Predictor(
        name=plan.system,
        system=system.cpu().eval(),
        normaliser=normaliser,
        class_values=scene.class_values,
        class_names=scene.class_names,
        window=settings.crop,
        overlap=0 if system.patch else settings.crop // 2,  # a patch brings its own surroundings
        sensors=scene.sensors,
    )
    return predictor, history


def draws_of(
    system: System, image: np.ndarray, scene: Scene, split: Split, settings: TrainSettings
) -> SceneCrops | ScenePatches:
    """The training batches of a fold. Test pixels are nodata in them.

    Args:
        image: of the scene, normalised.
    """
    if scene.seen is not None:  # as in prediction: what a sensor does not see is 0, also for its neighbours
        image = image * scene.seen
    common = {
        "image": torch.from_numpy(image),
        "valid": torch.from_numpy(scene.valid & ~split.test),
        "labels": torch.from_numpy((scene.labels * split.train) - 1),
        "batch": settings.batch,
        "seed": settings.seed,
        "balanced": settings.balanced,
        "flips": settings.flips,
    }
    if system.patch is None:
        return SceneCrops(size=settings.crop, **common)
    return ScenePatches(
        size=system.patch,
        unlabelled=settings.unlabelled,
        # Of an official split, labelled pixels that do neither are there to learn from without their labels.
        pool=torch.from_numpy(split.guard) if split.name == "official" and split.guard.any() else None,
        sensors=len(scene.sensors) if system.multi_sensor else 0,
        available=None if scene.available is None else torch.from_numpy(scene.available),
        missing_rate=settings.missing_rate,
        domains=None if scene.domains is None else torch.from_numpy(scene.domains),
        **common,
    )
