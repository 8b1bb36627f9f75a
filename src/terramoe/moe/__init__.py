"""The routing core: torch only, no geodata, usable alone.

Reading order: ``routing`` (the two records), ``layer`` (MoELayer), then the parts in the order in which they run:
``scorers``, ``links``, ``selectors``, ``weighing``, ``capacity``, ``experts``, ``executors``. ``objectives`` are
auxiliary losses, ``statistics`` the collector, ``items`` cuts images into what is routed.
"""

from terramoe.moe import links, objectives, weighing
from terramoe.moe.capacity import FixedCapacity
from terramoe.moe.executors import EXECUTORS
from terramoe.moe.experts import Bank, ModuleBank, StackedFFN
from terramoe.moe.items import WindowGrid
from terramoe.moe.layer import MoELayer
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.scorers import LinearScorer, NoisyScorer, Scores, ZeroScorer
from terramoe.moe.selectors import All, Pairs, RandomK, TopK
from terramoe.moe.statistics import LayerStatistics, RoutingMeter, summarise

__all__ = [
    "EXECUTORS",
    "All",
    "Bank",
    "FixedCapacity",
    "LayerStatistics",
    "LinearScorer",
    "MoELayer",
    "ModuleBank",
    "NoisyScorer",
    "Pairs",
    "RandomK",
    "RouteInput",
    "Routing",
    "RoutingMeter",
    "Scores",
    "StackedFFN",
    "TopK",
    "WindowGrid",
    "ZeroScorer",
    "links",
    "objectives",
    "summarise",
    "weighing",
]
