"""Experiments: ``plan`` (what), ``train`` and ``assess`` (one run), ``experiment`` (all runs),
``evaluate`` (a stored model), ``demo`` (the plan of the demonstration).
"""

from terramoe.experiments.assess import Assessment, Scores, assess, pool, routing_follows
from terramoe.experiments.card import assemble, run_card
from terramoe.experiments.demo import demo_plan
from terramoe.experiments.evaluate import Evaluation, evaluate_model
from terramoe.experiments.experiment import (
    TWIN,
    Experiment,
    Progress,
    Silent,
    audit,
    metrics_csv,
    run_experiment,
    write_run,
)
from terramoe.experiments.plan import Plan, SplitSettings, scene_digest
from terramoe.experiments.train import build_for, check_plan, train_on_scene

__all__ = [
    "TWIN",
    "Assessment",
    "Evaluation",
    "Experiment",
    "Plan",
    "Progress",
    "Scores",
    "Silent",
    "SplitSettings",
    "assemble",
    "assess",
    "audit",
    "build_for",
    "check_plan",
    "demo_plan",
    "evaluate_model",
    "metrics_csv",
    "pool",
    "routing_follows",
    "run_card",
    "run_experiment",
    "scene_digest",
    "train_on_scene",
    "write_run",
]
