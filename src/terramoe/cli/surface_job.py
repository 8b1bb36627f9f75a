"""``fit``, ``evaluate`` and ``predict`` for systems that fuse what several sensors saw of one surface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from terramoe.cli.options import parser
from terramoe.data.rasters import MEMORY_GIB
from terramoe.errors import ConfigError

if TYPE_CHECKING:
    from terramoe.data.surfaces import Surfaces
    from terramoe.experiments.simulated_surfaces import KnownSurface
    from terramoe.storage import StoredEstimator

FILES_HELP = (
    "NAME=FILE,NAME=FILE, a raster of one band a sensor; nodata are gaps. Pixels may be 1, 2, 4, 8 ... times as wide "
    "as the finest; the maps are on the finest grid. Or surface:NAME[:SEED], a simulated scene"
)


def fit(argv: list[str]) -> int:
    """``terramoe fit`` of a surface; returns the exit code."""
    options = parser(
        "fit",
        "Fuse the rasters of several sensors. The system and its controls are scored on blocks of the precise sensor's "
        "values that are held out, then it is fitted to the whole scene; writes the model and its maps.",
    )
    options.add_argument("--config", action="config", help="settings from a config.yaml of another run")
    options.add_argument("files", help=FILES_HELP)
    options.add_argument("--system", required=True, help="name of a surface system, see 'terramoe systems'")
    _add_noise(options, " (of a simulated scene it is known)")
    options.add_argument("--target", help="the precise sensor; its pixels are the finest (default: of least noise)")
    options.add_argument("--texture", default="", help="sensor whose texture the gate sees (default: the densest)")
    options.add_argument("--model", type=dict[str, Any], default={}, help='settings of the system as {"name": value}')
    options.add_argument("--block", type=int, default=16, help="side of a held-out block in pixels (default: 16)")
    options.add_argument("--guard", type=int, default=4, help="band around it, pixels (default: %(default)s)")
    options.add_argument("--share", type=float, default=0.2, help="of the blocks held out (default: %(default)s)")
    options.add_argument("--seeds", type=int, default=5, help="splits to score (default: %(default)s)")
    options.add_argument("-o", "--output", default="run", help="run folder (default: run)")
    options.add_argument("--overwrite", action="store_true", help="replace a finished run in that folder")
    chosen = options.parse_args(argv)

    from rich.console import Console

    from terramoe.experiments.simulated_surfaces import PREFIX, surface_facts
    from terramoe.experiments.surface_run import SurfacePlan, run_surface, write_surface_run
    from terramoe.inference.surface_maps import surface_maps
    from terramoe.reporting.surface_report import print_surface, write_surface_report
    from terramoe.storage import RunFolder

    made = surface_facts(chosen.files)[0] if chosen.files.startswith(PREFIX) else None
    surfaces, _ = _open(chosen, chosen.noise or "")
    least = min(zip(surfaces.noise, surfaces.names, strict=True))[1]
    plan = SurfacePlan(
        system=chosen.system,
        model={**(made.settings if made and made.system == chosen.system else {}), **chosen.model},
        target=chosen.target or least,
        texture=chosen.texture,
        block=chosen.block,
        guard=chosen.guard,
        share=chosen.share,
        seeds=chosen.seeds,
    )
    folder, console = RunFolder.create(chosen.output, overwrite=chosen.overwrite), Console()
    with console.status("reading") as status:
        found = run_surface(plan, surfaces, status.update)
        status.update("maps and report")
        maps = surface_maps(found.system, surfaces)
        write_surface_report(plan, surfaces, found, maps, folder.path)
        paths = write_surface_run(plan, surfaces, found, maps, folder)
    print_surface(plan, found, console)
    for path in (*paths, folder.path / "experts.png", folder.report, folder.path / "model.skops"):
        console.print(str(path), highlight=False, soft_wrap=True)  # a path must stay in one piece
    return 0


def evaluate(argv: list[str]) -> int:
    """``terramoe evaluate`` of a surface model; returns the exit code."""
    options = parser(
        "evaluate", "Score a surface model on a scene against its truth, or against another, better elevation model."
    )
    _add_model(options)
    options.add_argument(
        "--truth", help="raster on the finest sensor's grid; nodata do not count (of a simulated scene it is known)"
    )
    options.add_argument("--unseen", action="store_true", help="only where the precise sensor has no value of its own")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    import json

    from rich.console import Console

    from terramoe.data.surfaces import read_surface
    from terramoe.experiments.surface_evaluate import evaluate_surface
    from terramoe.inference.surface_maps import load_surface_system

    stored = load_surface_system(chosen.model)
    surfaces, known = _open(chosen, *_of_model(chosen, stored))
    if known is None and chosen.truth is None:
        raise ConfigError("no truth is given", where="--truth", fix="name a raster on the finest sensor's grid")
    truth = known.truth if chosen.truth is None else read_surface(chosen.truth, surfaces, max_gib=chosen.max_gib)
    regimes = None if known is None else known.regimes
    found = evaluate_surface(stored, surfaces, truth, regimes=regimes, unseen=chosen.unseen)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        text = f"{value:,}" if name == "pixels" else f"{value:.4g}"
        Console().print(f"{name.replace('_', ' ')} {text}", highlight=False)
    return 0


def predict(argv: list[str]) -> int:
    """``terramoe predict`` with a surface model; returns the exit code."""
    options = parser(
        "predict",
        "Fuse another scene of the same sensors: mean.tif, std.tif, experts.tif and segments.tif if it segments.",
    )
    _add_model(options)
    options.add_argument("-o", "--output", default="maps", help="folder of the maps (default: maps)")
    chosen = options.parse_args(argv)

    from rich.console import Console

    from terramoe.inference.surface_maps import load_surface_system, surface_maps, write_surface_maps

    stored = load_surface_system(chosen.model)
    surfaces, _ = _open(chosen, *_of_model(chosen, stored))
    for path in write_surface_maps(surface_maps(stored.estimator, surfaces), surfaces, chosen.output):
        Console().print(str(path), highlight=False, soft_wrap=True)
    return 0


def _add_noise(to: ArgumentParser, otherwise: str) -> None:
    what = "standard deviation of each sensor's error, in the unit of the surface: 20,0.5 or radar=20,laser=0.5"
    to.add_argument("--noise", help=what + otherwise)
    to.add_argument("--max-gib", type=float, default=MEMORY_GIB, help="refuse larger rasters (default: %(default)s)")


def _add_model(to: ArgumentParser) -> None:
    to.add_argument("model", help="run folder, or its model.skops")
    to.add_argument("files", help=FILES_HELP)
    _add_noise(to, " (default: as at the fit)")


def _open(chosen: Namespace, noise: str, order: tuple[str, ...] = ()) -> tuple[Surfaces, KnownSurface | None]:
    """The sensors, in the order of ``order`` if given, and what is known of a simulated scene."""
    from terramoe.experiments.simulated_surfaces import PREFIX, known_surface

    if not chosen.files.startswith(PREFIX):
        return _read(chosen, noise, order), None
    known = known_surface(chosen.files)
    surfaces = known.surfaces.arranged(order or known.surfaces.names)
    return surfaces.with_noise(noises(noise, known.surfaces.names)) if noise else surfaces, known


def _read(chosen: Namespace, noise: str, order: tuple[str, ...]) -> Surfaces:
    """The rasters, in the order of ``order`` if given."""
    from terramoe.data.sensor_stack import sensor_files
    from terramoe.data.surfaces import open_surfaces
    from terramoe.errors import DataError

    if not noise:
        raise ConfigError("no noise is given", where="--noise", fix="write 20,0.5 or radar=20,laser=0.5")
    named = sensor_files(chosen.files) or {}
    if order and set(named) != set(order):
        raise DataError(
            f"sensors {', '.join(named) or 'without names'} for a model of {', '.join(order)}",
            where="files",
            fix=f"write {','.join(f'{name}=FILE' for name in order)}",
        )
    files = {name: named[name] for name in order or named}
    return open_surfaces(files or chosen.files, noises(noise, tuple(named)), max_gib=chosen.max_gib)


def _of_model(chosen: Namespace, stored: StoredEstimator) -> tuple[str, tuple[str, ...]]:
    """Noise and order of the sensors: what the user says, or as at the fit."""
    sensors = tuple(stored.data["sensors"])
    kept = ",".join(f"{name}={noise!r}" for name, noise in zip(sensors, stored.data["noise"], strict=True))
    return chosen.noise or kept, sensors


def noises(text: str, names: tuple[str, ...]) -> dict[str, float]:
    """ "20,0.5" in the order of ``names``, or "radar=20,laser=0.5" -> noise by name. ConfigError if it is neither."""
    parts = text.split(",")
    pairs = [part.rpartition("=")[::2] if "=" in part else (None, part) for part in parts]
    keys = [name for name, _ in pairs if name] or list(names)
    try:
        found = dict(zip(keys, [float(value) for _, value in pairs], strict=True))
        if len(found) < len(pairs):
            raise ValueError("a name twice")
        return found
    except ValueError as error:
        raise ConfigError(
            f"'{text}' is no noise for {', '.join(names)}", where="--noise", fix="write 20,0.5 or radar=20,laser=0.5"
        ) from error
