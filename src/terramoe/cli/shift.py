"""``terramoe shift``: how a trained model bears images that differ from those it was trained on."""

from __future__ import annotations

from terramoe.cli.options import add_scene, parser, read_scene


def run(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    from terramoe.experiments.shift import ShiftSettings

    options = parser(
        "shift",
        "Change the image and score the model again: missing bands or sensors, clouds, gain and offset of bands, "
        "noise, bands or labels out of register. Says what each costs, and how the routing answers. A model of several "
        "sensors is told which of them are missing, and each sensor is changed by itself: 'gain:radar'. On the scene "
        "it was trained on, only the model's test pixels count and its training pixels are hidden.",
    )
    options.add_argument("--config", action="config", help="settings from a YAML file")
    options.add_argument("model", help="run folder, or its model.safetensors")
    add_scene(options)
    options.add_class_arguments(ShiftSettings)
    options.add_argument("-o", "--output", default="shift", help="folder of table and figure (default: shift)")
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(with_brackets(argv, "--kinds"))
    made = vars(options.instantiate(chosen))
    settings = ShiftSettings(**{name: made[name] for name in ShiftSettings.__dataclass_fields__})

    import json
    from dataclasses import asdict
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from terramoe.experiments.arrange import arrange
    from terramoe.experiments.evaluate import fair_pixels
    from terramoe.experiments.shift import shift_csv, shift_report, shift_trials
    from terramoe.inference import load_predictor
    from terramoe.reporting.shift_console import print_shift
    from terramoe.reporting.shift_figures import shift_curves
    from terramoe.storage import write_bytes, write_json, write_text

    predictor = load_predictor(chosen.model)
    scene, split, which = fair_pixels(chosen.model, predictor, arrange(read_scene(chosen), predictor))
    trials = shift_trials(predictor, scene, split, settings)
    console = Console(stderr=chosen.json)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("predicting", total=1 + len(trials))
        rows = shift_report(predictor, scene, split, settings, on_row=lambda _: progress.advance(task))
    found = {
        "system": predictor.name,
        "scene": scene.name,
        "which": which,
        "settings": asdict(settings),
        "rows": [asdict(row) for row in rows],
    }
    folder = Path(chosen.output)
    write_text(folder / "shift.csv", shift_csv(rows))
    write_bytes(folder / "shift.png", shift_curves(rows))
    write_json(folder / "shift.json", found)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return 0
    print_shift(rows, which, console)
    for name in ("shift.csv", "shift.png", "shift.json"):
        console.print(str(folder / name), highlight=False, soft_wrap=True)
    return 0


def with_brackets(argv: list[str], option: str) -> list[str]:
    """Lets ``--kinds gain,offset`` stand for ``--kinds [gain,offset]``."""
    joined = []
    for before, word in zip(["", *argv], argv, strict=False):
        if before == option and word[:1] != "[":
            word = f"[{word}]"
        elif word.startswith(f"{option}=") and word[len(option) + 1 : len(option) + 2] != "[":
            word = f"{option}=[{word[len(option) + 1 :]}]"
        joined.append(word)
    return joined
