"""Selectors: ``(choice (T, E), mask) -> Pairs``. They decide who is used, never with which weight."""

from terramoe.moe.selectors.pairs import Pairs, pairs_from_choices
from terramoe.moe.selectors.random import RandomK
from terramoe.moe.selectors.topk import All, TopK

__all__ = ["All", "Pairs", "RandomK", "TopK", "pairs_from_choices"]
