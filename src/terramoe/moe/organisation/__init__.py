"""Organisation: how several routers, banks, tasks, layers or whole models are put together around the routing core."""

from terramoe.moe.organisation.cgc import CGCLevel, ProgressiveExtraction, build_extraction, task_weights, weighted_loss
from terramoe.moe.organisation.model_mixture import (
    Disagreement,
    FeatureGate,
    MixtureMaps,
    ModelMixture,
    disagreement_maps,
)
from terramoe.moe.organisation.multi_gate import MultiGate, TaskGates
from terramoe.moe.organisation.pre_gated import PreGatedStack
from terramoe.moe.organisation.shared_plus_routed import SharedPlusRouted, SigmoidGate
from terramoe.moe.organisation.task_subnetwork import TaskEmbeddingScorer, WeightedSum, extract_task

__all__ = [
    "CGCLevel",
    "Disagreement",
    "FeatureGate",
    "MixtureMaps",
    "ModelMixture",
    "MultiGate",
    "PreGatedStack",
    "ProgressiveExtraction",
    "SharedPlusRouted",
    "SigmoidGate",
    "TaskEmbeddingScorer",
    "TaskGates",
    "WeightedSum",
    "build_extraction",
    "disagreement_maps",
    "extract_task",
    "task_weights",
    "weighted_loss",
]
