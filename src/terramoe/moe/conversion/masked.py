"""Experts as masks over the neurons of one FFN, learned while its weights stay as they are: ToMoE.

``mask_network`` gives the masks of all layers, ``MaskedLayer`` runs an FFN under them, ``under_masks`` hands them to a
whole model, ``mask_losses`` says what they are trained by, and ``harden`` cuts ordinary experts. Source: ToMoE:
Converting Dense Large Language Models to Mixture-of-Experts through Dynamic Structural Pruning, 2025, arXiv
2501.15316. Its dynamic dimensions of attention heads are left out. Reconstruction: masks are drawn once per forward and
not per item, and the router's gradient goes through masks that are decoded already.

Shapes: T items, D in, H neurons, O out, E experts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe import links, weighing
from terramoe.moe.conversion.dense_ffn import DenseFFN, read_ffn, slice_experts, stack_ffn, with_offset
from terramoe.moe.conversion.mask_network import OFFSET, TEMPERATURE, sample_masks
from terramoe.moe.experts import Bank, StackedFFN
from terramoe.moe.experts.fused import Weights
from terramoe.moe.layer import MoELayer
from terramoe.moe.organisation import SharedPlusRouted
from terramoe.moe.organisation.masking import zero_masked
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.scorers import GumbelScorer, LinearScorer
from terramoe.moe.selectors import TopK, ordered_top


class MaskedBank(Bank):
    """E experts that are masks over the neurons of one FFN: ``(act(x W1 + b1) * m_e) W2``, without output offset.

    As the masks enter linearly, any number of experts costs one pass of the FFN.

    Args:
        ffn: one expert; its output offset is not used.
        masks: (E, H), 0 to 1; they may carry a gradient.

    Raises:
        RoutingError: shapes that do not fit.
    """

    masks: Tensor

    def __init__(self, ffn: StackedFFN, masks: Tensor) -> None:
        super().__init__()
        if ffn.num_experts != 1 or masks.ndim != 2 or masks.shape[1] != ffn.hidden:
            raise RoutingError(
                f"masks of shape {tuple(masks.shape)} for {ffn.num_experts} FFN with {ffn.hidden} neurons",
                where="MaskedBank",
                fix="give a StackedFFN of 1 expert and one mask (H,) per expert",
            )
        self.ffn, self.num_experts, self.dim = ffn, masks.shape[0], ffn.dim
        self.register_buffer("masks", masks)

    def mix(self, x: Tensor, gates: Tensor) -> Tensor:
        """The sum of the experts times ``gates`` (T, E), for items (T, ..., D) -> (T, ..., O)."""
        self.ffn.check_width(x)
        w = Weights(*(None if p is None else p[0] for p in self.ffn.weights()))
        hidden = DenseFFN(w, self.ffn.activation_name).hidden(x)
        mask = gates.to(hidden.dtype) @ self.masks.to(hidden.dtype)
        return (hidden * mask.view(-1, *[1] * (hidden.ndim - 2), mask.shape[-1])) @ w.w_out

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert: (n, ..., D) -> (n, ..., O)."""
        only = F.one_hot(torch.tensor(expert, device=x.device), self.num_experts)
        return self.mix(x, only.expand(x.shape[0], -1))

    def run_routed(self, x: Tensor, routing: Routing) -> Tensor:
        """Items (T, ..., D) -> weighted sums (T, ..., O)."""
        if routing.mask is not None:  # a masked item may hold NaN, and 0 * NaN is not 0
            x = torch.where(routing.mask.view(-1, *[1] * (x.ndim - 1)), x, 0)
        return self.mix(x, routing.dense())

    def expert_parameters(self, expert: int) -> int:
        """Scalars that belong to the neurons which the mask leaves open."""
        each = sum(p.numel() for p in self.ffn.weights()[:3] if p is not None) // self.ffn.hidden
        return each * int(self.masks[expert].count_nonzero())


class MaskedLayer(nn.Module):
    """A dense FFN, frozen, under masks from outside; each item has one expert.

    The choice is hard, and its gradient that of the router's Gumbel-softmax for every expert (straight-through).

    Args:
        ffn: see ``read_ffn``; it is copied.
        num_experts: E.
        temperature: of the router's softmax.
    """

    def __init__(self, ffn: nn.Module, num_experts: int, *, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        dense = read_ffn(ffn)
        one = stack_ffn(Weights(*(None if p is None else p[None] for p in dense.weights)), dense.activation)
        bank = MaskedBank(one.requires_grad_(False), one.w_in_EDH.new_ones(num_experts, dense.neurons))
        self.layer = MoELayer(
            GumbelScorer(LinearScorer(bank.dim, num_experts)).to(one.w_in_EDH),
            bank,
            selector=TopK(1),
            link=links.Tempered(temperature),
            weigh=weighing.ones,
        )
        self.train(ffn.training)

    @property
    def ffn(self) -> StackedFFN:
        """The dense FFN, a bank of one expert."""
        return self.layer.bank.ffn

    def forward(
        self,
        x: Tensor,
        masks: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        keys: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Routing]:
        """Items (T, ..., D) -> (T, ..., O), 0 where masked, and the routing.

        Args:
            x: items.
            masks: (E, H) from ``sample_masks``; None: all neurons are open, which gives the dense FFN.
            mask, keys: see ``RouteInput``.
        """
        routing = self.layer.route(RouteInput(x, mask, None, keys or {}))
        bank = self.layer.bank if masks is None else MaskedBank(self.ffn, masks)
        if bank.num_experts != routing.num_experts:
            raise RoutingError(
                f"masks of shape {tuple(masks.shape)} for {routing.num_experts} experts",
                where="MaskedLayer",
                fix="give one mask per expert",
            )
        gates = routing.dense() + (routing.probs - routing.probs.detach())
        y = bank.mix(zero_masked(x, mask), gates)
        offset = self.ffn.b_out_ED
        return zero_masked(y if offset is None else y + offset[0], mask), routing


@contextmanager
def under_masks(model: nn.Module, masks: Sequence[Tensor]) -> Iterator[None]:
    """Inside the ``with`` block the i-th ``MaskedLayer`` of the model works under ``masks[i]``, (E, H)."""
    layers = [part for part in model.modules() if isinstance(part, MaskedLayer)]
    if len(layers) != len(masks):
        raise RoutingError(
            f"{len(masks)} masks for {len(layers)} masked layers", where="under_masks", fix="give one per MaskedLayer"
        )
    handles = []
    try:
        for layer, mask in zip(layers, masks, strict=True):
            handles.append(layer.register_forward_pre_hook(partial(_give_masks, mask), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def harden(
    layer: MaskedLayer, logits: Tensor, *, offset: float = OFFSET, width: int | None = None
) -> MoELayer | SharedPlusRouted:
    """An ordinary layer whose experts are slices of the dense FFN, under the learned router without noise.

    All experts get the width of the widest mask, each with its neurons of the greatest logits, so that narrower masks
    gain some. Where all masks are as wide, the output is that of the masked layer in evaluation.

    Args:
        layer: after training.
        logits: (E, H) mask logits of this layer, from ``MaskNetwork``.
        offset: as in ``sample_masks``.
        width: neurons per expert, to keep a budget exactly; None: of the widest mask, at least 1.
    """
    bank = layer.layer.bank
    if logits.shape != bank.masks.shape:
        raise RoutingError(
            f"logits of shape {tuple(logits.shape)}, the layer's masks have {tuple(bank.masks.shape)}",
            where="harden",
            fix="give the logits of this layer",
        )
    widest = int(sample_masks(logits, offset=offset, noise=False).sum(-1).max())
    width = max(1, widest) if width is None else width
    if not 1 <= width <= bank.ffn.hidden:
        raise RoutingError(f"experts of {width} neurons", where="harden", fix=f"use 1 to {bank.ffn.hidden}")
    dense = read_ffn(bank.ffn)
    experts = slice_experts(dense, ordered_top(logits, width).sort(-1).values)
    hard = MoELayer(copy.deepcopy(layer.layer.scorer.scorer), experts, selector=TopK(1), weigh=weighing.ones)
    return with_offset(hard, dense.weights.b_out).train(layer.training)


def _give_masks(masks: Tensor, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, {**kwargs, "masks": masks}
