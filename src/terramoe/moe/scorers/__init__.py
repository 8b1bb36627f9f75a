"""Scorers: ``RouteInput -> Scores``. A scorer gives logits; it never selects and holds no loss."""

from terramoe.moe.scorers.linear import LinearScorer, ZeroScorer
from terramoe.moe.scorers.noisy import NoisyScorer
from terramoe.moe.scorers.scores import Scores

__all__ = ["LinearScorer", "NoisyScorer", "Scores", "ZeroScorer"]
