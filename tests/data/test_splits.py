"""Splits: partition, distance, coverage, determinism; and the audit that tells a leak."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from terramoe.data import (
    BlockSplit,
    FieldSplit,
    RandomSplit,
    audit_scene,
    audit_split,
    fit_normaliser,
    indian_pines,
    missing_classes,
    require_all_classes,
)
from terramoe.data.splits import field_ids
from terramoe.errors import ConfigError, SplitError


def random_labels(seed, height=30, width=26, classes=4):
    generator = np.random.default_rng(seed)
    tiles = np.kron(generator.integers(1, classes + 1, (height // 5 + 1, width // 5 + 1)), np.ones((5, 5), dtype=int))
    labels = tiles[:height, :width]
    return np.where(generator.random(labels.shape) < 0.7, labels, 0)


spatial = st.one_of(
    st.builds(
        BlockSplit, n_splits=st.integers(2, 4), block=st.integers(2, 9), guard=st.integers(0, 4), seed=st.integers(0, 9)
    ),
    st.builds(FieldSplit, n_splits=st.integers(2, 4), guard=st.integers(0, 4), seed=st.integers(0, 9)),
)


@given(splitter=spatial, seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_spatial_splits_keep_their_promises(splitter, seed):
    labels = random_labels(seed)
    tested = np.zeros(labels.shape, dtype=int)
    for split in splitter.masks(labels):
        assert (split.train.astype(int) + split.test + split.guard == (labels > 0)).all()  # a partition
        tested += split.test
        if split.train.any() and split.test.any():
            gap = cdist(np.argwhere(split.train), np.argwhere(split.test), "chebyshev").min()
            assert gap > splitter.guard
        assert not set(split.blocks[split.train]) & set(split.blocks[split.test])
    assert (tested == (labels > 0)).all()  # each labelled pixel is tested once


@given(splitter=spatial, seed=st.integers(0, 50))
@settings(max_examples=10, deadline=None)
def test_the_same_seed_gives_the_same_split(splitter, seed):
    labels = random_labels(seed)
    digests = [[split.digest() for split in splitter.masks(labels)] for _ in range(2)]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == splitter.n_splits


def test_fields_are_whole():
    labels = random_labels(3)
    fields = field_ids(labels)
    for split in FieldSplit(guard=0).masks(labels):
        assert not set(fields[split.train]) & set(fields[split.test])


def test_diagonal_neighbours_are_one_field_and_classes_are_not_mixed():
    labels = np.array([[1, 0, 2], [0, 1, 2], [3, 0, 1]])
    fields = field_ids(labels)
    assert fields[0, 0] == fields[1, 1] == fields[2, 2]
    assert len(np.unique(fields[labels > 0])) == 3
    assert fields.min() > 0


def test_blocks_spread_each_class_over_the_folds():
    labels = random_labels(1, 60, 60)
    for value in range(1, 5):
        tests = [int((split.test & (labels == value)).sum()) for split in BlockSplit(block=5).masks(labels)]
        assert max(tests) - min(tests) <= 25  # one block


def test_a_random_split_takes_its_share_of_every_class():
    labels = random_labels(1, 60, 60)
    for split in RandomSplit(train_size=0.1).masks(labels):
        for value in range(1, 5):
            share = (split.train & (labels == value)).sum() / (labels == value).sum()
            assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("splitter", [BlockSplit(), FieldSplit(), RandomSplit()])
def test_splits_work_in_scikit_learn(splitter, scene):
    labels = scene.labels
    assert splitter.get_n_splits() == 3
    scores = cross_val_score(
        LogisticRegression(), scene.image.reshape(4, -1).T, labels.ravel(), cv=list(splitter.split(labels))
    )
    assert scores.shape == (3,)
    assert (scores > 0.5).all()


@pytest.mark.parametrize(
    ("splitter", "message"),
    [
        (BlockSplit(block=0), "block is 0"),
        (BlockSplit(guard=-1), "guard is -1"),
        (BlockSplit(n_splits=1), "1 folds"),
        (BlockSplit(block=100), "1 blocks hold labels, for 3 folds"),
        (RandomSplit(train_size=1.5), "train_size is 1.5"),
    ],
)
def test_bad_settings(splitter, message):
    with pytest.raises(SplitError, match=message):
        list(splitter.masks(random_labels(0)))


def test_labels_must_be_an_integer_raster():
    with pytest.raises(SplitError, match="1-D of type float64"):
        list(BlockSplit().masks(np.zeros(5)))


def test_a_class_without_training_pixels_is_named():
    labels = np.ones((20, 20), dtype=int)
    labels[:2, :2] = 2
    split = next(s for s in BlockSplit(block=5, guard=1).masks(labels) if s.test[0, 0])
    assert missing_classes(split, labels) == [2]
    with pytest.raises(SplitError, match=r"no training pixel is left of rare.*Fix: use a smaller --split.block"):
        require_all_classes(split, labels, ["common", "rare"])


def test_the_audit_tells_a_random_split_from_blocks(scene):
    rows = audit_scene(scene, {"random": RandomSplit(), "block": BlockSplit(block=8, guard=2)}, radius=2)
    leaky, blocks = rows
    assert leaky.shared_pixels == blocks.shared_pixels == 0
    assert leaky.patch_overlap > 0.8
    assert blocks.patch_overlap == 0
    assert leaky.coordinates > blocks.coordinates + 0.3
    assert leaky.median_distance < 3 <= blocks.median_distance


def test_the_audit_counts_twins_and_shared_pixels(scene):
    split = next(BlockSplit(block=8, guard=2).masks(scene.labels))
    image = scene.image.copy()
    test, train = np.argwhere(split.test)[0], np.argwhere(split.train)[0]
    image[:, test[0], test[1]] = image[:, train[0], train[1]]
    twin = type(scene)(**{**vars(scene), "image": image})
    assert audit_split(twin, split, radius=1).twin_spectra == 1
    leaking = type(split)(**{**vars(split), "train": split.train | split.test})
    assert audit_split(scene, leaking, radius=1).shared_pixels == split.test.sum()


def test_the_leak_of_indian_pines_in_numbers():
    scene = indian_pines()
    assert scene.image.shape == (200, 145, 145)
    assert scene.classes == 16
    assert np.bincount(scene.labels.ravel())[1:].tolist() == [
        46, 1428, 830, 237, 483, 730, 28, 478, 20, 972, 2455, 593, 205, 1265, 386, 93
    ]  # fmt: skip
    rows = audit_scene(scene, {"random": RandomSplit(), "field": FieldSplit()}, radius=2)
    assert rows[0].coordinates > 0.95  # place alone
    assert rows[1].coordinates < 0.3


def test_normalisation_sees_training_pixels_only(scene):
    split = next(BlockSplit(block=8, guard=2).masks(scene.labels))
    fitted = fit_normaliser(scene.image, split.train)
    moved = np.where(split.train, scene.image, 1e6).astype(np.float32)
    assert fit_normaliser(moved, split.train) == fitted
    pixels = fitted(scene.image)[:, split.train]
    np.testing.assert_allclose(pixels.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(pixels.std(1), 1, atol=1e-5)
    bounded = fit_normaliser(scene.image, split.train, "minmax")(scene.image)[:, split.train]
    np.testing.assert_allclose([bounded.min(), bounded.max()], [0, 1], atol=1e-6)


def test_bad_normalisation(scene):
    with pytest.raises(SplitError, match="no training pixel"):
        fit_normaliser(scene.image, np.zeros(scene.labels.shape, dtype=bool))
    with pytest.raises(ConfigError, match="normalisation 'magic'"):
        fit_normaliser(scene.image, scene.labels > 0, "magic")
    constant = np.ones((2, 3, 3), dtype=np.float32)
    assert fit_normaliser(constant, np.ones((3, 3), dtype=bool)).scale == (1.0, 1.0)
