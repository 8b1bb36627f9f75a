"""Experiments: ``plan`` (what), ``train`` and ``assess`` (one run), ``experiment`` (all runs), ``demo`` (a plan)."""

from terramoe.experiments.assess import Assessment, Scores, assess, pool, routing_follows
from terramoe.experiments.demo import demo_plan
from terramoe.experiments.experiment import (
    TWIN,
    Experiment,
    Progress,
    Silent,
    audit,
    metrics_csv,
    run_card,
    run_experiment,
    write_run,
)
from terramoe.experiments.plan import Plan, SplitSettings, scene_digest
from terramoe.experiments.train import build_for, train_on_scene

__all__ = [
    "TWIN",
    "Assessment",
    "Experiment",
    "Plan",
    "Progress",
    "Scores",
    "Silent",
    "SplitSettings",
    "assess",
    "audit",
    "build_for",
    "demo_plan",
    "metrics_csv",
    "pool",
    "routing_follows",
    "run_card",
    "run_experiment",
    "scene_digest",
    "train_on_scene",
    "write_run",
]
