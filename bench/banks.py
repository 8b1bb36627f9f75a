"""LoRA and convolution banks beside what they must be compared with. Used by ``moe_layer``.

LoRA: E experts of rank 4 over one frozen linear layer, beside one LoRA of rank 4 k over it. Convolution: images routed
to k of E 3 x 3 convolutions, beside k convolutions on every image and beside computing all E.
"""

from __future__ import annotations

import torch
from peers import Cell
from torch import Tensor, nn

from terramoe.moe import LinearScorer, MoELayer, TopK
from terramoe.moe.experts import ConvBank, LoRABank
from terramoe.moe.weighing import renormalised

RANK = 4
SIDE = 16  # pixels a side of a convolution's image


class BesideLinear(nn.Module):
    """A frozen linear layer plus what stands beside it."""

    def __init__(self, width: int, beside: nn.Module) -> None:
        super().__init__()
        self.base, self.beside = nn.Linear(width, width).requires_grad_(False), beside

    def forward(self, x: Tensor) -> Tensor:
        y = self.beside(x)
        return self.base(x) + (y[0] if isinstance(y, tuple) else y)


class Summed(nn.Module):
    """k convolutions on every image, added up."""

    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(k))

    def forward(self, x: Tensor) -> Tensor:
        image = x.permute(0, 3, 1, 2)
        return sum(part(image) for part in self.parts).permute(0, 2, 3, 1)


class Images(nn.Module):
    """Gives a layer each item (T, D) as the image (T, side, side, D) of that colour."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x[:, None, None].expand(-1, SIDE, SIDE, -1).contiguous())
        return (y[0] if isinstance(y, tuple) else y).mean((1, 2))


def _layer(cell: Cell, router: Tensor, bank: nn.Module, executor: str) -> MoELayer:
    scorer = LinearScorer(cell.width, cell.experts)
    with torch.no_grad():
        scorer.linear.weight.copy_(router)
    return MoELayer(scorer, bank, selector=TopK(cell.k), weigh=renormalised, executor=executor)


def one_lora(cell: Cell, router: Tensor) -> nn.Module:
    down = nn.Linear(cell.width, RANK * cell.k, bias=False)
    return BesideLinear(cell.width, nn.Sequential(down, nn.Linear(RANK * cell.k, cell.width, bias=False)))


def lora_experts(cell: Cell, router: Tensor, executor: str = "auto") -> nn.Module:
    return BesideLinear(
        cell.width, _layer(cell, router, LoRABank(cell.experts, cell.width, cell.width, RANK), executor)
    )


def convolutions(cell: Cell, router: Tensor) -> nn.Module:
    return Images(Summed(cell.width, cell.k))


def conv_experts(cell: Cell, router: Tensor, executor: str = "auto") -> nn.Module:
    return Images(_layer(cell, router, ConvBank(cell.experts, cell.width, cell.width), executor))


# The first of each is what the ratio is to.
LORA = {
    "lora": one_lora,
    "terramoe-lora": lora_experts,
    "terramoe-lora-loop": lambda cell, router: lora_experts(cell, router, "loop"),
}
CONV = {
    "conv": convolutions,
    "terramoe-conv": conv_experts,
    "conv-every-expert": lambda cell, router: conv_experts(cell, router, "dense"),
}
