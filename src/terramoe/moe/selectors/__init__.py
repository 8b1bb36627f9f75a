"""Selectors: ``(choice (T, E), inp) -> Pairs``. They decide who is used, never with which weight.

Each says what it ``needs`` as choice: "order" (any increasing transform of the logits will do), "logits" or "probs";
and whether it ``couples_items`` (the choice of an item depends on its batch mates).
"""

from terramoe.moe.selectors.pairs import Pairs, pairs_from_choices, pairs_from_mask
from terramoe.moe.selectors.random import RandomK
from terramoe.moe.selectors.topk import All, TopK

__all__ = ["All", "Pairs", "RandomK", "TopK", "pairs_from_choices", "pairs_from_mask"]
