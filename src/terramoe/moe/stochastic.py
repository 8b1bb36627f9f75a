"""Stochastic experts: no learned router; a random expert in training, and two random views that must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts import Bank
from terramoe.moe.layer import MoELayer
from terramoe.moe.objectives import symmetric_kl
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers import Scores
from terramoe.moe.selectors import TopK

Batch = TypeVar("Batch")

LEVELS = ("batch", "group", "item")


class RandomExpertScorer(nn.Module):
    """Draws one expert, all alike likely: logit 0 for the drawn expert and -inf for the others.

    In training the draws come from torch's global generator. In evaluation they come from a generator seeded anew at
    each call, so that the same input gives the same output.

    Args:
        num_experts: E.
        training_level, inference_level: what shares a draw: the whole "batch", each ``group`` of the items (an image,
            a sentence), or each "item".
        seed: of the draws in evaluation.

    Raises:
        RoutingError: no such level; at the forward, level "group" without groups.
    """

    def __init__(
        self, num_experts: int, training_level: str = "batch", inference_level: str = "item", seed: int = 0
    ) -> None:
        super().__init__()
        if {training_level, inference_level} - set(LEVELS):
            raise RoutingError(
                f"draws by '{training_level}' and '{inference_level}'",
                where="RandomExpertScorer",
                fix=f"use one of {', '.join(LEVELS)}",
            )
        self.num_experts, self.seed = num_experts, seed
        self.training_level, self.inference_level = training_level, inference_level

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput -> logits (T, E), one 0 in each row and -inf elsewhere."""
        expert = self._draw(inp).to(inp.x.device)
        dtype = torch.promote_types(inp.x.dtype, torch.float32)
        logits = torch.full((expert.shape[0], self.num_experts), -torch.inf, dtype=dtype, device=inp.x.device)
        return Scores(logits.scatter(1, expert[:, None], 0.0))

    def _draw(self, inp: RouteInput) -> Tensor:
        """(T,) int64 on the CPU, where a seed means the same on every machine."""
        generator = None if self.training else torch.Generator().manual_seed(self.seed)
        items, level = inp.x.shape[0], self.training_level if self.training else self.inference_level
        if level == "item":
            return torch.randint(self.num_experts, (items,), generator=generator)
        if level == "batch":
            return torch.randint(self.num_experts, (1,), generator=generator).expand(items)
        if inp.group is None:
            raise RoutingError(
                "one draw per group was asked for, but the items have no groups",
                where="RandomExpertScorer",
                fix="pass group= to the layer, or use the level 'item' or 'batch'",
            )
        groups, place = inp.group.cpu().unique(return_inverse=True)
        return torch.randint(self.num_experts, groups.shape, generator=generator)[place]


def random_expert_layer(
    bank: Bank, training_level: str = "batch", inference_level: str = "item", seed: int = 0
) -> MoELayer:
    """A layer of stochastic experts (Taming Sparsely Activated Transformer with Stochastic Experts, THOR, 2021,
    arXiv 2110.04260): each forward runs one random expert with weight 1. For the levels see ``RandomExpertScorer``.
    """
    scorer = RandomExpertScorer(bank.num_experts, training_level, inference_level, seed)
    return MoELayer(scorer, bank, selector=TopK(1))


class TwoViews(NamedTuple):
    """What ``two_view_loss`` returns.

    Attributes:
        loss: scalar to minimise.
        task: scalar, the sum of the two views' task losses.
        consistency: scalar, the symmetric KL divergence between the views, in nats.
        first, second: the model's logits in the two views.
    """

    loss: Tensor
    task: Tensor
    consistency: Tensor
    first: Tensor
    second: Tensor


def two_view_loss(
    model: Callable[[Batch], Tensor],
    batch: Batch,
    loss_fn: Callable[[Tensor, Batch], Tensor],
    weight: float = 1.0,
    class_dim: int = -1,
) -> TwoViews:
    """Consistency training of stochastic experts (THOR, 2021, arXiv 2110.04260).

    ``CE1 + CE2 + weight * (KL(p1||p2) + KL(p2||p1)) / 2`` over two forwards with independent draws.

    Args:
        model: batch -> logits, with the classes on ``class_dim``; called twice.
        batch: whatever the model and the loss read.
        loss_fn: (logits, batch) -> scalar.
        weight: of the consistency term.
        class_dim: where the classes are.
    """
    first, second = model(batch), model(batch)
    task = loss_fn(first, batch) + loss_fn(second, batch)
    consistency = symmetric_kl(first, second, class_dim)
    return TwoViews(task + weight * consistency, task, consistency, first, second)
