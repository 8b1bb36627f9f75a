"""The layers that are compared: ours, the dense limit, and other implementations of the same mixture.

All get the same items, the same router matrix and the same active FLOPs per item; experts are two-layer feed-forward
blocks of hidden width 4 D, or gated ones of two thirds of it where a library has no other. Each maker returns a
module on items (T, D), or None where the library cannot do the cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from terramoe.moe import LinearScorer, MoELayer, StackedFFN, TopK
from terramoe.moe.products import linear, many_by_few
from terramoe.moe.weighing import renormalised

SEQUENCE = 1024  # libraries that count capacity per sequence get the items as sequences of this length


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    device: str
    dtype: str
    direction: str
    items: int
    width: int
    experts: int
    k: int
    routing: str

    @property
    def hidden(self) -> int:
        return 4 * self.width


class Ours(nn.Module):
    def __init__(self, cell: Cell, router: Tensor, executor: str) -> None:
        super().__init__()
        scorer, bank = LinearScorer(cell.width, cell.experts), StackedFFN(cell.experts, cell.width, cell.hidden)
        self.layer = MoELayer(scorer, bank, selector=TopK(cell.k), weigh=renormalised, executor=executor)
        with torch.no_grad():
            scorer.linear.weight.copy_(router)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def padded(cell: Cell, router: Tensor) -> nn.Module | None:
    # Every expert gets a buffer for the load of the most popular one: under a skewed router that does not fit memory.
    too_large = cell.routing == "skewed" and cell.items * cell.width * cell.experts > 5e7
    return None if too_large else Ours(cell, router, "padded")


class PlainLoop(nn.Module):
    """What a user writes first: top-k, then one expert after the other with where and index_add."""

    def __init__(self, cell: Cell, router: Tensor) -> None:
        super().__init__()
        self.k, self.router = cell.k, nn.Linear(cell.width, cell.experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(cell.width, cell.hidden), nn.GELU(), nn.Linear(cell.hidden, cell.width))
            for _ in range(cell.experts)
        )
        with torch.no_grad():
            self.router.weight.copy_(router)

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).float().softmax(-1).topk(self.k, dim=-1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            item, rank = torch.where(chosen == e)
            if item.numel():
                y = y.index_add(0, item, expert(x[item]) * weight[item, rank, None])
        return y


class Sequences(nn.Module):
    """Feeds items to a library that wants (batch, sequence, width), and keeps the first thing that it returns."""

    def __init__(self, block: nn.Module, length: int) -> None:
        super().__init__()
        self.block, self.length = block, length

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x.view(-1, min(self.length, x.shape[0]), x.shape[1]))
        return (y[0] if isinstance(y, tuple) else y).reshape(x.shape)


def dense(cell: Cell, router: Tensor) -> nn.Module:
    hidden = cell.k * cell.hidden
    return nn.Sequential(nn.Linear(cell.width, hidden), nn.GELU(), nn.Linear(hidden, cell.width))


class DenseSameKernels(nn.Module):
    """The dense block through the products that our experts use: the ratio to it is what routing costs."""

    def __init__(self, cell: Cell, router: Tensor) -> None:
        super().__init__()
        self.block = dense(cell, router)

    def forward(self, x: Tensor) -> Tensor:
        first, activation, last = self.block
        return self.product(last, activation(self.product(first, x)))

    @staticmethod
    def product(layer: nn.Linear, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return many_by_few(x, layer.weight.T) + layer.bias
        return linear(x, layer.weight.T, layer.bias)


def transformers_mixtral(cell: Cell, router: Tensor, experts: str) -> nn.Module | None:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    gathered = cell.items * cell.k * cell.width * cell.hidden * 2 * 4
    if experts == "batched_mm" and gathered > 1e9:  # it copies the weights for every pair
        return None
    config = MixtralConfig(
        hidden_size=cell.width,
        intermediate_size=round(cell.hidden * 2 / 3 / 8) * 8,
        num_local_experts=cell.experts,
        num_experts_per_tok=cell.k,
    )
    config._experts_implementation = experts
    block = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, 0.02)
        block.gate.weight.copy_(router)
    return Sequences(block, cell.items)


def st_moe(cell: Cell, router: Tensor) -> nn.Module | None:
    from st_moe_pytorch import MoE

    if cell.k != 2:
        return None
    block = MoE(cell.width, num_experts=cell.experts, expert_hidden_mult=4, gating_top_n=2)
    with torch.no_grad():
        block.gate.to_gates.weight.copy_(router)
    return Sequences(block, SEQUENCE)


def mixture_of_experts(cell: Cell, router: Tensor) -> nn.Module | None:
    from mixture_of_experts import MoE

    if cell.k != 2:
        return None
    block = MoE(cell.width, num_experts=cell.experts, hidden_dim=cell.hidden, activation=nn.GELU)
    with torch.no_grad():
        block.gate.w_gating.copy_(router.T)
    return Sequences(block, SEQUENCE)


# The name "terramoe" is what MoELayer picks by default; a dense block comes first, it is the limit.
IMPLEMENTATIONS: dict[str, Callable[[Cell, Tensor], nn.Module | None]] = {
    "dense": dense,
    "dense-same-kernels": DenseSameKernels,
    "terramoe": lambda cell, router: Ours(cell, router, "auto"),
    "terramoe-loop": lambda cell, router: Ours(cell, router, "loop"),
    "terramoe-padded": padded,
    "terramoe-dense": lambda cell, router: Ours(cell, router, "dense") if cell.experts <= 4 else None,
    "plain-loop": PlainLoop,
    "transformers-eager": lambda cell, router: transformers_mixtral(cell, router, "eager"),
    "transformers-grouped_mm": lambda cell, router: transformers_mixtral(cell, router, "grouped_mm"),
    "transformers-batched_mm": lambda cell, router: transformers_mixtral(cell, router, "batched_mm"),
    "st-moe-pytorch": st_moe,
    "mixture-of-experts": mixture_of_experts,
}
