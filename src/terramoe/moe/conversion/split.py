"""Splitting a dense FFN into experts by the importance of its neurons: MoEBERT.

Source: MoEBERT: from BERT to Mixture-of-Experts via Importance-Guided Adaptation, 2022, arXiv 2204.07675. The given
modules are left as they are. Shapes: D in, H neurons, O out, E experts of n neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe import weighing
from terramoe.moe.conversion.dense_ffn import DenseFFN, read_ffn, slice_experts, with_offset
from terramoe.moe.layer import MoELayer
from terramoe.moe.objectives import symmetric_kl
from terramoe.moe.organisation import SharedPlusRouted
from terramoe.moe.scorers import LinearScorer, ZeroScorer
from terramoe.moe.selectors import Table, TopK

Batch = TypeVar("Batch")


def neuron_importance(
    ffns: Mapping[str, nn.Module], loss: Callable[[Batch], Tensor], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """(H,) float64 for each FFN: how much the loss would change without each neuron, to first order.

    ``I_j = sum over batches |w1_j . dL/dw1_j + w2_j . dL/dw2_j|``; both columns of a gated neuron belong to w1_j, and
    offsets do not count.

    Args:
        ffns: FFNs of one model by name, as ``find_ffns`` gives them.
        loss: batch -> scalar, computed through the model.
        batches: the data to sum over; gradients of the model are neither read nor written.

    Raises:
        RoutingError: no batch; an FFN that is frozen or that the loss does not reach.
    """
    dense = {name: read_ffn(ffn) for name, ffn in ffns.items()}
    parameters = [p for ffn in ffns.values() for p in ffn.parameters()]
    if not parameters or not all(p.requires_grad for p in parameters):
        raise RoutingError(
            "there are no parameters, or some are frozen", where="neuron_importance", fix="let the FFNs require grad"
        )
    total: dict[str, Tensor] = {}
    for batch in batches:
        found = torch.autograd.grad(loss(batch), parameters, allow_unused=True)
        if any(g is None for g in found):
            raise RoutingError(
                "the loss does not depend on every FFN", where="neuron_importance", fix="compute it through the model"
            )
        gradient = dict(zip(parameters, found, strict=True))
        for name, ffn in ffns.items():
            change = _change(dense[name], read_ffn(ffn, gradient.__getitem__))
            total[name] = total[name] + change if name in total else change
    if not total:
        raise RoutingError("there was no batch", where="neuron_importance", fix="give at least one")
    return total


def deal_neurons(importance: Tensor, num_experts: int, shared: int = 0, width: int | None = None) -> Tensor:
    """(E, n) ids of the neurons of each expert: the best ``shared`` go to all, the others in turn by their rank.

    Ties go to the lower id. Inside an expert the most important neuron stands first.

    Args:
        importance: (H,) finite.
        num_experts: E.
        shared: s, 0..H.
        width: n; the least important neurons of each expert are left out beyond it, and some are then in none. The
            source takes 768 of 3072 neurons with 512 shared among 4 experts. None: every neuron is dealt, which needs
            H - s to be a multiple of E.

    Raises:
        RoutingError: importance of another form, numbers that do not fit.
    """
    if importance.ndim != 1 or not bool(importance.isfinite().all()):
        raise RoutingError(
            f"importance of shape {tuple(importance.shape)}",
            where="deal_neurons",
            fix="give one finite value per neuron",
        )
    rest = importance.numel() - shared
    if num_experts < 1 or shared < 0 or rest < 0 or (width is None and rest % num_experts):
        raise RoutingError(
            f"{importance.numel()} neurons, {shared} of them shared, for {num_experts} experts",
            where="deal_neurons",
            fix="choose shared so that the others divide by the experts, or give a width",
        )
    most = shared + rest // num_experts
    width = most if width is None else width
    if not 1 <= width <= most:
        raise RoutingError(f"experts of {width} neurons", where="deal_neurons", fix=f"use a width of 1 to {most}")
    order = torch.argsort(importance, descending=True, stable=True)
    own = order[shared : shared + num_experts * (most - shared)].view(-1, num_experts).T
    return torch.cat([order[:shared].expand(num_experts, -1), own], dim=1)[:, :width]


def split_by_importance(
    ffn: nn.Module,
    importance: Tensor,
    num_experts: int,
    *,
    shared: int = 0,
    width: int | None = None,
    table: Table | None = None,
) -> MoELayer | SharedPlusRouted:
    """Experts that are slices of a dense FFN, one of them per item, the output offset added once.

    Args:
        ffn: see ``read_ffn``.
        importance, num_experts, shared, width: see ``deal_neurons``.
        table: looks an item's expert up by a key, with weight 1; the source draws it, ``Table.random("token", ...)``.
            None: a learned router chooses one, weighted by its probability.

    With no shared neuron and no width, all experts together with weight 1 are the dense FFN.
    """
    dense = read_ffn(ffn)
    if importance.shape != (dense.neurons,):
        raise RoutingError(
            f"importance of shape {tuple(importance.shape)} for {dense.neurons} neurons",
            where="split_by_importance",
            fix="give one value per neuron of this FFN (neuron_importance)",
        )
    bank = slice_experts(dense, deal_neurons(importance, num_experts, shared, width))
    if table is None:
        layer = MoELayer(LinearScorer(bank.dim, num_experts).to(bank.w_in_EDH), bank, selector=TopK(1))
    else:
        layer = MoELayer(ZeroScorer(num_experts), bank, selector=table, weigh=weighing.ones)
    return with_offset(layer, dense.weights.b_out).train(ffn.training)


def distillation_loss(
    student_hidden: Sequence[Tensor],
    teacher_hidden: Sequence[Tensor],
    student_logits: Tensor,
    teacher_logits: Tensor,
    weight: float = 5.0,
) -> Tensor:
    """``weight * (sum over layers of the mean squared difference + symmetric KL of the predictions)``.

    To be added to the task's loss while the split model learns from the dense one. 0 if both agree.

    Args:
        student_hidden, teacher_hidden: outputs of the same layers, the embedding included.
        student_logits, teacher_logits: (..., classes). No gradient reaches the teacher.
        weight: 5 for the largest task of the source, 1 to 5 for the others.

    Raises:
        RoutingError: other layers or shapes.
    """
    shapes = [[tuple(h.shape) for h in hidden] for hidden in (student_hidden, teacher_hidden)]
    if shapes[0] != shapes[1]:
        raise RoutingError(
            f"the student has outputs {shapes[0]}, the teacher {shapes[1]}",
            where="distillation_loss",
            fix="give the same layers of both for the same batch",
        )
    layers = [F.mse_loss(s, t.detach()) for s, t in zip(student_hidden, teacher_hidden, strict=True)]
    return weight * (sum(layers) + symmetric_kl(student_logits, teacher_logits.detach()))


def _change(value: DenseFFN, gradient: DenseFFN) -> Tensor:
    """(H,) |w1_j . g1_j + w2_j . g2_j|."""
    (w_in, _, w_out, _), (g_in, _, g_out, _) = value.weights, gradient.weights
    first = value.by_neuron((w_in.double() * g_in.double()).sum(0)).sum(0)
    return (first + (w_out.double() * g_out.double()).sum(1)).abs()
