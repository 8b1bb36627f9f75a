"""A surface system on the user's own scene: held-out blocks, controls, the fitted system, and maps.

The values of the precise sensor in some square blocks, and in a guard band around them, are hidden from fit and
posterior; what the surface says there is scored against them. Each seed draws other blocks of the same scene, so the
spread over seeds is that of the split, not of other scenes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.ndimage import maximum_filter

from terramoe.data.splits.blocks import block_ids
from terramoe.data.surfaces import Surfaces
from terramoe.data.worlds.fields import stream
from terramoe.errors import ConfigError, SplitError
from terramoe.evaluation.holm import holm
from terramoe.evaluation.row_scores import ValueComparison, block_moments, compare_values
from terramoe.experiments.surface_scores import surface_scores
from terramoe.inference.surface_maps import SurfaceMaps, write_surface_maps
from terramoe.mixtures.quad_tree import Observation
from terramoe.storage import RunFolder, save_estimator, write_json, write_text
from terramoe.systems import ROUTED
from terramoe.systems.surface_registry import build_surface_system
from terramoe.systems.surface_system import SurfaceSystem

OnStage = Callable[[str], None]


@dataclass(frozen=True)
class SurfacePlan:
    """What is fitted and how it is scored.

    Attributes:
        system: name in the registry. model: settings of the system, without ``target``.
        target: name of the precise sensor; its pixels are the finest.
        texture: of the dense one, for a system that asks for it; "": the other sensor with the most values.
        block, guard: side of a held-out block and width of the band around it, in pixels. share: of the blocks.
        seeds: how many splits.
    """

    system: str
    model: dict[str, Any]
    target: str
    texture: str = ""
    block: int = 16
    guard: int = 4
    share: float = 0.2
    seeds: int = 5

    def __post_init__(self) -> None:
        for holds, name, fix in (
            (self.block >= 1, "block", "use at least 1 pixel"),
            (self.guard >= 0, "guard", "use 0 or more pixels"),
            (0 < self.share < 1, "share", "use a share between 0 and 1"),
            (self.seeds >= 1, "seeds", "use at least 1"),
        ):
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="surface plan", fix=fix)

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return json.loads(json.dumps(asdict(self)))

    def config(self, surfaces: Surfaces) -> str:
        """YAML with the noise of the sensors: what ``terramoe fit FILES --config`` reads."""
        noise = ",".join(f"{name}={sd!r}" for name, sd in zip(surfaces.names, surfaces.noise, strict=True))
        return yaml.safe_dump({**self.plain(), "noise": noise}, sort_keys=False)


@dataclass(frozen=True)
class SurfaceRun:
    """What ``run_surface`` found.

    Attributes:
        system: fitted to the whole scene.
        scores: variant -> for each seed the measures of ``surface_scores``; "routed" is the system.
        comparisons: control -> the system against it, over blocks and seeds.
    """

    system: SurfaceSystem
    scores: dict[str, list[dict[str, float]]]
    comparisons: dict[str, ValueComparison]

    def p_holm(self) -> dict[str, float]:
        """Control -> p-value of no difference, corrected for the number of controls."""
        values = holm(np.array([found.p_value for found in self.comparisons.values()]))
        return dict(zip(self.comparisons, values.tolist(), strict=True))

    def table(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Variant -> measure -> mean and standard deviation (n - 1) over seeds."""
        return {name: _spread(rows) for name, rows in self.scores.items()}


def hold_out(target: Observation, plan: SurfacePlan, seed: int) -> tuple[Observation, np.ndarray, np.ndarray]:
    """The target without its values in and around some blocks, where it is tested (H, W), and ids of the blocks (H, W).

    Raises:
        SplitError: no value would be left to fit to, or to test.
    """
    blocks = block_ids(target.value.shape, plan.block)
    seen = np.unique(blocks[target.seen])
    count = max(1, round(plan.share * len(seen)))
    held = np.isin(blocks, stream(seed, "held-out blocks").permutation(seen)[:count])
    hidden = maximum_filter(held, 2 * plan.guard + 1)
    if not (target.seen & ~hidden).any() or not (held & target.seen).any():
        raise SplitError("no value is left beside the held-out ones", where="split", fix="use smaller blocks or guard")
    return replace(target, value=np.where(hidden, np.nan, target.value)), held & target.seen, blocks


def configured(plan: SurfacePlan, surfaces: Surfaces) -> SurfaceSystem:
    """The unfitted system. ConfigError for an unknown system, setting or sensor."""
    target = surfaces.index(plan.target)
    settings = dict(plan.model) | {"target": target}
    if "texture" in build_surface_system(plan.system, {}).get_params():
        others = [i for i in range(len(surfaces.names)) if i != target]
        if not others:
            raise ConfigError("there is one sensor only", where=plan.system, fix="name a dense sensor beside it")
        most = max(others, key=lambda i: surfaces.observations[i].seen.mean())
        settings["texture"] = surfaces.index(plan.texture) if plan.texture else most
    elif plan.texture:
        raise ConfigError(f"{plan.system} asks for no texture", where="texture", fix="leave it out")
    return build_surface_system(plan.system, settings)


def run_surface(plan: SurfacePlan, surfaces: Surfaces, stage: OnStage = lambda text: None) -> SurfaceRun:
    """Score the system and its controls on held-out blocks, then fit it to the whole scene."""
    system, index = configured(plan, surfaces), surfaces.index(plan.target)
    target = surfaces.observations[index]
    variants = (ROUTED, *system.controls)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    moments: dict[str, list[np.ndarray]] = {name: [] for name in variants}
    seeds, block_rows = [], []
    for seed in range(plan.seeds):
        stage(f"split {seed + 1} of {plan.seeds}")
        rest, test, blocks = hold_out(target, plan, seed)
        scene = [rest if i == index else one for i, one in enumerate(surfaces.observations)]
        fitted = system.control(ROUTED).fit(scene)
        for name in variants:
            found = (fitted if name == ROUTED else fitted.control(name).fit(scene)).posterior(scene)
            scores[name].append(surface_scores(found, target.value, test, target.variance))
            std = np.sqrt(found.variance[test] + target.variance[test])
            columns = (part[:, None] for part in (target.value[test], found.mean[test], std))
            moments[name].append(block_moments(*columns, blocks[test]))
        tested = np.unique(blocks[test])
        seeds.append(np.full(len(tested), seed))
        block_rows.append(tested)
    joined = {name: np.concatenate(parts) for name, parts in moments.items()}
    seed_of_row, block_of_row = np.concatenate(seeds), np.concatenate(block_rows)
    comparisons = {
        name: compare_values(joined[ROUTED], joined[name], seed_of_row, block_of_row) for name in system.controls
    }
    stage("whole scene")
    return SurfaceRun(system.fit(list(surfaces.observations)), scores, comparisons)


def write_surface_run(
    plan: SurfacePlan, surfaces: Surfaces, found: SurfaceRun, maps: SurfaceMaps, folder: RunFolder
) -> list[Path]:
    """``model.skops``, ``config.yaml``, the maps, and ``run.json`` last; returns the paths of the maps."""
    settings = {key: value for key, value in found.system.get_params().items() if _plain(value)}
    data = {
        "sensors": list(surfaces.names),
        "noise": [float(noise) for noise in surfaces.noise],
        "scales": [one.scale for one in surfaces.observations],
        "target": plan.target,
    }
    save_estimator(folder.path, found.system, system=plan.system, settings=settings, data=data)
    write_text(folder.config, plan.config(surfaces))
    paths = write_surface_maps(maps, surfaces, folder.path)
    spread = found.table()
    scores = {
        name: {
            "mean": {key: value[0] for key, value in spread[name].items()},
            "sd": {key: value[1] for key, value in spread[name].items()},
            "seeds": rows,
        }
        for name, rows in found.scores.items()
    }
    card = {
        "kind": "surfaces",
        "system": plan.system,
        "plan": plan.plain(),
        "facts": {"grid": list(surfaces.grid), **data, "experts": list(maps.names)},
        "load": {name: float(share) for name, share in zip(maps.names, maps.load, strict=True)},
        "scores": scores,
        "controls": {
            name: asdict(comparison) | {"p_holm": found.p_holm()[name]}
            for name, comparison in found.comparisons.items()
        },
    }
    write_json(folder.card, card)
    return paths


def _spread(rows: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    ddof = min(1, len(rows) - 1)
    return {
        key: (float(np.mean([row[key] for row in rows])), float(np.std([row[key] for row in rows], ddof=ddof)))
        for key in rows[0]
    }


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)
