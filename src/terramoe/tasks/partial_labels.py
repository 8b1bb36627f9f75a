"""Learning from candidate labels: a sample has one of several classes, and which of them is not known.

N samples, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.tasks.pixel_class import IGNORE


def pruned_candidates(logits: Tensor, features: Tensor, labels: Tensor, known: Tensor, neighbours: int) -> Tensor:
    """The classes that each sample may have: (N, K) bool, maybe none. Without gradient.

    Within the sample, a class stays if it is at least as likely as chance, 1 / K. Between samples, it stays if the
    samples with the most similar features (cosine) give it at least chance on average; a labelled one says its label.
    So a candidate needs both, and a sample whose neighbours contradict it outright has none.

    Completion of the pruning in CPLP-DMoEs, 2025, doi:10.1109/TGRS.2025.3543498, whose abstract names the two views but
    no rule: chance needs no threshold to tune.

    Args:
        logits: (N, K). features: (N, D). labels: (N,) int64, -1 = none.
        known: (N,) bool, samples that may be asked.
        neighbours: how many are asked, or as many as there are.
    """
    with torch.no_grad():
        probability = torch.softmax(logits, dim=1)
        count, classes = probability.shape
        votes = torch.where(
            (labels != IGNORE)[:, None], nn.functional.one_hot(labels.clamp_min(0), classes), probability
        )
        unit = nn.functional.normalize(features, dim=1)
        alike = (unit @ unit.T).masked_fill(~known[None], -torch.inf).fill_diagonal_(-torch.inf)
        nearest = alike.topk(min(neighbours, count), dim=1)
        asked = nearest.values > -torch.inf
        total = asked.sum(1, keepdim=True)
        opinion = (votes[nearest.indices] * asked[..., None]).sum(1) / total.clamp_min(1)
        return (probability >= 1 / classes) & ((opinion >= 1 / classes) | (total == 0))


def partial_label_loss(logits: Tensor, candidates: Tensor, items: Tensor) -> Tensor:
    """Mean over ``items`` of -log(probability of the candidates together), times how sure the network is; a scalar.

    The weight is (largest probability - 1 / K) / (1 - 1 / K), without gradient: 0 where the network knows nothing, as
    at the start of a training, and 1 where it is sure. An item without candidates adds 0.

    Source of the partial-label loss: Learning from Partial Labels, 2011, Journal of Machine Learning Research 12.

    Args:
        logits: (N, K). candidates: (N, K) bool. items: (N,) bool.
    """
    counts = items & candidates.any(1)
    inside = logits.masked_fill(counts[:, None] & ~candidates, -torch.inf)
    loss = logits.logsumexp(1) - inside.logsumexp(1)
    chance = 1 / logits.shape[1]
    sure = (torch.softmax(logits.detach(), dim=1).amax(1) - chance) / max(1 - chance, chance)
    return torch.where(counts, sure * loss, 0.0).sum() / items.sum().clamp_min(1)
