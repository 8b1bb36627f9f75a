"""Mixtures of experts trained by likelihood, as scikit-learn estimators.

Reading order: ``newton`` (the safeguarded step), ``softmax_regression``, ``gating`` and ``tree`` (gates), ``experts``,
``em`` (the loop), then the estimators. ``local_experts`` has the same objectives as torch losses.
"""

from terramoe.mixtures.classifiers import HierarchicalMixtureClassifier, MixtureOfExpertsClassifier
from terramoe.mixtures.local_experts import (
    competition_loss,
    cooperative_loss,
    local_experts_nll,
    local_experts_posterior,
    mixture_nll,
)
from terramoe.mixtures.regressors import HierarchicalMixtureRegressor, MixtureOfExpertsRegressor

__all__ = [
    "HierarchicalMixtureClassifier",
    "HierarchicalMixtureRegressor",
    "MixtureOfExpertsClassifier",
    "MixtureOfExpertsRegressor",
    "competition_loss",
    "cooperative_loss",
    "local_experts_nll",
    "local_experts_posterior",
    "mixture_nll",
]
