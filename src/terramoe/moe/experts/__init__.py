"""Banks: the E experts of a layer behind one interface (``Bank``)."""

from terramoe.moe.experts.bank import Bank
from terramoe.moe.experts.ffn import StackedFFN
from terramoe.moe.experts.modules import ModuleBank

__all__ = ["Bank", "ModuleBank", "StackedFFN"]
