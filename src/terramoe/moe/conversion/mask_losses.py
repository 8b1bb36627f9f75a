"""What ToMoE (2025, arXiv 2501.15316) trains masks and routers by: pure functions, unweighted.

The whole is the sum of these times ``WEIGHTS``; the balance is ``objectives.switch_balance`` of the routings, of which
the source takes 1 / E. Masks are (E, H) for each layer, 0 to 1, from ``masked.sample_masks``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from terramoe.errors import RoutingError

# code: a later version of the released script distils with 16.
WEIGHTS = {"prediction_kl": 2.0, "parameter_budget": 16.0, "union_gap": 3.0, "switch_balance": 1.0}

_FLOOR = 1e-3  # code: added to both sides of the ratio, so that an empty mask has a finite loss


def prediction_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher | student), mean over the rows (..., classes), in nats; no gradient reaches the teacher."""
    if student_logits.shape != teacher_logits.shape:
        raise RoutingError(
            f"logits of shapes {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}",
            where="prediction_kl",
            fix="give the predictions of both models for the same batch",
        )
    student, teacher = (z.flatten(0, -2).log_softmax(-1) for z in (student_logits, teacher_logits.detach()))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def parameter_budget(masks: Sequence[Tensor], share: float = 0.5) -> Tensor:
    """``log(max(r, share) / min(r, share))``, r being the share of neurons that an item uses; 0 at the budget alone.

    The widest expert of each layer counts, since hardened experts all get its width; and all neurons cost alike, as
    where the layers have the same number of channels.

    Args:
        masks: (E, H) of each layer.
        share: above 0, at most 1.
    """
    if not masks or not 0 < share <= 1:
        raise RoutingError(
            f"{len(masks)} masks, a share of {share}",
            where="parameter_budget",
            fix="give the masks of at least one layer and a share above 0 and at most 1",
        )
    used = sum(mask.sum(-1).max() for mask in masks) / sum(mask.shape[-1] for mask in masks)
    return _log_ratio(used, share)


def union_gap(masks: Sequence[Tensor]) -> Tensor:
    """``log(1 / u)``, mean over the layers, u being the share of neurons that some expert has: 0 if none is lost.

    The union is soft, ``1 - prod_e (1 - m_e)``.
    """
    if not masks:
        raise RoutingError("there are no masks", where="union_gap", fix="give the masks of at least one layer")
    gaps = [_log_ratio((1 - (1 - mask).prod(0)).mean(), 1.0) for mask in masks]
    return torch.stack(gaps).mean()


def _log_ratio(value: Tensor, target: float) -> Tensor:
    """|log(value / target)|, finite at 0."""
    return (torch.log(value + _FLOOR) - torch.log(value.new_tensor(target + _FLOOR))).abs()
