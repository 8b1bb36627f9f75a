"""``terramoe drift``: is a new image drawn as the reference was?"""

from __future__ import annotations

from terramoe.cli.options import parser
from terramoe.data.rasters import MEMORY_GIB

RASTER_HELP = (
    "GeoTIFF, ENVI, .mat or .npy with the bands of the training scene; or NAME=FILE,NAME=FILE, one a sensor: what is "
    "not given is missing"
)


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser(
        "drift",
        "Compare a new image with a reference, as a trained model sees them: the load of its experts, its class "
        "probabilities, every sensor and every band, each with a known rate of false alarms; and the class shares that "
        "would explain the new image if nothing else changed. Sensors are compared where both images have them. "
        "Neither image needs labels.",
    )
    options.add_argument("model", help="run folder, or its model.safetensors")
    options.add_argument("reference", help=RASTER_HELP)
    options.add_argument("new", help="as the reference")
    options.add_argument(
        "--max-gib", type=float, default=MEMORY_GIB, help="refuse larger rasters (default: %(default)s)"
    )
    options.add_argument("--level", type=float, default=0.05, help="rate of false alarms (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    import json
    from dataclasses import asdict

    from rich.console import Console

    from terramoe.data.sensor_stack import open_files
    from terramoe.experiments.card import plain
    from terramoe.experiments.scene_drift import scene_drift
    from terramoe.inference import load_predictor
    from terramoe.reporting.trust_console import print_drift

    predictor = load_predictor(chosen.model)
    files = {"sensors": predictor.sensors, "max_gib": chosen.max_gib}
    with open_files(chosen.reference, **files) as reference, open_files(chosen.new, **files) as new:
        found = scene_drift(predictor, reference, new, level=chosen.level, seed=chosen.seed)
    if chosen.json:
        print(json.dumps(plain(asdict(found)), indent=2))
        return 0
    console = Console()
    tests = {f"sensor {name}": sensor.values for name, sensor in found.sensors.items() if sensor.values is not None}
    print_drift(found.tests | tests, found.bands.tolist(), console, chosen.level)
    for name, sensor in found.sensors.items():
        said = "drifted" if sensor.drifted else "no drift seen" if sensor.values is not None else "cannot be compared"
        shares = (
            f"in {100 * sensor.reference:.0f} % of the reference's pixels, {100 * sensor.new:.0f} % of the new ones"
        )
        console.print(f"Sensor {name}: {said}; {shares}", highlight=False, markup=False)
    if any(sensor.values is None for sensor in found.sensors.values()):
        console.print("What cannot be compared is missing in an image; routing and features answer to that, too.")
    for name, share in zip(predictor.class_names, found.shares, strict=True):
        console.print(f"  {name}: {100 * share:.1f} % of the new image, if only shares changed", highlight=False)
    console.print("[bold]Drifted[/bold]" if found.drifted else "[bold]No drift seen[/bold]")
    return 0
