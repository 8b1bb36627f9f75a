"""``terramoe drift``: is a new image drawn as the reference was?"""

from __future__ import annotations

from terramoe.cli.options import parser


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser(
        "drift",
        "Compare a new image with a reference, as a trained model sees them: the load of its experts, its class "
        "probabilities, and every band, each with a known rate of false alarms; and the class shares that would "
        "explain the new image if nothing else changed. Neither image needs labels.",
    )
    options.add_argument("model", help="run folder, or its model.safetensors")
    options.add_argument("reference", help="raster with the bands of the training scene")
    options.add_argument("new", help="raster with the same bands")
    options.add_argument("--level", type=float, default=0.05, help="rate of false alarms (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    import json
    from dataclasses import asdict

    from rich.console import Console

    from terramoe.data import open_raster
    from terramoe.experiments.card import plain
    from terramoe.experiments.scene_drift import scene_drift
    from terramoe.inference import load_predictor
    from terramoe.reporting.trust_console import print_drift

    predictor = load_predictor(chosen.model)
    with open_raster(chosen.reference) as reference, open_raster(chosen.new) as new:
        found = scene_drift(predictor, reference, new, level=chosen.level, seed=chosen.seed)
    if chosen.json:
        print(json.dumps(plain(asdict(found)), indent=2))
        return 0
    console = Console()
    print_drift(found.tests, found.bands.tolist(), console)
    for name, share in zip(predictor.class_names, found.shares, strict=True):
        console.print(f"  {name}: {100 * share:.1f} % of the new image, if only shares changed", highlight=False)
    console.print("[bold]Drifted[/bold]" if found.drifted else "[bold]No drift seen[/bold]")
    return 0
