"""Train one system on one fold of a scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from terramoe.data import Scene, Split, fit_normaliser, require_all_classes
from terramoe.errors import DataError, SplitError
from terramoe.experiments.plan import Plan, scene_digest
from terramoe.inference import Predictor
from terramoe.systems import ROUTED, System, build_control, make_config, system_class
from terramoe.training import History, SceneCrops, fit
from terramoe.training.loop import OnStep


def build_for(plan: Plan, scene: Scene, seed: int, control: str = ROUTED) -> System:
    """The plan's system for the bands and classes of a scene, or one of its controls, with the weights of a seed."""
    config = make_config(plan.system, {"bands": scene.bands, "classes": scene.classes, **plan.model})
    torch.manual_seed(seed)
    return build_control(system_class(plan.system), config, control)


def check_plan(plan: Plan, scene: Scene) -> None:
    """Find at once what would stop the plan on this scene, before anything is trained or written.

    Raises:
        ConfigError: the system refuses its settings. DataError: the scene is smaller than a crop.
        SplitError: a fold has no training pixel of a class (unless the plan is lenient), or none at all.
    """
    build_for(plan, scene, plan.train.seed)
    smallest = min(scene.height, scene.width)
    if smallest < plan.train.crop:
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
    normaliser = fit_normaliser(scene.image, split.train, plan.normaliser)
    settings = replace(plan.train, seed=seed)
    crops = SceneCrops(
        image=torch.from_numpy(normaliser(scene.image)),
        valid=torch.from_numpy(scene.valid & ~split.test),
        labels=torch.from_numpy((scene.labels * split.train) - 1),
        size=settings.crop,
        batch=settings.batch,
        seed=seed,
        balanced=settings.balanced,
        flips=settings.flips,
    )
    system = build_for(plan, scene, seed, control)
    history = fit(
        system,
        crops,
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
        overlap=settings.crop // 2,
    )
    return predictor, history
