"""A gate that looks at what the experts gave, not at the item: mixing adapters that were trained before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe import links
from terramoe.moe.executors.combine import expand_like
from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing
from terramoe.moe.selectors import pairs_from_mask


class OutputGate(nn.Module):
    """Weights from all experts' outputs: ``softmax(LayerNorm(concat_e y_e) W / temperature)``, temperature learned.

    Args:
        num_experts: E.
        dim_out: channels of an expert's output.
        temperature: its value at the start.

    Raises:
        RoutingError: a count below 1 or a temperature not above 0; outputs of another shape; nothing available.

    Source: Mixture of LoRA Experts, 2024, arXiv 2404.13628. Reconstruction: the norm is a LayerNorm over the channels
    of all experts, and inner dimensions are averaged instead of flattened, so that their number may change.
    """

    def __init__(self, num_experts: int, dim_out: int, *, temperature: float = 1.0) -> None:
        super().__init__()
        if min(num_experts, dim_out) < 1 or not temperature > 0:
            raise RoutingError(
                f"{num_experts} experts of width {dim_out} with temperature {temperature}",
                where="OutputGate",
                fix="use at least 1 of each and a temperature above 0",
            )
        self.num_experts, self.dim_out = num_experts, dim_out
        self.norm = nn.LayerNorm(num_experts * dim_out)
        self.linear = nn.Linear(num_experts * dim_out, num_experts, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, outputs: Tensor, available: Tensor | None = None, mask: Tensor | None = None) -> Routing:
        """Outputs (E, T, ..., D_out) -> a routing in which every item uses every available expert.

        Args:
            outputs: what each expert gave for each item.
            available: (E,) or (T, E) bool; the weights of the others are shared out in proportion.
            mask: (T,) bool, False for items that are not to be routed.
        """
        if outputs.ndim < 3 or (outputs.shape[0], outputs.shape[-1]) != (self.num_experts, self.dim_out):
            raise RoutingError(
                f"outputs of shape {tuple(outputs.shape)}, expected ({self.num_experts}, items, ..., {self.dim_out})",
                where="OutputGate",
                fix="give the outputs of all experts (Bank.run_all)",
            )
        logits, items = self._logits(outputs), outputs.shape[1]
        if available is None:
            available = torch.ones(self.num_experts, dtype=torch.bool, device=logits.device)
        available = available.expand(items, self.num_experts)
        if not bool(available.any(-1).all()):
            raise RoutingError("no expert is available", where="OutputGate", fix="leave at least one per item")
        logits = logits.masked_fill(~available, -torch.inf)
        probs = links.softmax(logits)
        pairs = pairs_from_mask(available, probs, mask)
        kept = torch.ones_like(pairs.item, dtype=torch.bool)
        return Routing(logits, probs, pairs.item, pairs.expert, pairs.rank, pairs.take(probs), kept, mask=mask)

    def _logits(self, outputs: Tensor) -> Tensor:
        """(T, E) in float32 or better, also under autocast."""
        with torch.autocast(outputs.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(outputs.dtype, self.linear.weight.dtype), torch.float32)
            features = outputs.to(dtype).movedim(0, -2).flatten(-2)  # (T, ..., E * D_out)
            norm = self.norm
            features = nn.functional.layer_norm(
                features, norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps
            )
            if features.ndim > 2:
                features = features.flatten(1, -2).mean(1)
            return features @ self.linear.weight.to(dtype).T / self.log_temperature.to(dtype).exp()


class OutputGatedLayer(nn.Module):
    """All experts run, and an ``OutputGate`` mixes what they gave; used as a ``MoELayer`` is.

    Args:
        bank: the experts, for example LoRAs trained one by one.
        gate: the gate, the only part that learns unless ``frozen`` is False.
        frozen: stop training the bank.
    """

    def __init__(self, bank: Bank, gate: OutputGate, *, frozen: bool = True) -> None:
        super().__init__()
        if bank.num_experts != gate.num_experts:
            raise RoutingError(
                f"a gate over {gate.num_experts} experts for a bank of {bank.num_experts}",
                where="OutputGatedLayer",
                fix="build bank and gate with the same number of experts",
            )
        self.bank, self.gate = bank, gate
        if frozen:
            bank.requires_grad_(False)

    def forward(
        self, x: Tensor, available: Tensor | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """Items (T, ..., D) -> (T, ..., D_out) and the routing; masked items give 0."""
        if mask is not None:  # a masked item may hold NaN, and 0 * NaN is not 0
            x = torch.where(expand_like(mask, x).bool(), x, 0)
        outputs = self.bank.run_all(x)
        routing = self.gate(outputs, available, mask)
        return torch.einsum("te,et...->t...", routing.dense().to(outputs.dtype), outputs), routing


def gate_balance(routings: Sequence[Routing]) -> Tensor:
    """MoLE's balance loss over the gates of a model: ``-sum_e log q_e``, q_e the mean weight of expert e.

    Least, E log E, where all experts are used alike. The mean is over blocks, and over the valid items of each.
    Source: Mixture of LoRA Experts, 2024, arXiv 2404.13628.
    """
    if not routings:
        raise RoutingError("no routings were given", where="gate_balance", fix="pass the routing of each gated layer")
    means = [r.dense().sum(0) / r.valid().sum().clamp_min(1) for r in routings]
    q = torch.stack(means).mean(0)
    return -torch.log(q.clamp_min(torch.finfo(q.dtype).tiny)).sum()
