"""The report of an experiment: one HTML file that needs neither network nor scripts."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from terramoe._version import __version__
from terramoe.data import missing_classes
from terramoe.experiments import Experiment
from terramoe.inference import uncertainty_bands
from terramoe.reporting import figures
from terramoe.reporting.palette import class_colours
from terramoe.reporting.wording import (
    above_baselines,
    cost_row,
    mean_and_spread,
    next_command,
    percent,
    percent_interval,
    verdict,
)
from terramoe.storage import write_bytes, write_text


def write_report(experiment: Experiment, path: str | Path) -> None:
    """Draw the report and write it under ``path`` in one step."""
    environment = Environment(
        loader=PackageLoader("terramoe", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "interval": percent_interval, "mean_and_spread": mean_and_spread}
    template = environment.get_template("report.html.jinja")
    folder = str(Path(path).parent)
    text = template.render(
        experiment=experiment,
        name=experiment.card.name,
        version=__version__,
        verdict=verdict(experiment),
        above=above_baselines(experiment),
        costs={name: cost_row(experiment, name) for name in experiment.runs},
        class_rows=_class_rows(experiment),
        layer_rows=_layer_rows(experiment),
        figures=_figures(experiment),
        config=yaml.safe_dump(experiment.plan.plain(), sort_keys=False),
        next_command=next_command(experiment, folder),
    )
    write_text(path, text)


def write_overview(experiment: Experiment, path: str | Path) -> None:
    """A picture for a README: truth, prediction and the first routed layer's map of experts."""
    scene, system = experiment.scene, experiment.predictor.system
    whole = experiment.whole
    prediction = np.where(scene.valid, whole.probability.argmax(axis=0) + 1, 0)
    layer, maps = next(iter(whole.routing.items()))
    colours = class_colours(scene.classes)
    write_bytes(path, figures.overview(scene.labels, prediction, maps[0], system.expert_names(layer), colours))


def _figures(experiment: Experiment) -> dict[str, str]:
    """Data addresses of all figures, by name."""
    scene, plan = experiment.scene, experiment.plan
    name = experiment.card.name
    first, split = experiment.runs[name][0], experiment.folds[plan.train.seed]
    colours = class_colours(scene.classes)
    whole = experiment.whole
    shown = np.where(scene.valid, whole.probability.argmax(axis=0) + 1, 0)
    scored = first.tile.probability.argmax(axis=0) + 1
    outcome = np.where(split.test, scored, shown)  # test pixels as they were scored, with training pixels hidden
    names = {layer: experiment.predictor.system.expert_names(layer) for layer in first.statistics}
    losses = {n: [[sum(epoch.values()) for epoch in r.history.losses] for r in rs] for n, rs in experiment.runs.items()}
    draw: dict[str, Callable[[], bytes]] = {
        "maps": lambda: figures.prediction_beside_truth(scene.labels, outcome, split.test, scene.class_names, colours),
        "split": lambda: figures.split_map(split.train, split.guard, split.test),
        "uncertainty": lambda: figures.uncertainty_map(uncertainty_bands(whole.probability)[0], scene.valid),
        "confusion": lambda: figures.confusion_matrix(experiment.scores[name].counts, scene.class_names),
        "reliability": lambda: figures.reliability_curves({n: s.reliability for n, s in experiment.scores.items()}),
        "training": lambda: figures.training_curves(losses, plan.train.steps_per_epoch),
    }
    if whole.routing:
        draw["experts"] = lambda: figures.expert_maps(whole.routing, names)
        draw["load"] = lambda: figures.load_bars(first.statistics, names)
    if experiment.alignments:
        draw["alignment"] = lambda: figures.class_expert_table(experiment.alignments, scene.class_names)
    return {key: "data:image/png;base64," + base64.b64encode(make()).decode() for key, make in draw.items()}


def _class_rows(experiment: Experiment) -> list[dict[str, object]]:
    """One row a class: support, recall and F1 with intervals, and the folds in which it had no training pixel."""
    scene, scores = experiment.scene, experiment.scores[experiment.card.name]
    missing = {seed: missing_classes(split, scene.labels) for seed, split in experiment.folds.items()}
    return [
        {
            "name": class_name,
            "support": int(scores.counts[k].sum()),
            "recall": scores.recall[k],
            "f1": scores.f1[k],
            "untrained": ", ".join(f"seed {seed}" for seed, classes in missing.items() if k + 1 in classes),
        }
        for k, class_name in enumerate(scene.class_names)
    ]


def _layer_rows(experiment: Experiment) -> list[dict[str, object]]:
    """One row a routed layer of the first seed's model."""
    first = experiment.runs[experiment.card.name][0]
    return [
        {"name": layer, "statistics": numbers, "alignment": experiment.alignments.get(layer)}
        for layer, numbers in first.statistics.items()
    ]
