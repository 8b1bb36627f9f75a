"""``terramoe explain``: which sensors, bands and pixels a prediction rests on."""

from __future__ import annotations

from terramoe.cli.options import add_scene, parser


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    from terramoe.experiments.attribution import ExplainSettings

    options = parser(
        "explain",
        "Attribute the score of a pixel (--row, --column), or of a class over the window where it is most common "
        "(--class), to sensors, bands and pixels, beside the map of experts. Of several sensors, what is not given is "
        "missing, as in predict. Labels are optional: they tell the truth at the pixel. Needs captum: "
        "pip install 'terramoe[explain]'.",
    )
    options.add_argument("--config", action="config", help="settings from a YAML file")
    options.add_argument("model", help="run folder, or its model.safetensors")
    add_scene(options)
    options.add_argument("--row", type=int, help="of the pixel, from 0")
    options.add_argument("--column", type=int, help="of the pixel, from 0")
    options.add_argument("--class", help="value or name of the class to explain (default: the predicted one)")
    options.add_class_arguments(ExplainSettings)
    options.add_argument("-o", "--output", default="explanation", help="folder of the files (default: explanation)")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)
    made = vars(options.instantiate(chosen))
    settings = ExplainSettings(**{name: made[name] for name in ExplainSettings.__dataclass_fields__})

    import json

    from rich.console import Console

    from terramoe.cli.explain_job import class_number, facts, open_image, print_facts, write_explanation
    from terramoe.experiments.explain import explain
    from terramoe.inference import load_predictor

    predictor = load_predictor(chosen.model)
    raster, labels = open_image(chosen, predictor)
    with raster:
        target = None if chosen["class"] is None else class_number(predictor, chosen["class"])
        found = explain(predictor, raster, row=chosen.row, column=chosen.column, target=target, settings=settings)
    told = facts(predictor, raster, found, labels)
    paths = write_explanation(predictor, raster, found, told, chosen.output)
    if chosen.json:
        print(json.dumps(told, indent=2))
        return 0
    console = Console()
    print_facts(told, console)
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)
    return 0
