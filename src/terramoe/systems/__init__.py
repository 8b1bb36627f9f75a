"""Published systems: one flat file each, named as the paper names it.

Over scenes (``base.System``, torch modules): listed in ``registry``. Over rows of a table (``table_system``, and
``network_system`` for networks; scikit-learn's interface): in ``table_registry``. Over surfaces (``surface_system``):
in ``surface_registry``. All together: ``catalogue``.
"""

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
