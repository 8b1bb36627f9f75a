"""The report of a run on surfaces: one HTML file that needs neither network nor scripts; and a summary."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from terramoe._version import __version__
from terramoe.data.surfaces import Surfaces
from terramoe.experiments.surface_run import SurfacePlan, SurfaceRun
from terramoe.inference.surface_maps import SurfaceMaps
from terramoe.reporting.console import narrow_table
from terramoe.reporting.row_report import value_sentence
from terramoe.reporting.surface_figures import expert_map
from terramoe.storage import write_bytes, write_text
from terramoe.systems import ROUTED

MEASURES = {  # of surface_scores: what the tables call them, on the page and in 80 columns
    "rmse": ("RMSE", "RMSE"),
    "mae": ("MAE", "MAE"),
    "bias": ("bias", "bias"),
    "coverage_50": ("within the 50 % interval, %", "in 50 %, %"),
    "coverage_90": ("within the 90 % interval, %", "in 90 %, %"),
    "coverage_95": ("within the 95 % interval, %", "in 95 %, %"),
    "nll": ("negative log density, nats", "NLL, nats"),
}


def sentences(plan: SurfacePlan, found: SurfaceRun) -> list[str]:
    """The system against each control, for people."""
    one = " One split: this says nothing of other held-out blocks." if plan.seeds == 1 else ""
    return [value_sentence(comparison, plan.system, name) + one for name, comparison in found.comparisons.items()]


def print_surface(plan: SurfacePlan, found: SurfaceRun, console: Console) -> None:
    """Measures and comparisons."""
    table = narrow_table(_title(plan))
    table.add_column("measure")
    measures = found.table()
    for variant in measures:
        table.add_column(plan.system if variant == ROUTED else variant, justify="right")
    for key, (_, short) in MEASURES.items():
        table.add_row(short, *(_cell(plan, key, *own[key]) for own in measures.values()))
    console.print(table)
    for text in sentences(plan, found):
        console.print(text, highlight=False)


def write_surface_report(
    plan: SurfacePlan, surfaces: Surfaces, found: SurfaceRun, maps: SurfaceMaps, folder: Path
) -> None:
    """Write ``report.html`` and ``experts.png``."""
    environment = Environment(
        loader=PackageLoader("terramoe", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    png = expert_map(maps)
    write_bytes(folder / "experts.png", png)
    weight = np.maximum(maps.load, np.finfo(float).tiny)
    text = environment.get_template("surface.html.jinja").render(
        plan=plan,
        title=_title(plan),
        sensors=_sensors(surfaces),
        grid=surfaces.grid,
        sentences=sentences(plan, found),
        measures={
            name: [_cell(plan, key, *own[key]) for own in found.table().values()] for key, (name, _) in MEASURES.items()
        },
        variants=[plan.system if name == ROUTED else name for name in found.scores],
        comparisons=found.comparisons,
        p_holm=found.p_holm(),
        experts=list(zip(maps.names, maps.load.tolist(), maps.top.tolist(), _segment_shares(maps), strict=True)),
        segmented=maps.segments is not None,
        effective=float(np.exp(-(weight * np.log(weight)).sum())),
        figure="data:image/png;base64," + base64.b64encode(png).decode(),
        config=plan.config(surfaces),
        version=__version__,
    )
    write_text(folder / "report.html", text)


def _title(plan: SurfacePlan) -> str:
    splits = f"mean ± sd over {plan.seeds} splits" if plan.seeds > 1 else "one split"
    return f"held-out values of {plan.target}, {splits}"


def _cell(plan: SurfacePlan, key: str, mean: float, sd: float) -> str:
    """ "4.61 ± 0.12", of one split without the spread; shares in percent."""
    if key.startswith("coverage"):
        value, spread = f"{100 * mean:.1f}", f"{100 * sd:.1f}"
    else:
        value, spread = f"{mean:+.2g}" if key == "bias" else f"{mean:.3g}", f"{sd:.2g}"
    return f"{value} ± {spread}" if plan.seeds > 1 else value


def _sensors(surfaces: Surfaces) -> list[tuple[str, float, int, float]]:
    """Name, noise, width of a pixel in pixels of the finest, and the share of its own pixels with a value."""
    seen = [(2**one.scale, float(one.seen.mean())) for one in surfaces.observations]
    return [(name, sd, *own) for name, sd, own in zip(surfaces.names, surfaces.noise, seen, strict=True)]


def _segment_shares(maps: SurfaceMaps) -> list[float]:
    """(K,) share of the pixels in each segment; 0 of a system that does not segment."""
    if maps.segments is None:
        return [0.0] * len(maps.names)
    return (np.bincount(maps.segments.ravel(), minlength=len(maps.names)) / maps.segments.size).tolist()
