"""``terramoe trust``: calibration, sets of classes, risk, weak strata, and what the routing follows."""

from __future__ import annotations

from terramoe.cli.options import add_scene, parser, read_scene


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser(
        "trust",
        "Examine a trained model on its test pixels: are its probabilities honest, before and after temperature "
        "scaling; which classes may it not exclude; how wrong is it where it is sure; where does it fail; and what "
        "does its routing follow? Half of the test blocks calibrate, the other half is judged.",
    )
    options.add_argument("model", help="run folder, or its model.safetensors")
    add_scene(options)
    options.add_argument("--error", type=float, default=0.1, help="share of sets that may miss (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the halving and all draws (default: %(default)s)")
    options.add_argument("-o", "--output", default="trust", help="folder (default: trust)")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    import json
    from dataclasses import asdict
    from pathlib import Path

    from rich.console import Console

    from terramoe.experiments.arrange import arrange
    from terramoe.experiments.card import plain
    from terramoe.experiments.evaluate import fair_pixels
    from terramoe.experiments.trust import examine_trust
    from terramoe.inference import load_predictor
    from terramoe.reporting.compare_figures import reliability_diagram, risk_against_coverage
    from terramoe.reporting.trust_console import print_trust
    from terramoe.storage import write_json

    predictor = load_predictor(chosen.model)
    scene, split, which = fair_pixels(chosen.model, predictor, arrange(read_scene(chosen), predictor))
    trust = examine_trust(predictor, scene, split, error=chosen.error, seed=chosen.seed)
    folder = Path(chosen.output)
    reliability_diagram(folder / "reliability.png", trust.after)
    risk_against_coverage(folder / "risk.png", {predictor.name: trust.risk})
    found = plain({"which": which, **asdict(trust)})
    found["risk"] = {key: found["risk"][key] for key in ("aurc", "excess")}  # the curve itself is in risk.png
    write_json(folder / "trust.json", found)
    if chosen.json:
        print(json.dumps(found, indent=2))
    else:
        console = Console()
        print_trust(trust, which, scene.class_names, console)
        console.print(f"\nFiles: {folder}", highlight=False, soft_wrap=True)
    return 0
