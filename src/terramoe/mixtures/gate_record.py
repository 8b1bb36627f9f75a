"""Gate probabilities as the record of the routing core."""

from __future__ import annotations

import numpy as np
import torch

from terramoe.moe.routing import Routing


def dense_routing(log_proba: np.ndarray) -> Routing:
    """Every expert takes part, weighted by its gate probability; log-probabilities are (n, E)."""
    logits = torch.from_numpy(np.ascontiguousarray(log_proba, dtype=np.float64))
    items, experts = logits.shape
    probs = logits.exp()
    ranked = logits.sort(dim=1, descending=True, stable=True).indices  # ties go to the lower index
    return Routing(
        logits=logits,
        probs=probs,
        item=torch.arange(items).repeat(experts),
        expert=ranked.T.reshape(-1),
        rank=torch.arange(experts).repeat_interleave(items),
        weight=probs.gather(1, ranked).T.reshape(-1),
        kept=torch.ones(items * experts, dtype=torch.bool),
        fixed_k=experts,
    )


def hard_routing(logits: np.ndarray) -> Routing:
    """The expert of the greatest logit (n, E) alone, the lower index on ties, with weight 1."""
    scores = torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float64))
    items = len(scores)
    return Routing(
        logits=scores,
        probs=scores.softmax(dim=1),
        item=torch.arange(items),
        expert=torch.from_numpy(np.asarray(logits).argmax(axis=1)),
        rank=torch.zeros(items, dtype=torch.int64),
        weight=torch.ones(items, dtype=scores.dtype),
        kept=torch.ones(items, dtype=torch.bool),
        fixed_k=1,
    )
