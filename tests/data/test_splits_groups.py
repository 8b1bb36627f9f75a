"""Splits that somebody has drawn (groups, official maps), and splits of rasters as scikit-learn's cv."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

from terramoe.data.splits import (
    BlockSplit,
    FieldSplit,
    GroupSplit,
    KNNDMSplit,
    LabelledPixels,
    OfficialSplit,
    RandomSplit,
)
from terramoe.errors import SplitError


def labels_and_groups(seed, height=24, width=31, groups=4):
    generator = np.random.default_rng(seed)
    tiles = generator.integers(1, 4, (height // 4 + 1, width // 4 + 1))
    labels = np.kron(tiles, np.ones((4, 4), dtype=int))[:height, :width]
    labels = np.where(generator.random(labels.shape) < 0.6, labels, 0)
    centres = generator.random((groups, 2)) * (height, width)
    nearest = cdist(np.argwhere(labels >= 0), centres).argmin(axis=1) + 1
    return labels, nearest.reshape(labels.shape) * 10  # any numbers will do


@given(seed=st.integers(0, 200), guard=st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_each_group_is_left_out_once_with_its_guard(seed, guard):
    labels, groups = labels_and_groups(seed)
    splitter = GroupSplit(groups, guard=guard)
    folds = list(splitter.masks(labels))
    present = np.unique(groups[labels > 0])
    assert len(folds) == len(present) == splitter.get_n_splits(labels)
    for fold, group in zip(folds, present, strict=True):
        assert (fold.test == ((groups == group) & (labels > 0))).all()
        assert (fold.train.astype(int) + fold.test + fold.guard == (labels > 0)).all()
        gap = cdist(np.argwhere(fold.test), np.argwhere(labels > 0), "chebyshev").min(axis=0)
        assert (fold.train[labels > 0] == (gap > guard)).all()  # no pixel more and no pixel less than the guard takes


def test_many_groups_are_dealt_whole():
    labels, groups = labels_and_groups(1, 40, 40, groups=25)
    folds = list(GroupSplit(groups, folds=3).masks(labels))
    assert len(folds) == 3
    assert (sum(fold.test.astype(int) for fold in folds) == (labels > 0)).all()
    for fold in folds:
        assert not set(groups[fold.test]) & set(groups[fold.train])
        assert fold.test.sum() > 0.2 * (labels > 0).sum()


def test_groups_without_labels_are_no_folds():
    labels, groups = labels_and_groups(2)
    labels[groups == 10] = 0
    splitter = GroupSplit(groups)
    assert splitter.get_n_splits() == 4
    assert splitter.get_n_splits(labels) == len(list(splitter.masks(labels))) == 3


def test_bad_groups():
    labels, groups = labels_and_groups(3)
    lost = np.where(groups == 20, 0, groups)
    with pytest.raises(SplitError, match=f"{(labels[groups == 20] > 0).sum()} labelled pixels have no group"):
        list(GroupSplit(lost).masks(labels))
    with pytest.raises(SplitError, match=r"the raster of the split is \(3, 3\)"):
        list(GroupSplit(groups[:3, :3]).masks(labels))
    with pytest.raises(SplitError, match="1 folds"):
        list(GroupSplit(np.ones_like(groups)).masks(labels))


def test_an_official_split_gives_back_what_a_split_wrote():
    labels, _ = labels_and_groups(4)
    written = next(BlockSplit(block=6, guard=1).masks(labels))
    kinds = (1 * written.train + 2 * written.guard + 3 * written.test).astype(np.uint8)
    (read,) = OfficialSplit(kinds).masks(labels)
    assert read.digest() == written.digest()
    assert (read.guard == written.guard).all()
    assert OfficialSplit(kinds).get_n_splits() == 1


def test_an_official_split_ignores_pixels_without_a_label_and_rests_those_it_does_not_name():
    labels = np.array([[1, 2, 0, 1, 2, 1]])
    (fold,) = OfficialSplit(np.array([[1, 3, 3, 0, 2, 1]])).masks(labels)
    assert fold.train.tolist() == [[True, False, False, False, False, True]]
    assert fold.test.tolist() == [[False, True, False, False, False, False]]
    assert fold.guard.tolist() == [[False, False, False, True, True, False]]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([[1, 3, 4, 1]], r"it holds \[4\]"),
        ([[1, 1, 2, 0]], "2 labelled pixels train, 0 test"),
        ([[1, 3, 1]], "bring both to the same grid"),
    ],
)
def test_bad_official_splits(kinds, message):
    with pytest.raises(SplitError, match=message):
        list(OfficialSplit(np.array(kinds)).masks(np.array([[1, 2, 1, 2]])))


def splitters(labels, groups):
    return [
        BlockSplit(block=8),
        FieldSplit(guard=0),
        RandomSplit(),
        GroupSplit(groups),
        KNNDMSplit(),
        OfficialSplit(np.where(groups < 25, 1, 3)),
    ]


@pytest.mark.parametrize("number", range(6))
def test_every_splitter_of_rasters_is_a_cv_of_the_table_of_labelled_pixels(number, scene):
    labels = scene.labels
    groups = np.kron([[10, 20], [30, 40]], np.ones((24, 28), dtype=int))
    splitter = splitters(labels, groups)[number]
    table, y = scene.image[:, labels > 0].T, labels[labels > 0]
    cv = LabelledPixels(splitter, labels)
    scores = cross_val_score(LogisticRegression(), table, y, cv=cv)
    assert len(scores) == cv.get_n_splits() == len(list(splitter.masks(labels)))
    whole = scene.image.reshape(4, -1).T
    flat = cross_val_score(LogisticRegression(), whole, labels.ravel(), cv=list(splitter.split(labels)))
    np.testing.assert_array_equal(scores, flat)  # the same pixels, by either road
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=cv).fit(table, y)
    assert search.n_splits_ == len(scores)


def test_a_table_of_other_pixels_is_refused(scene):
    cv = LabelledPixels(BlockSplit(), scene.labels)
    with pytest.raises(SplitError, match=f"the raster {(scene.labels > 0).sum()} labelled pixels"):
        next(cv.split(scene.image.reshape(4, -1).T))


def test_splits_load_no_torch():
    code = "import sys, terramoe.data.splits; print(sorted({'torch', 'matplotlib', 'xarray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
