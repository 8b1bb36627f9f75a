"""Weights of several tasks' losses that are learned: each loss is divided by a variance that has its price.

Multi-Task Learning Using Uncertainty to Weigh Losses, 2018, arXiv 1705.07115, in the form of Auxiliary Tasks in
Multi-task Learning, 2018, arXiv 1805.06334, whose price ln(1 + c^2) keeps the sum positive where ln c would not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError


class UncertaintyWeights(nn.Module):
    """Losses (tasks,) of at least 0 -> their sum, weighed:  sum_t L_t / (2 c_t^2) + ln(1 + c_t^2),  c_t = exp(s_t).

    Starts with c = 1. A task whose loss stays large gets little weight; none gets none.

    Args:
        tasks: how many.

    Raises:
        ConfigError: no task.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        if tasks < 1:
            raise ConfigError(f"{tasks} tasks", where="UncertaintyWeights", fix="use at least 1")
        self.log_scale = nn.Parameter(torch.zeros(tasks))  # s

    def weights(self) -> Tensor:
        """(tasks,) what each loss is multiplied by, 1 / (2 c^2)."""
        return 0.5 * torch.exp(-2 * self.log_scale)

    def forward(self, losses: Tensor) -> Tensor:
        """Losses (tasks,) -> scalar."""
        price = nn.functional.softplus(2 * self.log_scale)  # ln(1 + c^2), for large s too
        return (self.weights() * losses + price).sum()


def least_weighted_loss(losses: Tensor) -> Tensor:
    """The least that ``UncertaintyWeights`` can make of losses (tasks,), where c^2 = (L + (L^2 + 8 L)^0.5) / 4.

    It rises with every loss and knows no learned weight: with it, networks of different weights can be compared.
    """
    variance = (losses + (losses.square() + 8 * losses).sqrt()) / 4
    share = torch.where(losses > 0, losses / (2 * torch.where(losses > 0, variance, 1)), 0)  # 0 / 0 at a loss of 0
    return (share + torch.log1p(variance)).sum()
