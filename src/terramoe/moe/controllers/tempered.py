"""A softmax with a temperature that a schedule may change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe import links


class TemperedLink(nn.Module):
    """softmax(logits / temperature). Low temperatures sharpen towards one expert, high ones flatten.

    Args:
        temperature: above 0; kept in a buffer, and so in the state_dict.
    """

    temperature: Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.set(temperature)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (T, E) -> probabilities (T, E)."""
        return links.softmax(logits / self.temperature.to(logits.dtype))

    @torch.no_grad()
    def set(self, temperature: float) -> None:
        """Change the temperature; RoutingError unless it is finite and above 0."""
        if not 0 < temperature < float("inf"):
            raise RoutingError(
                f"temperature is {temperature}", where="TemperedLink", fix="use a finite temperature above 0"
            )
        self.temperature.fill_(temperature)
