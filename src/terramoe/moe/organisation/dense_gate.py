"""A softmax gate over all experts, as a routing record: what the organisations without selection need."""

from __future__ import annotations

import torch
from torch import nn

from terramoe.errors import RoutingError
from terramoe.moe import links, weighing
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.selectors import All


def dense_routing(scorer: nn.Module, inp: RouteInput, num_experts: int, where: str) -> Routing:
    """Softmax over the logits of a scorer; every item uses all E experts with their probabilities as weights.

    Raises:
        RoutingError: the scorer gives another number of logits, or NaN for an item that is not masked.
    """
    scores = scorer(inp)
    logits = scores.logits
    if logits.shape[-1] != num_experts:
        raise RoutingError(
            f"a gate gives {logits.shape[-1]} logits for {num_experts} experts",
            where=where,
            fix="build each gate with the number of experts that it sees",
        )
    if not torch.compiler.is_compiling():
        bad = logits.detach().isnan().any(-1) & (True if inp.mask is None else inp.mask)
        if bad.any():
            raise RoutingError(
                f"{int(bad.sum())} of {bad.numel()} items give NaN logits",
                where=where,
                fix="pass mask= with False for nodata items; in training, lower the learning rate",
            )
    with torch.autocast(logits.device.type, enabled=False):
        probs = links.softmax(logits)
        pairs = All()(logits, inp)
        return Routing(
            logits=logits,
            probs=probs,
            item=pairs.item,
            expert=pairs.expert,
            rank=pairs.rank,
            weight=weighing.raw(probs, logits, pairs),
            kept=torch.ones_like(pairs.item, dtype=torch.bool),
            mask=inp.mask,
            clean_logits=scores.clean,
            noise_std=scores.noise_std,
            keys=inp.keys,
            fixed_k=pairs.fixed_k,
        )
