"""Banks: the E experts of a layer behind one interface (``Bank``)."""

from terramoe.moe.experts.adapter import AdapterBank
from terramoe.moe.experts.attention import AttentionExperts
from terramoe.moe.experts.bank import Bank
from terramoe.moe.experts.channels import ChannelBank
from terramoe.moe.experts.conv import ConvBank
from terramoe.moe.experts.ffn import StackedFFN
from terramoe.moe.experts.lora import LoRABank
from terramoe.moe.experts.modules import ModuleBank
from terramoe.moe.experts.tt_lora import TTLoRABank

__all__ = [
    "AdapterBank",
    "AttentionExperts",
    "Bank",
    "ChannelBank",
    "ConvBank",
    "LoRABank",
    "ModuleBank",
    "StackedFFN",
    "TTLoRABank",
]
