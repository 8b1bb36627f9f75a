"""The job behind ``explain``: open the image, write what was found, say it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from rasterio.windows import Window
from rasterio.windows import transform as transform_of
from rich.console import Console
from rich.markup import escape

from terramoe.cli.options import INDIAN_PINES, WORLD, read_scene
from terramoe.data import BENCHMARKS, Raster, raster_of, read_labels
from terramoe.data.sensor_stack import open_files
from terramoe.errors import ConfigError
from terramoe.experiments.arrange import arrange
from terramoe.experiments.explain import Explanation
from terramoe.inference import Predictor
from terramoe.reporting.console import narrow_table
from terramoe.reporting.explain_figures import explanation_figure
from terramoe.storage import RasterForm, write_bytes, write_cog, write_json

MOST_BANDS = 10  # that are printed
LARGE_GAP = 0.05  # share of what the bands make, for and against


def open_image(chosen: Namespace, predictor: Predictor) -> tuple[Raster, np.ndarray | None]:
    """The raster with the sensors of the model, and label values (H, W) if there are any."""
    named = chosen.image == INDIAN_PINES or chosen.image.startswith(WORLD) or chosen.image in BENCHMARKS
    if chosen.labels is None and named:
        scene = arrange(read_scene(chosen), predictor)
        raster = raster_of(scene.name, scene.image, scene.valid, scene.available)
        raster = replace(raster, crs=scene.crs, transform=scene.transform)
        return raster, np.array([0, *scene.class_values])[scene.labels]
    raster = open_files(chosen.image, sensors=predictor.sensors, variable=chosen.image_variable, max_gib=chosen.max_gib)
    if chosen.labels is None:
        return raster, None
    size = {"height": raster.height, "width": raster.width}
    return raster, read_labels(chosen.labels, variable=chosen.labels_variable, max_gib=chosen.max_gib, **size)


def class_number(predictor: Predictor, text: str) -> int:
    """1..K of a class given by its name or its value in the label file; ConfigError if it is neither."""
    for number, (value, name) in enumerate(zip(predictor.class_values, predictor.class_names, strict=True), start=1):
        if text in (name, str(value)):
            return number
    known = ", ".join(map(str, predictor.class_values))
    raise ConfigError(f"the model has no class '{text}'", where="--class", fix=f"use one of {known}")


def facts(predictor: Predictor, raster: Raster, found: Explanation, labels: np.ndarray | None) -> dict[str, Any]:
    """What was found, as JSON-able values."""
    told: dict[str, Any] = {
        "system": predictor.name,
        "method": found.method,
        "class": predictor.class_values[found.target - 1],
        "class_name": predictor.class_names[found.target - 1],
        "row": found.row,
        "column": found.column,
        "window": asdict(found.box),
        "pixels": int(found.region.sum()),
        "score": found.score,
        "baseline": found.baseline,
        "rerouted": found.rerouted,
        "gap": found.gap,
        "sensors": found.by_sensor,
        "available": _available(found),
        "bands": None
        if found.by_band is None
        else dict(zip(_names(raster, found), found.by_band.tolist(), strict=True)),
    }
    if found.row is not None:
        at = (found.row - found.box.row, found.column - found.box.column)
        told["experts"] = {name: int(maps[0][at]) for name, maps in found.routing.items()}
        told["truth"] = None if labels is None else int(labels[found.row, found.column]) or None
    return told


def write_explanation(
    predictor: Predictor, raster: Raster, found: Explanation, told: dict[str, Any], output: str | Path
) -> list[Path]:
    """``attribution.tif`` on the raster's grid, a band a band; ``explanation.png`` and ``explanation.json``.

    The attribution of a band is nodata where its sensor has none.
    """
    folder, box = Path(output), found.box
    window = Window(box.column, box.row, box.width, box.height)
    transform = None if raster.transform is None else transform_of(window, raster.transform)
    names = _names(raster, found) if found.by_band is not None else [found.method]
    form = RasterForm(box.height, box.width, tuple(names), "float32", float("nan"), raster.crs, transform)
    paths = [folder / name for name in ("attribution.tif", "explanation.png", "explanation.json")]
    write_cog(paths[0], np.where(found.seen, found.attribution, np.float32(np.nan)), form)
    experts = {layer: predictor.system.expert_names(layer) for layer in found.routing}
    write_bytes(paths[1], explanation_figure(found, _title(told), _names(raster, found), experts))
    write_json(paths[2], told)
    return paths


def print_facts(told: dict[str, Any], console: Console) -> None:
    """The score, and the bands that count most."""
    scores = f"logit {told['score']:.3f}, of the mean spectrum {told['baseline']:.3f}"
    console.print(f"{_title(told)}: {scores}", highlight=False, markup=False)
    if told.get("truth") is not None:
        console.print(f"The label here is {told['truth']}.", highlight=False)
    for layer, expert in told.get("experts", {}).items():
        console.print(f"{layer}: expert {expert} first" if expert >= 0 else f"{layer}: not routed", highlight=False)
    for name, share in (told["available"] or {}).items():
        if share < 1:
            console.print(
                f"{name} is missing in {100 * (1 - share):.0f} % of the pixels.", highlight=False, markup=False
            )
    if told["sensors"] is not None:
        sums = ", ".join(f"{name} {value:+.4g}" for name, value in told["sensors"].items())
        console.print(f"By sensor, summed over the window: {sums}", highlight=False, markup=False)
    if told["bands"] is not None:
        strongest = sorted(told["bands"].items(), key=lambda item: -abs(item[1]))[:MOST_BANDS]
        table = narrow_table("Bands that count most")
        table.add_column("band")
        table.add_column("sum over the window", justify="right")
        for name, value in strongest:
            table.add_row(escape(name), f"{value:+.4g}")
        console.print(table)
    if told["gap"] is None:
        return
    difference = told["score"] - told["baseline"]
    console.print(
        f"Of the difference of {difference:+.3f} the bands make {sum(told['bands'].values()):+.3f}, other choices of "
        f"experts {told['rerouted']:+.3f}; {told['gap']:+.3f} is left unexplained.",
        highlight=False,
    )
    if abs(told["gap"]) > LARGE_GAP * sum(map(abs, told["bands"].values())):
        console.print("[yellow]That is much: use more --steps.[/yellow]")


def _title(told: dict[str, Any]) -> str:
    if told["row"] is None:
        return f"{told['class_name']}, over {told['pixels']} pixels of a window"
    return f"{told['class_name']} at row {told['row']}, column {told['column']}"


def _available(found: Explanation) -> dict[str, float] | None:
    """The share of the explained pixels that has each sensor; None for a model that does not ask."""
    if found.available is None:
        return None
    shares = found.available[:, found.region].mean(axis=1).tolist()
    return dict(zip([name for name, _ in found.sensors], shares, strict=True))


def _names(raster: Raster, found: Explanation) -> list[str]:
    """A name for each band, with that of its sensor, told apart where two have the same."""
    sensors = found.sensors or (("", raster.bands),)
    owners = [(sensor, number) for sensor, bands in sensors for number in range(1, bands + 1)]
    names = [
        f"{sensor} {name or f'band {number}'}".lstrip()
        for name, (sensor, number) in zip(raster.band_names, owners, strict=True)
    ]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]
