"""What an audit measures, on arrays: distances, baselines, extrapolation; and the sentences it draws from them.

Rules of Cross-validation strategies for data with temporal, spatial, hierarchical, or phylogenetic structure, 2017,
doi:10.1111/ecog.02881, and of kNNDM CV, 2024, doi:10.5194/gmd-17-5897-2024.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COMPONENTS = 10  # principal components in which extrapolation is looked for
EXTRAPOLATION = 0.05  # share of test points outside the training range that is worth a warning
PLACE_MARGIN = 0.05  # accuracy by which the place alone must beat the features to be called a leak
NEARNESS = 2.0  # times by which mean distances of test and deployment may differ


def accuracies(
    places: tuple[np.ndarray, np.ndarray],
    classes: tuple[np.ndarray, np.ndarray],
    features: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, float | None]:
    """Overall accuracy on test points of three models without a neighbourhood.

    Args:
        places: (N, 2 or 3) positions, classes: (N,), features: (N, F) or None; each of training and of test points.

    Returns:
        ``majority``: always the commonest class; ``coordinates``: the class of the nearest training point;
        ``logistic``: logistic regression on the features, None if there are none or but one class trains.
    """
    (train_places, test_places), (train, truth) = places, classes
    values, counts = np.unique(train, return_counts=True)
    nearest = KNeighborsClassifier(1).fit(train_places, train)
    found = {
        "majority": float((truth == values[counts.argmax()]).mean()),
        "coordinates": float((nearest.predict(test_places) == truth).mean()),
        "logistic": None,
    }
    if features is not None and len(values) > 1:
        logistic = make_pipeline(
            SimpleImputer(keep_empty_features=True), StandardScaler(), LogisticRegression(max_iter=100)
        )
        with warnings.catch_warnings():  # a baseline may stop early: 100 iterations, the same for every split
            warnings.simplefilter("ignore", ConvergenceWarning)
            logistic.fit(features[0], train)
        found["logistic"] = float((logistic.predict(features[1]) == truth).mean())
    return found


def extrapolation_share(train: np.ndarray, test: np.ndarray) -> float:
    """Share of test points (N, F) that lie outside the range of the training points in some principal component.

    The features are standardised by the training points, and at most ``COMPONENTS`` components taken, so that many
    noisy bands do not add up to an alarm: with n training points from the same distribution about 2 C / (n + 1) of the
    test points lie outside in one of C components by chance.
    """
    squeeze = make_pipeline(
        SimpleImputer(keep_empty_features=True),
        StandardScaler(),
        PCA(min(COMPONENTS, *train.shape), random_state=0),
    ).fit(train)
    known, asked = squeeze.transform(train), squeeze.transform(test)
    return float(((asked < known.min(axis=0)) | (asked > known.max(axis=0))).any(axis=1).mean())


def quantiles(distances: np.ndarray) -> tuple[float, ...]:
    """At ``QUANTILES``."""
    return tuple(float(v) for v in np.quantile(distances, QUANTILES))


def place_answers(majority: float, coordinates: float, logistic: float | None) -> Iterator[str]:
    """A sentence if the place alone is right more often than the features, and than the commonest class."""
    if logistic is not None and coordinates > max(majority, logistic) + PLACE_MARGIN:
        yield (
            f"the place alone scores {100 * coordinates:.1f} %, a classifier of the features {100 * logistic:.1f} %: "
            "the test is answered by its neighbours"
        )


def nearer_than_use(test: np.ndarray, deployment: np.ndarray, unit: str) -> Iterator[str]:
    """A sentence if test points lie much nearer to training points than the area does to the sample."""
    if NEARNESS * test.mean() < deployment.mean():
        yield (
            f"a test point lies {test.mean():,.1f} {unit} from training on average, the deployment area "
            f"{deployment.mean():,.1f} {unit} from the sample: the score holds for nearer places than will be asked for"
        )


def farther_than_use(test: np.ndarray, deployment: np.ndarray, unit: str) -> Iterator[str]:
    """A sentence if it is the other way round."""
    if test.mean() > NEARNESS * deployment.mean():
        yield (
            f"a test point lies {test.mean():,.1f} {unit} from training on average, the deployment area "
            f"{deployment.mean():,.1f} {unit} from the sample: the score is pessimistic for that area"
        )


def small_blocks(side: float, reach: float, unit: str) -> Iterator[str]:
    """A sentence if blocks are smaller than the range of autocorrelation."""
    if side < reach:
        yield (
            f"blocks of {side:,.0f} {unit} are smaller than the range of autocorrelation of the labels, "
            f"about {reach:,.0f} {unit}"
        )


def extrapolates(share: float | None) -> Iterator[str]:
    """A sentence if many test points lie outside the training range."""
    if share is not None and share > EXTRAPOLATION:
        yield (
            f"{100 * share:.1f} % of the test points lie outside the training range of the features "
            f"(in one of {COMPONENTS} principal components): the score includes extrapolation"
        )


def never_trained(missing: tuple[object, ...]) -> Iterator[str]:
    """A sentence if classes are tested but never trained."""
    if missing:
        yield f"classes tested but never trained: {', '.join(str(value) for value in missing)}"
