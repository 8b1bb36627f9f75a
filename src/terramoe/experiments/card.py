"""The card of a run: everything that decides its result, as JSON-able values, so that two runs can be compared.

``assemble`` gives what is known before anything is trained; ``run_card`` adds audit and results. ``diff`` reads both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from inspect import isroutine
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from terramoe.data import Scene, Split, fit_normaliser
from terramoe.experiments.environment import arithmetic, git_commit, machine, source_digest, versions
from terramoe.experiments.plan import Plan, labels_digest, scene_digest
from terramoe.moe import MoELayer
from terramoe.moe.soft import SoftMoELayer
from terramoe.systems import System, plain_config

if TYPE_CHECKING:
    from affine import Affine

    from terramoe.experiments.experiment import Experiment


def run_card(experiment: Experiment) -> dict[str, Any]:
    """Everything that decided the result, and the result in short; no NaN."""
    return plain(
        {
            "system": experiment.plan.system,
            "card": asdict(experiment.card),
            "plan": experiment.plan.plain(),
            "facts": experiment.facts,
            "audit": [asdict(row) for row in experiment.audits],
            "scores": {
                name: {
                    "overall_accuracy": asdict(s.overall),
                    "average_accuracy": asdict(s.average),
                    "kappa": asdict(s.kappa),
                    "per_seed": s.per_seed,
                    "ece": s.reliability.ece,
                }
                for name, s in experiment.scores.items()
            },
            "subsets": {
                " + ".join(present): {name: asdict(found) for name, found in models.items()}
                for present, models in experiment.subsets.items()
            },
            "comparison": None if experiment.comparison is None else asdict(experiment.comparison),
        }
    )


def assemble(plan: Plan, scene: Scene, folds: Mapping[int, Split], systems: Mapping[str, System]) -> dict[str, Any]:
    """What decides the result besides the plan, which the card holds beside it.

    Args:
        folds: the split of each seed.
        systems: the networks that are trained, by a name for each; their weights are not read.

    Returns:
        JSON-able values without NaN.
    """
    return plain(
        {
            "scene": scene.name,
            "scene_size": [scene.bands, scene.height, scene.width],
            "scene_digest": scene_digest(scene),
            "labels_digest": labels_digest(scene),
            "data": _data(scene),
            "grid": _grid(scene),
            "split_digests": {str(seed): split.digest() for seed, split in folds.items()},
            "split_pixels": {str(seed): _pixels(split) for seed, split in folds.items()},
            "tiling": _tiling(plan, patches=any(system.patch for system in systems.values())),
            "normalisation": _normalisation(plan, scene, folds),
            "routing": {name: routing_of(system) for name, system in systems.items()},
            "networks": {name: _network(system) for name, system in systems.items()},
            "seeds": list(folds),
            "versions": versions(),
            "source_digest": source_digest(),
            "git_commit": git_commit(),
            "arithmetic": arithmetic(),
            "machine": machine(),
        }
    )


def _data(scene: Scene) -> dict[str, Any]:
    """What the pixels are. A digest for each band tells another order of bands from other values."""
    return {
        "band_names": list(scene.band_names),
        "band_digests": [_digest(band) for band in scene.image],
        "nodata": scene.nodata,
        "valid_pixels": int(scene.valid.sum()),
        "valid_digest": _digest(scene.valid),
        "labelled_pixels": int((scene.labels > 0).sum()),
        "label_digest": _digest(scene.labels),
        "classes": {str(value): name for value, name in zip(scene.class_values, scene.class_names, strict=True)},
    }


def _grid(scene: Scene) -> dict[str, Any]:
    """Where the pixels lie. A scene has one grid: whatever brought its bands together happened before us."""
    return {
        "crs": None if scene.crs is None else scene.crs.to_string(),
        "transform": None if scene.transform is None else list(scene.transform)[:6],
        "pixel_size": None if scene.transform is None else _pixel_size(scene.transform),
        "unit": None if scene.crs is None else scene.crs.units_factor[0],
        "co_registration": "one raster: all bands share its grid, nothing was resampled or moved",
    }


def _pixel_size(transform: Affine) -> list[float]:
    """Width and height of a pixel, also on a turned grid."""
    return [math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e)]


def _pixels(split: Split) -> dict[str, Any]:
    counts = {kind: int(getattr(split, kind).sum()) for kind in ("train", "guard", "test")}
    return {"fold": split.fold, **counts, "test_blocks": len(np.unique(split.blocks[split.test]))}


def _tiling(plan: Plan, *, patches: bool) -> dict[str, Any]:
    """How windows cover the scene in prediction; see ``inference.windows``."""
    side = plan.train.crop
    return {
        "window": side,
        "overlap": 0 if patches else side // 2,  # a patch brings its own surroundings
        "blend": "raised cosine over both sides, where windows overlap",
        "edge": "the last window ends with the raster",
        "experts": "of the window whose centre is nearest",
    }


def _normalisation(plan: Plan, scene: Scene, folds: Mapping[int, Split]) -> dict[str, Any]:
    """The statistics of every fold that is used: seeds of one fold share its training pixels."""
    found = {}
    for split in folds.values():
        normaliser = fit_normaliser(scene.image, split.train, plan.normaliser, scene.seen)
        found[str(split.fold)] = {"offset": normaliser.offset, "scale": normaliser.scale}
    return {"kind": plan.normaliser, "fitted_on": "training pixels of the fold", "folds": found}


def _network(system: System) -> dict[str, Any]:
    """The settings with the paper's defaults filled in, and the size."""
    return {"parameters": sum(p.numel() for p in system.parameters()), "config": plain_config(system)}


def routing_of(system: nn.Module) -> dict[str, dict[str, Any]]:
    """How each routed layer of a network decides, by the layer's place in the network."""
    found = {}
    for place, layer in system.named_modules():
        if isinstance(layer, MoELayer):
            parts = ("scorer", "link", "selector", "weigh", "capacity", "executor")
            found[place] = {"experts": layer.num_experts, "bank": _bank(layer.bank)}
            found[place] |= {part: _described(getattr(layer, part)) for part in parts}
        elif isinstance(layer, SoftMoELayer):
            found[place] = {"experts": layer.bank.num_experts, "bank": _bank(layer.bank)}
            found[place] |= {"selector": "soft", "slots_per_expert": layer.slots_per_expert}
    return found


def _bank(bank: nn.Module) -> dict[str, Any]:
    sizes = [bank.expert_parameters(expert) for expert in range(bank.num_experts)]
    return {"kind": type(bank).__name__, "parameters": sizes}


def _described(part: object) -> object:
    """A part of a router: its name, and the settings that it keeps as plain values or as parts of its own."""
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isroutine(part):
        return part.__name__
    if is_dataclass(part):
        settings = {field.name: getattr(part, field.name) for field in fields(part)}
    else:
        settings = {name: value for name, value in vars(part).items() if name != "training" and name[0] != "_"}
        inner = part.named_children() if isinstance(part, nn.Module) else ()
        settings |= {name: child for name, child in inner if not type(child).__module__.startswith("torch.")}
    settings = {
        name: _described(value)
        for name, value in settings.items()
        if value is None or isinstance(value, (bool, int, float, str, nn.Module)) or callable(value)
    }
    return {"kind": type(part).__name__, **settings}


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:8]


def plain(value: Any) -> Any:
    """As JSON takes it: tuples as lists, numbers of numpy as Python's, what is not a finite number as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
