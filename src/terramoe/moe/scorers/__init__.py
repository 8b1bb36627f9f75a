"""Scorers: ``RouteInput -> Scores`` (logits). They never select and never hold a loss."""

from terramoe.moe.scorers.binary_code import BinaryCodeScorer, smooth_step
from terramoe.moe.scorers.cosine import CosineScorer
from terramoe.moe.scorers.distance import GaussianScorer, PrototypeScorer
from terramoe.moe.scorers.frozen import FrozenScorer
from terramoe.moe.scorers.hierarchical import HierarchicalScorer
from terramoe.moe.scorers.keyed import AttributeScorer, EmbeddedKeyScorer, PerKeyScorer
from terramoe.moe.scorers.linear import LinearScorer, ZeroScorer
from terramoe.moe.scorers.mlp import MLPScorer
from terramoe.moe.scorers.noisy import FixedNoiseScorer, GumbelScorer, JitterScorer, NoisyScorer
from terramoe.moe.scorers.scores import Scores, checked_features

__all__ = [
    "AttributeScorer",
    "BinaryCodeScorer",
    "CosineScorer",
    "EmbeddedKeyScorer",
    "FixedNoiseScorer",
    "FrozenScorer",
    "GaussianScorer",
    "GumbelScorer",
    "HierarchicalScorer",
    "JitterScorer",
    "LinearScorer",
    "MLPScorer",
    "NoisyScorer",
    "PerKeyScorer",
    "PrototypeScorer",
    "Scores",
    "ZeroScorer",
    "checked_features",
    "smooth_step",
]
