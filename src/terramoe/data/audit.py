"""The audit of a split: how much of the test set a model could know before it was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from terramoe.data.audit_measures import (
    accuracies,
    extrapolates,
    extrapolation_share,
    farther_than_use,
    nearer_than_use,
    never_trained,
    place_answers,
    quantiles,
    small_blocks,
)
from terramoe.data.scenes import Scene
from terramoe.data.splits import (
    Split,
    Splitter,
    autocorrelation_range,
    field_ids,
    missing_classes,
    wasserstein,
)
from terramoe.errors import SplitError


@dataclass(frozen=True)
class SplitAudit:
    """What a split gives away, and what needs no network at all. Distances are in pixels.

    Attributes:
        name, fold: of the split.
        train, test, guard: labelled pixels.
        shared_pixels: pixels that both train and test; must be 0.
        twin_spectra: test pixels whose spectrum also occurs, to the last digit, among the training pixels.
        radius: patch radius for which ``patch_overlap`` holds, in pixels.
        patch_overlap: share of test pixels whose patch contains a training pixel.
        same_field_share: share of test pixels whose own field also trains.
        median_distance: median distance from a test pixel to the nearest training pixel.
        missing: classes that are tested but never trained.
        majority, coordinates, logistic: overall accuracy of always the commonest class, of the nearest training pixel
            by row and column alone, and of logistic regression on single pixels.
        guard_distance: smallest distance between a test and a training pixel.
        test_distances: 5, 25, 50, 75, 95 % quantiles of the distance from a test pixel to the nearest training pixel.
        deployment_distances: the same from a pixel of the deployment area to the nearest labelled pixel, since a model
            to be deployed is trained on all of them.
        wasserstein: area W between these two distributions, in pixels; 0 = tested as it will be used.
        extrapolation: share of test pixels outside the training range of the spectra; see ``extrapolation_share``.
        label_range: range of autocorrelation of the labels; see ``autocorrelation_range``.
        leak_flags: sentences, one for each way in which this split tells the model the answers.
        warnings: sentences on what else makes its score hard to read.
        leaks: there are leak flags.
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
    guard_distance: float
    test_distances: tuple[float, ...]
    deployment_distances: tuple[float, ...]
    wasserstein: float
    extrapolation: float
    label_range: float
    leak_flags: tuple[str, ...]
    warnings: tuple[str, ...]
    leaks: bool


def audit_split(
    scene: Scene, split: Split, *, radius: int, area: np.ndarray | None = None, label_range: float | None = None
) -> SplitAudit:
    """Audit one fold of a scene.

    Args:
        radius: patch radius of the model in question, in pixels.
        area: (H, W) bool, where the model will be used; None for all valid pixels.
        label_range: of autocorrelation, if it is known already.

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
    distance, deployment = distances_of(scene, split, area)
    spectra = scene.image[:, split.train].T, scene.image[:, split.test].T
    measured = {
        "name": split.name,
        "shared_pixels": int((split.train & split.test).sum()),
        "twin_spectra": _twins(*spectra),
        "radius": radius,
        "patch_overlap": float(near[split.test].mean()),
        "same_field_share": float(same_field.mean()),
        "missing": tuple(missing_classes(split, scene.labels)),
        "extrapolation": extrapolation_share(*spectra),
        "label_range": _range(scene) if label_range is None else label_range,
        **baselines(scene, split),
    }
    leak_flags = tuple(_leaks(measured, distance, deployment))
    side = float(np.sqrt(np.median(np.bincount(split.blocks.ravel()))))
    return SplitAudit(
        **measured,
        fold=split.fold,
        train=int(split.train.sum()),
        test=int(split.test.sum()),
        guard=int(split.guard.sum()),
        median_distance=float(np.median(distance)),
        guard_distance=float(distance.min()),
        test_distances=quantiles(distance),
        deployment_distances=quantiles(deployment),
        wasserstein=wasserstein(distance, deployment),
        leak_flags=leak_flags,
        warnings=tuple(_warnings(scene, measured, side, distance, deployment)),
        leaks=bool(leak_flags),
    )


def distances_of(scene: Scene, split: Split, area: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distances in pixels from each test pixel to the nearest training pixel, and from each pixel of the deployment
    area (H, W) bool, or of all valid pixels, to the nearest labelled pixel."""
    test = ndimage.distance_transform_edt(~split.train)[split.test]
    area = scene.valid if area is None else area
    if not area.any():
        raise SplitError("the deployment area is empty", where=scene.name, fix="give an area with pixels above 0")
    return test, ndimage.distance_transform_edt(scene.labels == 0)[area]


def baselines(scene: Scene, split: Split) -> dict[str, float]:
    """Overall accuracy on test pixels of three models without a neighbourhood: majority, coordinates, logistic."""
    train, test = split.train, split.test
    found = accuracies(
        (np.argwhere(train), np.argwhere(test)),
        (scene.labels[train], scene.labels[test]),
        (scene.image[:, train].T, scene.image[:, test].T),
    )
    return found | {"logistic": found["majority"] if found["logistic"] is None else found["logistic"]}


def audit_scene(
    scene: Scene, splitters: Mapping[str, Splitter], *, radius: int, area: np.ndarray | None = None
) -> list[SplitAudit]:
    """Audit the first fold of each splitter, so that the leak of one is seen beside the others."""
    reach = _range(scene)
    return [
        audit_split(scene, next(iter(splitter.masks(scene.labels))), radius=radius, area=area, label_range=reach)
        for splitter in splitters.values()
    ]


def _range(scene: Scene) -> float:
    return autocorrelation_range(scene.labels) if (scene.labels > 0).sum() >= 10 else 0.0


def _leaks(m: Mapping[str, object], distance: np.ndarray, deployment: np.ndarray) -> Iterator[str]:
    """The sentences of ``leak_flags``."""
    within = (deployment <= m["radius"]).mean()
    if m["shared_pixels"]:
        yield f"{m['shared_pixels']} pixels both train and test"
    if m["patch_overlap"]:
        yield (
            f"{100 * m['patch_overlap']:.1f} % of the test pixels have a training pixel within {m['radius']} pixels: "
            f"their patches overlap; of the deployment area {100 * within:.1f} % have a labelled pixel as near"
        )
    yield from place_answers(m["majority"], m["coordinates"], m["logistic"])
    yield from nearer_than_use(distance, deployment, "pixels")


def _warnings(
    scene: Scene, m: Mapping[str, object], side: float, distance: np.ndarray, deployment: np.ndarray
) -> Iterator[str]:
    """The sentences of ``warnings``."""
    if m["name"] == "block":
        yield from small_blocks(side, m["label_range"], "pixels")
    if m["twin_spectra"]:
        yield f"{m['twin_spectra']} test pixels have the very spectrum of a training pixel"
    if m["same_field_share"]:
        yield f"{100 * m['same_field_share']:.1f} % of the test pixels lie in a field that also trains"
    yield from extrapolates(m["extrapolation"])
    yield from farther_than_use(distance, deployment, "pixels")
    yield from never_trained(tuple(scene.class_names[value - 1] for value in m["missing"]))


def _twins(train: np.ndarray, test: np.ndarray) -> int:
    known = {row.tobytes() for row in np.ascontiguousarray(train)}
    return sum(row.tobytes() in known for row in np.ascontiguousarray(test))
