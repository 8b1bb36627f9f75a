"""``terramoe predict``: maps of a raster of any size."""

from __future__ import annotations

from terramoe.cli.options import parser
from terramoe.cli.system_kind import kind_of_model

RASTER_HELP = (
    "GeoTIFF, ENVI, .mat or .npy with the bands of the training scene; or NAME=FILE,NAME=FILE, one a sensor: what a "
    "model of several sensors is not given, it does without"
)


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    kind = kind_of_model(argv)
    if kind == "rows":
        from terramoe.cli import rows_job

        return rows_job.predict(argv)
    if kind == "surfaces":
        from terramoe.cli import surface_job

        return surface_job.predict(argv)
    options = parser(
        "predict",
        "Write prediction.tif, experts.tif and uncertainty.tif as Cloud Optimized GeoTIFFs on the raster's own grid. "
        "Reads and writes by window: memory does not grow with the raster.",
    )
    options.add_argument("model", help="run folder, or its model.safetensors")
    options.add_argument("raster", help=RASTER_HELP)
    options.add_argument("-o", "--output", default="maps", help="folder of the maps (default: maps)")
    options.add_argument("--tile", type=int, default=256, help="side of a tile in pixels (default: %(default)s)")
    options.add_argument("--probability", action="store_true", help="also write probability.tif, a band a class")
    options.add_argument("--variable", help="array of a .mat file")
    options.add_argument("--max-gib", type=float, default=64.0, help="refuse larger rasters (default: %(default)s)")
    chosen = options.parse_args(argv)

    from rich.console import Console
    from rich.progress import Progress

    from terramoe.data import open_raster, open_stack, sensor_files
    from terramoe.inference import load_predictor, write_maps
    from terramoe.reporting import class_colours

    predictor = load_predictor(chosen.model)
    console = Console()
    files = sensor_files(chosen.raster)
    if files is None:
        opened = open_raster(chosen.raster, variable=chosen.variable, max_gib=chosen.max_gib)
    else:
        opened, _ = open_stack(files, sensors=predictor.sensors, max_gib=chosen.max_gib)
    with opened as raster, Progress(console=console) as progress:
        task = progress.add_task("predicting", total=raster.height * raster.width)
        paths = write_maps(
            predictor,
            raster,
            chosen.output,
            tile=chosen.tile,
            colours=class_colours(len(predictor.class_values)),
            probability=chosen.probability,
            on_tile=lambda done: progress.update(task, completed=done),
        )
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)  # a path must stay in one piece
    return 0
