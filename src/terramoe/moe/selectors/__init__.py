"""Selectors: ``(choice (T, E), inp) -> Pairs``. They decide who is used, never with which weight.

Each says what it ``needs`` as choice: "order" (any increasing transform of the logits will do), "logits" or "probs";
and whether it ``couples_items`` (the choice of an item depends on its batch mates).
"""

from terramoe.moe.selectors.coupled import Balanced, ExpertChoice, Sinkhorn
from terramoe.moe.selectors.grouped import Available, GroupedSoftmax, GroupLimited, SampleFromTop, TopOfEachGroup
from terramoe.moe.selectors.pairs import Pairs, pairs_from_choices, pairs_from_mask
from terramoe.moe.selectors.random import RandomK
from terramoe.moe.selectors.table import HashedItem, Table
from terramoe.moe.selectors.topk import All, TopK, ordered_top
from terramoe.moe.selectors.variable import Support, Threshold, TopP

__all__ = [
    "All",
    "Available",
    "Balanced",
    "ExpertChoice",
    "GroupLimited",
    "GroupedSoftmax",
    "HashedItem",
    "Pairs",
    "RandomK",
    "SampleFromTop",
    "Sinkhorn",
    "Support",
    "Table",
    "Threshold",
    "TopK",
    "TopOfEachGroup",
    "TopP",
    "ordered_top",
    "pairs_from_choices",
    "pairs_from_mask",
]
