"""The demonstration: MambaMoE and its dense twin on Indian Pines, small enough for a laptop."""

from __future__ import annotations

from terramoe.experiments.plan import Plan, SplitSettings
from terramoe.training import TrainSettings


def demo_plan(seeds: int = 3) -> Plan:
    """The plan of ``terramoe demo``: fixed by the time it may take, not by any score on test pixels."""
    return Plan(
        system="mambamoe",
        model={"state": 8},
        train=TrainSettings(steps=100, batch=4, crop=64),
        split=SplitSettings(kind="block", block=16, guard=4),
        seeds=seeds,
        twin=True,
        lenient=True,
        reduced=(
            "100 steps on 4 crops of 64 x 64 pixels (the paper: 200 passes over the whole scene)",
            "state size 8 instead of 16",
            f"{seeds} seeds, each with its own fold and initial weights (the paper: 10 runs on one fixed split)",
        ),
    )
