"""The job behind ``audit``: read a scene or a table, audit several splits of it, draw and write what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from sklearn.model_selection import KFold

from terramoe.cli.options import read_scene
from terramoe.data import (
    LeaveGroupOut,
    PointBlockSplit,
    PointKNNDM,
    PointTable,
    Scene,
    audit_split,
    audit_table,
    autocorrelation_range,
    distances_of,
    open_raster,
    read_points,
)
from terramoe.data.audit_table import PointSplitter, fold_of, hull_points
from terramoe.data.point_table import read_places
from terramoe.data.splits import nearest, positions_of
from terramoe.errors import ConfigError, DataError, SplitError
from terramoe.experiments import SplitSettings
from terramoe.reporting.split_figures import COLOURS, distance_histogram, kinds_map, points_map
from terramoe.reporting.split_page import Audits, write_split_page
from terramoe.storage import RasterForm, write_bytes, write_cog, write_json

CONTROLS = ("random", "block", "field", "knndm")
MOST_GROUPS = 20  # that are left out one by one; more are dealt to the folds


@dataclass(frozen=True)
class Found:
    """What an audit found.

    Attributes:
        title: of scene or table. kind: the chosen split. unit: of distances.
        audits: one for each split. skipped: splits that cannot be made, with the reason.
        facts: what else decided the numbers. draw: PNG of the map and of the distances, by name, drawn when called.
        kinds: (H, W) uint8, 1 train, 2 guard, 3 test; None for a table. form: how to write it.
    """

    title: str
    kind: str
    unit: str
    audits: Audits
    skipped: dict[str, str]
    facts: dict[str, Any]
    draw: dict[str, Callable[[], bytes]]
    kinds: np.ndarray | None = None
    form: RasterForm | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        leaks = next(a.leaks for a in self.audits if a.name == self.kind)
        head = {"name": self.title, "kind": self.kind, "leaks": leaks, "unit": self.unit, **self.facts}
        return {**head, "audits": [asdict(a) for a in self.audits], "skipped": self.skipped}


def audit_image(chosen: Namespace, settings: SplitSettings) -> Found:
    """Audit splits of a scene: the chosen one beside the controls, and whatever a raster is given for."""
    scene = read_scene(chosen)
    area = _area(chosen.area, scene)
    settings = replace(settings, groups=chosen.groups, official=chosen.official)
    radius = settings.guard if chosen.radius is None else chosen.radius
    reach = autocorrelation_range(scene.labels)
    splits = {}

    def audit(kind: str) -> object:
        folds = list(settings.splitter(kind, area).masks(scene.labels))
        splits[kind] = folds[chosen.fold % len(folds)]
        return audit_split(scene, splits[kind], radius=radius, area=area, label_range=reach)

    given = [kind for kind, path in (("group", chosen.groups), ("official", chosen.official)) if path]
    audits, skipped = _each(dict.fromkeys([*CONTROLS, *given, settings.kind]), settings.kind, audit)
    split = splits[settings.kind]
    title = f"{scene.name}: {split.name} split, fold {split.fold}"
    colours = dict(enumerate(COLOURS.values(), start=1))
    band = ("1 train, 2 guard, 3 test",)
    return Found(
        title=scene.name,
        kind=settings.kind,
        unit="pixels",
        audits=audits,
        skipped=skipped,
        facts={"fold": split.fold, "radius": radius, "area_pixels": int(area.sum())},
        draw={
            "split": lambda: kinds_map(split.train, split.guard, split.test, title),
            "distances": lambda: distance_histogram(*distances_of(scene, split, area), "pixels", title),
        },
        kinds=(1 * split.train + 2 * split.guard + 3 * split.test).astype(np.uint8),
        form=RasterForm(
            scene.height, scene.width, band, "uint8", 0, scene.crs, scene.transform, ids=True, colours=colours
        ),
    )


def audit_points(chosen: Namespace, settings: SplitSettings) -> Found:
    """Audit splits of a table of points."""
    lacking = [name for name in ("x", "y", "label") if getattr(chosen, name) is None]
    if lacking:
        raise ConfigError(f"--{lacking[0]} is not given", where=chosen.image, fix="name the columns: --x --y --label")
    table = read_points(
        chosen.image,
        x=chosen.x,
        y=chosen.y,
        label=chosen.label,
        features=[name.strip() for name in chosen.features.split(",")] if chosen.features else (),
        group=chosen.groups,
        time=chosen.time,
        degrees=chosen.degrees,
    )
    hull = chosen.area == "valid"
    area = hull_points(table.coordinates) if hull else read_places(chosen.area, x=chosen.x, y=chosen.y)
    block = chosen.block or autocorrelation_range(table.labels, table.coordinates, degrees=table.degrees)
    splitters = _point_splitters(table, settings, chosen, area, block)
    if settings.kind not in splitters:
        raise ConfigError(
            f"there is no {settings.kind} split of this table", where="--split.kind", fix=f"use {', '.join(splitters)}"
        )
    audits, skipped = _each(
        splitters,
        settings.kind,
        lambda kind: audit_table(table, {kind: splitters[kind]}, area=area, fold=chosen.fold)[0],
    )
    train, test = fold_of(table, splitters[settings.kind], chosen.fold)
    kinds = np.full(len(table.labels), 2)
    kinds[train], kinds[test] = 1, 3
    title = f"{table.name}: {settings.kind} split, fold {chosen.fold}"
    distances = (
        nearest(table.positions[test], table.positions[train]),
        nearest(positions_of(area, degrees=table.degrees), table.positions),
    )
    return Found(
        title=table.name,
        kind=settings.kind,
        unit=table.unit,
        audits=audits,
        skipped=skipped,
        facts={"fold": chosen.fold, "rows": len(table.labels), "rows_dropped": table.dropped, "block": float(block)},
        draw={
            "split": lambda: points_map(table.coordinates, kinds, title, table.degrees),
            "distances": lambda: distance_histogram(*distances, table.unit, title),
        },
    )


def write_audit(found: Found, folder: str | Path) -> list[Path]:
    """Write split.tif (of a scene), split.png, distances.png, audit.html and audit.json; returns their paths."""
    folder = Path(folder)
    paths = []
    if found.kinds is not None:
        paths.append(folder / "split.tif")
        write_cog(paths[-1], found.kinds[None], found.form)
    figures = {name: draw() for name, draw in found.draw.items()}
    for name, png in figures.items():
        paths.append(folder / f"{name}.png")
        write_bytes(paths[-1], png)
    page, values = folder / "audit.html", folder / "audit.json"
    write_split_page(page, found.title, found.audits, found.kind, found.unit, figures)
    write_json(values, found.plain())
    return [*paths, page, values]


def _point_splitters(
    table: PointTable, settings: SplitSettings, chosen: Namespace, area: np.ndarray, block: float
) -> dict[str, PointSplitter]:
    """The splits that a table can have, by kind."""
    apart = {"guard": chosen.guard, "degrees": table.degrees, "times": table.times, "time_guard": chosen.time_guard}
    places, folds, seed = table.coordinates, settings.folds, settings.seed
    found: dict[str, PointSplitter] = {
        "random": KFold(folds, shuffle=True, random_state=seed),
        "block": PointBlockSplit(places, block or 1.0, folds, seed=seed, **apart),
        "knndm": PointKNNDM(places, area, folds, degrees=table.degrees, seed=seed),
    }
    if table.groups is not None:
        many = len(np.unique(table.groups)) > MOST_GROUPS
        found["group"] = LeaveGroupOut(table.groups, folds if many else None, places, seed=seed, **apart)
    return found


def _each(kinds: Iterable[str], chosen: str, audit: Callable[[str], object]) -> tuple[list[object], dict[str, str]]:
    """Audit each kind; a control that cannot be made is skipped with its reason, the chosen kind is not."""
    audits, skipped = [], {}
    for kind in kinds:
        try:
            audits.append(audit(kind))
        except SplitError as error:
            if kind == chosen:
                raise
            skipped[kind] = str(error)
    return audits, skipped


def _area(name: str, scene: Scene) -> np.ndarray:
    """(H, W) bool: the deployment area that --area names."""
    if name == "valid":
        return scene.valid
    if name == "unlabelled":
        return scene.valid & (scene.labels == 0)
    with open_raster(name) as raster:
        values, known = raster.read(0, 0, raster.height, raster.width)
    if known.shape != scene.valid.shape:
        raise DataError(
            f"the area is {known.shape}, the scene {scene.valid.shape}", where=name, fix="bring both to the same grid"
        )
    return known & (values[0] > 0) & scene.valid
