"""scikit-learn's own checks, none expected to fail. One loose start instead of three tight ones, for speed."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from terramoe.mixtures import (
    HierarchicalMixtureClassifier,
    HierarchicalMixtureRegressor,
    MixtureOfExpertsClassifier,
    MixtureOfExpertsRegressor,
)

FAST = {"n_init": 1, "tol": 1e-2}


@parametrize_with_checks(
    [
        MixtureOfExpertsRegressor(**FAST),
        MixtureOfExpertsRegressor(expert="poisson", **FAST),
        MixtureOfExpertsRegressor(gate="gaussian", **FAST),
        HierarchicalMixtureRegressor(**FAST),
        MixtureOfExpertsClassifier(**FAST),
        MixtureOfExpertsClassifier(gate="gaussian", **FAST),
        HierarchicalMixtureClassifier(**FAST),
    ]
)
def test_sklearn(estimator, check):
    check(estimator)
