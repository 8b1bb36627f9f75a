"""Published systems: one flat file each, named as the paper names it, listed in ``registry``."""

from terramoe.systems.base import Batch, Layout, Output, System
from terramoe.systems.card import Card
from terramoe.systems.controls import CONTROLS, ROUTED, build_control, fix_routing
from terramoe.systems.registry import SYSTEMS, build, card, make_config, plain_config, system_class

__all__ = [
    "CONTROLS",
    "ROUTED",
    "SYSTEMS",
    "Batch",
    "Card",
    "Layout",
    "Output",
    "System",
    "build",
    "build_control",
    "card",
    "fix_routing",
    "make_config",
    "plain_config",
    "system_class",
]
