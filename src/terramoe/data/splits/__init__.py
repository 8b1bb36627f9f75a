"""Spatial splits into training and test, scikit-learn style. The code here needs numpy and scipy only, never torch.

Neighbours resemble each other, so a random split tests on near copies of what was trained on. Blocks, whole fields or
groups, with a guard band between, keep test and training apart: Cross-validation strategies for data with temporal,
spatial, hierarchical, or phylogenetic structure, 2017, doi:10.1111/ecog.02881.

Label rasters (H, W), 0 = unlabelled: ``blocks``, ``fields``, ``random``, ``groups`` and ``knndm`` (with ``matching``).

    for train, test in BlockSplit(block=12, guard=2).split(labels):      # flat pixel indices
    for split in BlockSplit(block=12, guard=2).masks(labels):            # boolean rasters
    cross_val_score(model, image[:, labels > 0].T, labels[labels > 0], cv=LabelledPixels(BlockSplit(), labels))

Tables of points: ``points``.

    cross_val_score(model, X, y, cv=PointBlockSplit(coordinates, block=5_000, guard=1_000))

``autocorrelation`` says how large a block should be.
"""

from terramoe.data.splits.autocorrelation import Variogram, autocorrelation_range, variogram
from terramoe.data.splits.blocks import BlockSplit, block_ids
from terramoe.data.splits.distances import nearest, positions_of, wasserstein
from terramoe.data.splits.fields import EIGHT_NEIGHBOURS, FieldSplit, field_ids
from terramoe.data.splits.groups import GroupSplit, OfficialSplit
from terramoe.data.splits.knndm import KNNDMSplit
from terramoe.data.splits.matching import Match, match_distances
from terramoe.data.splits.points import LeaveGroupOut, PointBlockSplit, PointKNNDM
from terramoe.data.splits.random import RandomSplit
from terramoe.data.splits.split import LabelledPixels, Split, Splitter, missing_classes, require_all_classes

__all__ = [
    "EIGHT_NEIGHBOURS",
    "BlockSplit",
    "FieldSplit",
    "GroupSplit",
    "KNNDMSplit",
    "LabelledPixels",
    "LeaveGroupOut",
    "Match",
    "OfficialSplit",
    "PointBlockSplit",
    "PointKNNDM",
    "RandomSplit",
    "Split",
    "Splitter",
    "Variogram",
    "autocorrelation_range",
    "block_ids",
    "field_ids",
    "match_distances",
    "missing_classes",
    "nearest",
    "positions_of",
    "require_all_classes",
    "variogram",
    "wasserstein",
]
