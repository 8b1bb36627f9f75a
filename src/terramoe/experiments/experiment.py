"""Run a plan: audit the split, train every seed, score, compare with the twin, write maps and tables."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import yaml

from terramoe.data import Scene, Split, SplitAudit, audit_scene, raster_of
from terramoe.evaluation import Alignment, Comparison, Interval, compare
from terramoe.experiments.assess import Assessment, Scores, assess, pool, routing_follows
from terramoe.experiments.card import assemble, run_card
from terramoe.experiments.plan import Plan
from terramoe.experiments.record import record_of, results_csv
from terramoe.experiments.subsets import Subset, measures_of, subset_grid
from terramoe.experiments.train import train_on_scene
from terramoe.inference import PredictedTile, Predictor, predict_array, write_maps
from terramoe.storage import RasterForm, RunFolder, write_cog, write_json, write_text
from terramoe.systems import ROUTED, Card, card

TWIN = "dense twin"


class Progress(Protocol):
    """Hears how far an experiment is."""

    def stage(self, text: str) -> None:
        """A new part begins."""

    def step(self, run: str, done: int, total: int, loss: float) -> None:
        """A training step of a run is done."""


class Silent:
    """Progress that nobody watches."""

    def stage(self, text: str) -> None:
        """Nothing is shown."""

    def step(self, run: str, done: int, total: int, loss: float) -> None:
        """Nothing is shown."""


@dataclass(frozen=True)
class Experiment:
    """Everything that an experiment found; the report is drawn from it.

    Attributes:
        plan, scene, card: what was run, on what, of which system.
        folds: the split of each seed.
        audits: of the first fold under random, block and field splits.
        runs: assessments by model name, the system first.
        scores: pooled, by model name.
        comparison: system against twin, or None.
        predictor: the first seed's model, which is saved and draws the maps.
        whole: its prediction of the whole scene with nothing hidden, as the maps show it.
        alignments: what its routing follows, per layer.
        subsets: accuracy with every subset of the sensors but the whole, by model; empty for one sensor.
        facts: what decided the result besides the plan; see ``card.assemble``.
    """

    plan: Plan
    scene: Scene
    card: Card
    folds: dict[int, Split]
    audits: list[SplitAudit]
    runs: dict[str, list[Assessment]]
    scores: dict[str, Scores]
    comparison: Comparison | None
    predictor: Predictor
    whole: PredictedTile
    alignments: dict[str, Alignment]
    subsets: dict[Subset, dict[str, Interval]]
    facts: dict[str, Any]


def run_experiment(
    plan: Plan, scene: Scene, folder: RunFolder, audits: list[SplitAudit], progress: Progress | None = None
) -> Experiment:
    """Run a plan on a scene. Stopped at any moment and started again, it goes on from the last saved step.

    Args:
        audits: what ``audit`` found, for the record.

    Raises:
        TerraMoEError: see ``train_on_scene``.
    """
    progress = progress or Silent()
    folds = plan.folds(scene)
    system_card = card(plan.system)
    names = [system_card.name, TWIN] if plan.twin else [system_card.name]
    runs: dict[str, list[Assessment]] = {name: [] for name in names}
    first: Predictor | None = None
    for seed, split in folds.items():
        for name in names:
            label = f"{name}, seed {seed}"
            progress.stage(f"training {label}")
            predictor, history = train_on_scene(
                plan,
                scene,
                split,
                seed,
                control="dense" if name == TWIN else ROUTED,
                state_path=folder.state(f"{name.lower().replace(' ', '-')}-{seed}"),
                on_step=lambda done, loss, label=label: progress.step(label, done, plan.train.all_steps, loss),
            )
            first = first or predictor
            runs[name].append(assess(predictor, scene, split, history, seed))

    progress.stage("scores")
    return Experiment(
        plan=plan,
        scene=scene,
        card=system_card,
        folds=folds,
        audits=audits,
        runs=runs,
        scores={name: pool(assessments) for name, assessments in runs.items()},
        comparison=_compare(runs) if plan.twin else None,
        predictor=first,
        whole=predict_array(first, scene.image, scene.valid, available=scene.available),
        alignments=routing_follows(runs[system_card.name][0], scene, folds[plan.train.seed]),
        subsets=subset_grid({name: [(a.subsets, a.blocks) for a in found] for name, found in runs.items()}),
        facts=assemble(plan, scene, folds, {system_card.name: first.system}),
    )


def audit(plan: Plan, scene: Scene) -> list[SplitAudit]:
    """Audit the plan's split beside the two other kinds, so that a leak is seen in numbers."""
    kinds = dict.fromkeys(("random", "block", "field", plan.split.kind))
    splitters = {kind: plan.split.for_scene(scene, kind) for kind in kinds}
    return audit_scene(scene, splitters, radius=plan.split.guard)


def write_run(experiment: Experiment, folder: RunFolder, colours: list[tuple[int, int, int]]) -> None:
    """Write all files of a run but the report: model, maps, split, configuration, metrics and, last, the card."""
    plan, scene = experiment.plan, experiment.scene
    experiment.predictor.save(folder.path)
    raster = raster_of(scene.name, scene.image, scene.valid, scene.available)
    raster = replace(raster, crs=scene.crs, transform=scene.transform)
    write_maps(experiment.predictor, raster, folder.path, colours=colours)
    split = experiment.folds[plan.train.seed]
    kinds = (1 * split.train + 2 * split.guard + 3 * split.test).astype(np.uint8)
    form = RasterForm(
        scene.height, scene.width, ("1 train, 2 guard, 3 test",), "uint8", 0, scene.crs, scene.transform, ids=True
    )
    write_cog(folder.split, kinds[None], form)
    write_text(folder.config, yaml.safe_dump(plan.plain(), sort_keys=False))
    write_text(folder.metrics, metrics_csv(experiment))
    write_json(folder.card, run_card(experiment))
    shutil.rmtree(folder.path / "states", ignore_errors=True)  # a finished run needs no state


def metrics_csv(experiment: Experiment) -> str:
    """One row per trained model."""
    return results_csv(
        record_of(
            assessment,
            system=experiment.plan.system,
            variant="dense" if name == TWIN else ROUTED,
            measures=measures_of(assessment.subsets),
            split=experiment.folds[assessment.seed].name,
            train_pixels=int(experiment.folds[assessment.seed].train.sum()),
            identity={},
        )
        for name, assessments in experiment.runs.items()
        for assessment in assessments
    )


def _compare(runs: Mapping[str, list[Assessment]]) -> Comparison:
    (name, ours), (twin, theirs) = runs.items()
    seeds = np.concatenate([np.full(len(a.counts), a.seed) for a in ours])
    stacked = [np.concatenate([a.counts for a in side]) for side in (ours, theirs)]
    blocks = np.concatenate([a.blocks for a in ours])
    return compare(name, f"its {twin}", *stacked, seeds, blocks)
