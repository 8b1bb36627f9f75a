"""``fit``, ``evaluate`` and ``predict`` for systems that answer for the rows of a table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from terramoe.cli.options import parser
from terramoe.data.rasters import MEMORY_GIB
from terramoe.data.read_rows import read_rows
from terramoe.data.row_table import Columns, RowTable

DATA_HELP = "CSV, Parquet, NetCDF, GeoTIFF (a row a pixel), or table:NAME[:SEED], a simulated one"


def fit(argv: list[str]) -> int:
    """``terramoe fit`` on a table; returns the exit code."""
    from dataclasses import replace

    from terramoe.experiments.row_plan import RowPlan
    from terramoe.experiments.simulated_tables import PREFIX, simulated_facts

    options = parser(
        "fit",
        "Train a table system and its controls on rows that are kept apart from the test rows in place, group or time, "
        "and write a run folder.",
    )
    options.add_argument("--config", action="config", help="settings from a config.yaml of another run")
    _add_table(options)
    options.add_argument("-o", "--output", default="run", help="run folder (default: run)")
    options.add_argument("--overwrite", action="store_true", help="replace a finished run in that folder")
    options.add_argument(
        "--controls", type=str | list[str], default="dense", help="such as dense,random; all; or none (default: dense)"
    )
    options.add_class_arguments(RowPlan, skip={"controls"})
    words = ["--split.kind" if word == "--split" else word for word in argv]
    chosen = options.parse_args(words)
    names = RowPlan.__dataclass_fields__
    values = {name: value for name, value in vars(options.instantiate(chosen)).items() if name in names}
    plan = RowPlan(**values | {"controls": _controls(chosen.controls)})
    if chosen.data.startswith(PREFIX):
        facts, _ = simulated_facts(chosen.data)
        settings = facts.settings if facts.system == plan.system else {}
        plan = replace(plan, model={**settings, **plan.model})
    table = read_table(chosen, classes=plan.build(plan.seed).task != "values")
    run_rows_job(plan, table, chosen.output, overwrite=chosen.overwrite)
    return 0


def run_rows_job(plan, table: RowTable, output: str, *, overwrite: bool) -> None:
    """Run, write and print."""
    import yaml
    from rich.console import Console

    from terramoe.cli.progress import LiveProgress
    from terramoe.experiments.row_study import plain_study, run_rows
    from terramoe.inference.write_rows import prediction_frame, write_frame
    from terramoe.reporting.row_report import print_rows, write_row_report
    from terramoe.storage import RunFolder, write_json, write_text

    console = Console()
    plan.check()
    finished = RunFolder(Path(output)).card.exists()
    folder = RunFolder.create(output, overwrite=overwrite)
    if finished:  # a run that was stopped goes on instead
        shutil.rmtree(folder.path / "runs", ignore_errors=True)
    shown = f"{len(table)} rows, {len(table.feature_names)} features, targets {', '.join(table.target_names) or 'none'}"
    console.print(f"{table.name}: {shown}", highlight=False)
    with LiveProgress(console) as progress:
        study = run_rows(plan, table, folder.path, progress)
        progress.stage("map of experts and report")
        everywhere = study.predictor.predict(study.table)
        write_row_report(study, everywhere, folder.path)
        facts = {"plan": plan.plain(), "table": study.table.digest(), "numbers": study.table.numbers_digest()}
        study.predictor.save(folder.path, dict(plan.plain()["model"]), facts)
        test = study.table.at(study.fold.test)
        write_frame(prediction_frame(test, study.predictor, study.prediction), folder.path / "test-predictions.csv")
        write_text(folder.config, yaml.safe_dump(plan.plain(), sort_keys=False))
        write_json(folder.card, {"kind": "rows", **plain_study(study)})
    print_rows(study, console)
    for title, text in (
        ("\nReport", folder.report),
        ("Model", folder.path / "model.skops"),
        ("Next", f"terramoe predict {folder.path} YOUR_TABLE.csv -o predictions.csv"),
    ):
        console.print(f"{title}: {text}", highlight=False, soft_wrap=True)


def evaluate(argv: list[str]) -> int:
    """``terramoe evaluate`` of a table model; returns the exit code."""
    options = parser(
        "evaluate",
        "Score a model on a table. On the table it was trained on, only its test rows count; on any other all rows do.",
    )
    options.add_argument("model", help="run folder, or its model.skops")
    _add_table(options)
    options.add_argument("--json", action="store_true", help="print JSON")
    chosen = options.parse_args(argv)

    from rich.console import Console

    from terramoe.experiments.row_evaluate import evaluate_rows
    from terramoe.inference.row_predictor import load_row_predictor
    from terramoe.reporting.wording import percent_interval

    predictor = load_row_predictor(chosen.model)
    target = predictor.target_names if chosen.target is None and chosen.target_raster is None else None
    table = read_table(chosen, classes=bool(predictor.class_names), features=predictor.feature_names, targets=target)
    found = evaluate_rows(chosen.model, predictor, table)
    if chosen.json:
        print(json.dumps(found.plain(), indent=2))
        return 0
    console = Console()
    console.print(f"{found.rows} rows ({found.which})", highlight=False)
    if found.scores.accuracy is not None:
        console.print(
            f"{predictor.target_names[0]}: {percent_interval(found.scores.accuracy)} % right", highlight=False
        )
    for name, s in found.scores.values.items():
        error = f"RMSE {s.rmse.value:.4g} [{s.rmse.low:.4g}, {s.rmse.high:.4g}], MAE {s.mae:.4g}, bias {s.bias:+.3g}"
        console.print(f"{name}: {error}, R² {s.r2:.3f}, {100 * s.coverage:.0f} % in the 90 % interval", highlight=False)
    return 0


def predict(argv: list[str]) -> int:
    """``terramoe predict`` with a table model; returns the exit code."""
    options = parser(
        "predict",
        "Predict rows, with uncertainty and routing: a table gives a table, a raster maps, NetCDF a NetCDF file.",
    )
    options.add_argument("model", help="run folder, or its model.skops")
    _add_table(options, training=False)
    options.add_argument("-o", "--output", default="maps", help="folder, or a .csv or .parquet file (default: maps)")
    chosen = options.parse_args(argv)

    from rich.console import Console

    from terramoe.inference.row_predictor import load_row_predictor
    from terramoe.inference.write_rows import write_rows

    predictor = load_row_predictor(chosen.model)
    table = read_table(chosen, features=predictor.feature_names)
    for path in write_rows(table, predictor, predictor.predict(table), chosen.output):
        Console().print(str(path), highlight=False, soft_wrap=True)
    return 0


def read_table(
    chosen: Namespace,
    *,
    classes: bool = False,
    features: tuple[str, ...] | None = None,
    targets: tuple[str, ...] | None = None,
) -> RowTable:
    """The table that the options of ``_add_table`` name; ``features`` and ``targets`` of a model come first."""
    from terramoe.experiments.simulated_tables import PREFIX, simulated_table

    if chosen.data.startswith(PREFIX):
        return simulated_table(chosen.data)
    named = vars(chosen)
    columns = Columns(
        targets=targets or _names(named.get("target")) or (),
        features=features or _names(named.get("features")),
        longitude=chosen.longitude,
        latitude=chosen.latitude,
        time=chosen.time,
        group=chosen.group,
        classes=classes,
    )
    raster = named.get("target_raster")
    return read_rows(chosen.data, columns, target_raster=raster, dims=_names(chosen.dims) or (), max_gib=chosen.max_gib)


def _add_table(to: ArgumentParser, *, training: bool = True) -> None:
    to.add_argument("data", help=DATA_HELP)
    if training:
        to.add_argument("target_raster", nargs="?", help="of a GeoTIFF: raster of the targets on the same grid")
        to.add_argument("--target", help="columns to predict, separated by commas; * stands for any letters")
        to.add_argument("--features", help="columns to predict from (default: all other columns of numbers)")
    to.add_argument("--longitude", help="column (default: one that is called longitude, lon or x)")
    to.add_argument("--latitude", help="column (default: one that is called latitude, lat or y)")
    to.add_argument("--time", help="column of numbers or ISO dates (default: one that is called time or date)")
    to.add_argument("--group", help="column of what must not be parted, such as a field, a cruise or a county")
    to.add_argument("--dims", help="of a NetCDF file: the dimensions that a row is a point of")
    to.add_argument("--max-gib", type=float, default=MEMORY_GIB, help="refuse larger files (default: %(default)s)")


def _controls(given: str | list[str] | None) -> tuple[str, ...] | None:
    """As a plan takes them: None for all that the system has."""
    if given in ("all", None):
        return None
    if given == "none":
        return ()
    return tuple(given) if isinstance(given, list) else _names(given)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
