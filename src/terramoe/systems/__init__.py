"""Published systems: one flat file each, named as the paper names it, listed in ``registry``."""

from terramoe.systems.base import Batch, Layout, Output, System
from terramoe.systems.card import Card
from terramoe.systems.registry import SYSTEMS, build, card, plain_config, system_class

__all__ = ["SYSTEMS", "Batch", "Card", "Layout", "Output", "System", "build", "card", "plain_config", "system_class"]
