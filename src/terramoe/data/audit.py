"""The audit of a split: how much of the test set a model could know before it was trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from terramoe.data.scenes import Scene
from terramoe.data.splits import Split, Splitter, field_ids, missing_classes
from terramoe.errors import SplitError


@dataclass(frozen=True)
class SplitAudit:
    """What a split gives away, and what needs no network at all.

    Attributes:
        name, fold: of the split.
        train, test, guard: labelled pixels.
        shared_pixels: pixels that both train and test; must be 0.
        twin_spectra: test pixels whose spectrum also occurs, to the last digit, among the training pixels.
        radius: patch radius for which ``patch_overlap`` holds, in pixels.
        patch_overlap: share of test pixels whose patch contains a training pixel.
        same_field_share: share of test pixels whose own field also trains.
        median_distance: median distance from a test pixel to the nearest training pixel, in pixels.
        missing: classes that are tested but never trained.
        majority, coordinates, logistic: overall accuracy of always the commonest class, of the nearest training pixel
            by row and column alone, and of logistic regression on single pixels.
    """

    name: str
    fold: int
    train: int
    test: int
    guard: int
    shared_pixels: int
    twin_spectra: int
    radius: int
    patch_overlap: float
    same_field_share: float
    median_distance: float
    missing: tuple[int, ...]
    majority: float
    coordinates: float
    logistic: float


def audit_split(scene: Scene, split: Split, *, radius: int) -> SplitAudit:
    """Audit one fold of a scene.

    Args:
        radius: patch radius of the model in question, in pixels.

    Raises:
        SplitError: the fold has no training or no test pixel.
    """
    if not split.train.any() or not split.test.any():
        raise SplitError(
            f"{int(split.train.sum())} training and {int(split.test.sum())} test pixels",
            where=f"{split.name} split, fold {split.fold}",
            fix="use a smaller guard or smaller blocks",
        )
    near = ndimage.maximum_filter(split.train, size=2 * radius + 1, mode="constant")
    fields = field_ids(scene.labels)
    same_field = np.isin(fields[split.test], np.unique(fields[split.train]))
    distance = ndimage.distance_transform_edt(~split.train)[split.test]
    return SplitAudit(
        name=split.name,
        fold=split.fold,
        train=int(split.train.sum()),
        test=int(split.test.sum()),
        guard=int(split.guard.sum()),
        shared_pixels=int((split.train & split.test).sum()),
        twin_spectra=_twins(scene.image[:, split.train].T, scene.image[:, split.test].T),
        radius=radius,
        patch_overlap=float(near[split.test].mean()),
        same_field_share=float(same_field.mean()),
        median_distance=float(np.median(distance)),
        missing=tuple(missing_classes(split, scene.labels)),
        **baselines(scene, split),
    )


def baselines(scene: Scene, split: Split) -> dict[str, float]:
    """Overall accuracy on test pixels of three models without a neighbourhood: majority, coordinates, logistic."""
    train, test = split.train, split.test
    truth = scene.labels[test]
    values, counts = np.unique(scene.labels[train], return_counts=True)
    nearest = KNeighborsClassifier(1).fit(np.argwhere(train), scene.labels[train])
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100))
    with warnings.catch_warnings():  # a baseline may stop early: 100 iterations, the same for every split
        warnings.simplefilter("ignore", ConvergenceWarning)
        logistic.fit(scene.image[:, train].T, scene.labels[train])
    return {
        "majority": float((truth == values[counts.argmax()]).mean()),
        "coordinates": float((nearest.predict(np.argwhere(test)) == truth).mean()),
        "logistic": float((logistic.predict(scene.image[:, test].T) == truth).mean()),
    }


def audit_scene(scene: Scene, splitters: Mapping[str, Splitter], *, radius: int) -> list[SplitAudit]:
    """Audit the first fold of each splitter, so that the leak of one is seen beside the others."""
    return [
        audit_split(scene, next(iter(splitter.masks(scene.labels))), radius=radius) for splitter in splitters.values()
    ]


def _twins(train: np.ndarray, test: np.ndarray) -> int:
    known = {row.tobytes() for row in np.ascontiguousarray(train)}
    return sum(row.tobytes() in known for row in np.ascontiguousarray(test))
