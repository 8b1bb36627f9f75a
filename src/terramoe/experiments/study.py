"""A study: several variants trained on the same folds with the same seeds, resumable run by run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from terramoe.data import Scene, Split
from terramoe.errors import ConfigError
from terramoe.experiments.assess import Assessment, assess, assess_ensemble
from terramoe.experiments.card import assemble
from terramoe.experiments.experiment import Progress, Silent
from terramoe.experiments.plan import Plan, scene_digest
from terramoe.experiments.record import RunRecord, load_record, record_of, results_csv
from terramoe.experiments.subsets import measures_of
from terramoe.experiments.train import build_for, check_plan, train_on_scene
from terramoe.storage import write_json, write_text
from terramoe.systems import CONTROLS, ROUTED

Measure = Callable[[Assessment, Scene, Split], dict[str, float]]
ENSEMBLE = "ensemble"
APART = 1000  # members of an ensemble have seeds this far apart, beyond any number of runs


@dataclass(frozen=True)
class Variant:
    """One thing to train in every run.

    Attributes:
        system: name in the registry.
        name: what tells it from the other variants of the system.
        control: "routed" or a name of ``CONTROLS``.
        model: settings of the system that differ from the plan's.
        members: more than 1 trains that many with different seeds and averages their probabilities.
    """

    system: str
    name: str = ROUTED
    control: str = ROUTED
    model: Mapping[str, Any] = field(default_factory=dict)
    members: int = 1

    @property
    def label(self) -> str:
        """Name for tables."""
        return self.system if self.name == ROUTED else f"{self.system}, {self.name}"


def with_controls(system: str, controls: Sequence[str] = tuple(CONTROLS), ensemble: int = 0) -> list[Variant]:
    """A system, its controls, and if ``ensemble`` is not 0 that many dense twins averaged.

    Raises:
        ConfigError: there is no such control, or the ensemble has a single member.
    """
    unknown = [c for c in controls if c not in CONTROLS]
    if unknown:
        raise ConfigError(f"there is no control '{unknown[0]}'", where="compare", fix=f"use {', '.join(CONTROLS)}")
    if ensemble and ensemble < 2:
        raise ConfigError(f"an ensemble of {ensemble}", where="compare", fix="use 0 for none, or at least 2")
    variants = [Variant(system), *(Variant(system, name, name) for name in controls)]
    return [*variants, Variant(system, ENSEMBLE, "dense", members=ensemble)] if ensemble else variants


def run_study(
    plan: Plan,
    variants: Sequence[Variant],
    scene: Scene,
    folder: Path,
    progress: Progress | None = None,
    measure: Measure | None = None,
    *,
    every_fold: bool = False,
) -> list[RunRecord]:
    """Train and assess every variant on every seed's fold; finished runs found in ``folder`` are not trained again.

    Writes ``runs/SYSTEM.VARIANT.SEED.FOLD.json`` after each run, ``results.csv`` over all of them, and ``card.json``.

    Args:
        plan: its ``system`` is not read; ``model`` holds for every variant.
        variants: what to train, in order.
        measure: what else to measure on each run, for ``RunRecord.measures``.
        every_fold: every seed tests every fold, not only its own: as many times the work, and the sharpest comparison.

    Raises:
        ConfigError: the folder holds runs of other settings, data or split.
        TerraMoEError: see ``check_plan`` and ``train_on_scene``.
    """
    progress = progress or Silent()
    for variant in variants:
        check_plan(_plan_of(plan, variant), scene)
    digest, records = scene_digest(scene), []
    runs = _runs(plan, scene, variants, every_fold)
    for seed, split, variant in runs:
        path = folder / "runs" / f"{variant.system}.{variant.name}.{seed}.{split.fold}.json"
        identity = _identity(plan, variant, digest, split)
        if path.exists():
            records.append(_same(load_record(path), identity, path))
        else:
            progress.stage(f"run {len(records) + 1} of {len(runs)}: {variant.label}, seed {seed}")
            found = _train(_plan_of(plan, variant), variant, scene, split, seed, folder, progress)
            record = record_of(
                found,
                system=variant.system,
                variant=variant.name,
                split=split.name,
                train_pixels=int(split.train.sum()),
                identity=identity,
                measures=measures_of(found.subsets) | (measure(found, scene, split) if measure is not None else {}),
            )
            record.save(path)
            records.append(record)
        write_text(folder / "results.csv", results_csv(records))
    write_json(folder / "card.json", _card(plan, variants, scene))
    return records


def _card(plan: Plan, variants: Sequence[Variant], scene: Scene) -> dict[str, Any]:
    """Everything that decides the results, for ``diff``."""
    systems = {v.label: build_for(_plan_of(plan, v), scene, plan.train.seed, v.control) for v in variants}
    return {"plan": plan.plain(), "facts": assemble(plan, scene, plan.folds(scene), systems)}


def _runs(plan: Plan, scene: Scene, variants: Sequence[Variant], every_fold: bool) -> list[tuple[int, Split, Variant]]:
    """Seed by seed, so that a study that is stopped early is balanced."""
    folds = list(plan.split.for_scene(scene).masks(scene.labels))
    return [
        (seed, split, variant)
        for seed, own in plan.folds(scene).items()
        for split in (folds if every_fold else [own])
        for variant in variants
    ]


def _train(
    plan: Plan, variant: Variant, scene: Scene, split: Split, seed: int, folder: Path, progress: Progress
) -> Assessment:
    members = []
    for number in range(variant.members):
        own = seed + APART * number
        state = folder / "states" / f"{variant.system}-{variant.name}-{own}-{split.fold}.safetensors"
        predictor, history = train_on_scene(
            plan,
            scene,
            split,
            own,
            control=variant.control,
            state_path=state,
            on_step=lambda done, loss: progress.step(variant.label, done, plan.train.all_steps, loss),
        )
        members.append(assess(predictor, scene, split, history, seed))
        state.unlink(missing_ok=True)
    return members[0] if variant.members == 1 else assess_ensemble(members, scene, split)


def _plan_of(plan: Plan, variant: Variant) -> Plan:
    return replace(plan, system=variant.system, model={**plan.model, **variant.model})


def _identity(plan: Plan, variant: Variant, scene: str, split: Split) -> dict[str, Any]:
    """What decides a run besides its seed, as JSON gives it back."""
    train = {key: value for key, value in asdict(plan.train).items() if key not in ("seed", "save_every")}
    model = {key: list(v) if isinstance(v, tuple) else v for key, v in {**plan.model, **variant.model}.items()}
    facts = {"scene": scene, "split": split.digest(), "train": train, "model": model, "normaliser": plan.normaliser}
    return {**facts, "control": variant.control, "members": variant.members}


def _same(record: RunRecord, identity: Mapping[str, Any], path: Path) -> RunRecord:
    changed = [key for key, value in identity.items() if record.identity.get(key) != value]
    if changed:
        raise ConfigError(
            f"this run was made with another {' and '.join(changed)}", where=path, fix="use another folder with -o"
        )
    return record
