"""Mixtures of experts trained by likelihood, as scikit-learn estimators.

Reading order: ``newton`` (the safeguarded step), ``softmax_regression``, ``gating`` and ``tree`` (gates), ``experts``,
``em`` (the loop), then the estimators. ``local_experts`` has the same objectives as torch losses.

Of sequences: ``hmm`` and ``baum_welch``, then ``hmm_experts``. Of vectors with gaps: ``som``, then ``committees``. Of
rasters: ``quad_tree`` and ``kalman_tree`` (one smoother), ``kalman_bank``, then ``kalman_mixture``; ``shifted_trees``.
Of unlike learners: ``ndekf`` and ``rbf_network``, then ``stacking``. ``gate_fit`` fits a gate to experts that stay;
``fixed_gates`` draw experts without learning.
"""

from terramoe.mixtures.baum_welch import fit_hmm
from terramoe.mixtures.classifiers import HierarchicalMixtureClassifier, MixtureOfExpertsClassifier
from terramoe.mixtures.committees import SomCommitteeClassifier
from terramoe.mixtures.hmm import GaussianHMM
from terramoe.mixtures.hmm_experts import HmmExpertsClassifier
from terramoe.mixtures.kalman_bank import KalmanExpert
from terramoe.mixtures.kalman_mixture import KalmanMixture
from terramoe.mixtures.kalman_tree import smooth
from terramoe.mixtures.local_experts import (
    competition_loss,
    cooperative_loss,
    local_experts_nll,
    local_experts_posterior,
    mixture_nll,
)
from terramoe.mixtures.ndekf import NDEKFRegressor
from terramoe.mixtures.quad_tree import Observation, TreeModel, fractal_model
from terramoe.mixtures.rbf_network import RBFNetworkRegressor
from terramoe.mixtures.regressors import HierarchicalMixtureRegressor, MixtureOfExpertsRegressor
from terramoe.mixtures.som import SelfOrganizingMap

__all__ = [
    "GaussianHMM",
    "HierarchicalMixtureClassifier",
    "HierarchicalMixtureRegressor",
    "HmmExpertsClassifier",
    "KalmanExpert",
    "KalmanMixture",
    "MixtureOfExpertsClassifier",
    "MixtureOfExpertsRegressor",
    "NDEKFRegressor",
    "Observation",
    "RBFNetworkRegressor",
    "SelfOrganizingMap",
    "SomCommitteeClassifier",
    "TreeModel",
    "competition_loss",
    "cooperative_loss",
    "fit_hmm",
    "fractal_model",
    "local_experts_nll",
    "local_experts_posterior",
    "mixture_nll",
    "smooth",
]
