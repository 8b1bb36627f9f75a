"""What a scorer returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Scores(NamedTuple):
    """Logits (T, E); with noise also their mean and standard deviation, which the load objective needs."""

    logits: Tensor
    clean: Tensor | None = None
    noise_std: Tensor | None = None
