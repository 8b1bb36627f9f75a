"""Objectives of mixtures of experts as torch losses, for training the same models by gradient.

Shapes: T items, E experts, D outputs. All return the mean over items as a scalar.

The first three are those of Adaptive Mixtures of Local Experts, 1991, DOI 10.1162/neco.1991.3.1.79. Only the last of
them gives each expert a gradient in proportion to how well it already explains the item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.errors import RoutingError


def cooperative_loss(gate: Tensor, output: Tensor, target: Tensor) -> Tensor:
    """``|y - sum_i g_i o_i|^2``: the experts are blended before the error, so they cooperate and stay coupled.

    Args:
        gate: (T, E) gate probabilities. output: (T, E, D) of the experts. target: (T, D).

    Raises:
        RoutingError: shapes that do not fit.
    """
    _check(gate, output, target)
    blend = torch.einsum("te,ted->td", gate, output)
    return (target - blend).square().sum(-1).mean()


def competition_loss(gate: Tensor, output: Tensor, target: Tensor) -> Tensor:
    """``sum_i g_i |y - o_i|^2``: the expected error of drawing one expert. Arguments: see ``cooperative_loss``."""
    _check(gate, output, target)
    return (gate * squared_error(output, target)).sum(-1).mean()


def local_experts_nll(log_gate: Tensor, output: Tensor, target: Tensor) -> Tensor:
    """``-log sum_i g_i exp(-|y - o_i|^2 / 2)``, the preferred objective.

    Its gradient with respect to ``o_i`` is ``-h_i (y - o_i)`` (over T), h_i being ``local_experts_posterior``.

    Args:
        log_gate: (T, E) log gate probabilities (``log_softmax`` of the logits). output, target: see
            ``cooperative_loss``.
    """
    _check(log_gate, output, target)
    return mixture_nll(log_gate, -0.5 * squared_error(output, target))


def local_experts_posterior(log_gate: Tensor, output: Tensor, target: Tensor) -> Tensor:
    """(T, E) posterior of each expert under ``local_experts_nll``; rows sum to 1."""
    _check(log_gate, output, target)
    return torch.softmax(log_gate - 0.5 * squared_error(output, target), dim=-1)


def mixture_nll(log_gate: Tensor, log_prob: Tensor) -> Tensor:
    """``-log sum_i g_i(x) p_i(y | x)``: minus the log-likelihood of any mixture of experts.

    Args:
        log_gate: (T, E) log gate probabilities. log_prob: (T, E) log density or mass of y under each expert.
    """
    if log_gate.ndim != 2 or log_gate.shape != log_prob.shape:
        raise RoutingError(
            f"log_gate has shape {tuple(log_gate.shape)}, log_prob {tuple(log_prob.shape)}",
            where="mixture_nll",
            fix="give both as (T, E)",
        )
    return -torch.logsumexp(log_gate + log_prob, dim=-1).mean()


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """(T, E) ``|y - o_i|^2``."""
    return (target[:, None] - output).square().sum(-1)


def _check(gate: Tensor, output: Tensor, target: Tensor) -> None:
    if output.ndim != 3 or gate.shape != output.shape[:2] or target.shape != (output.shape[0], output.shape[2]):
        raise RoutingError(
            f"gate {tuple(gate.shape)}, output {tuple(output.shape)} and target {tuple(target.shape)} do not fit",
            where="local_experts",
            fix="give (T, E), (T, E, D) and (T, D)",
        )
