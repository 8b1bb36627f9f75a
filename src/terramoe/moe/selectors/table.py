"""Selectors that compute the expert instead of learning it: a table by key, and hashing of the item itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput
from terramoe.moe.selectors.pairs import Pairs, pairs_from_choices


class Table(nn.Module):
    """The expert is looked up by an integer key: a tile, a band, a sensor, a token id.

    ``Table.balanced`` deals keys so that the loads are even, ``Table.random`` draws them with a seed; both are the
    same in every process. Source: Hash Layers for Large Sparse Models, 2021, arXiv 2106.04426.

    Args:
        key: name of the key, (T,) integers.
        experts: (values,) or (values, k) expert of each key value; with k columns the first is rank 0.
    """

    needs = "order"
    couples_items = False

    def __init__(self, key: str, experts: Tensor | Sequence[int]) -> None:
        super().__init__()
        table = torch.as_tensor(experts, dtype=torch.int64)
        self.key = key
        self.register_buffer("table", table[:, None] if table.ndim == 1 else table)

    @classmethod
    def random(cls, key: str, num_values: int, num_experts: int, *, seed: int = 0) -> Table:
        """Each value gets a random expert."""
        generator = torch.Generator().manual_seed(seed)
        return cls(key, torch.randint(num_experts, (num_values,), generator=generator))

    @classmethod
    def balanced(cls, key: str, frequency: Sequence[float], num_experts: int) -> Table:
        """Values from the most to the least frequent, each to the expert with the least load so far."""
        load, experts = [0.0] * num_experts, [0] * len(frequency)
        for value in sorted(range(len(frequency)), key=lambda v: (-frequency[v], v)):
            expert = min(range(num_experts), key=load.__getitem__)
            experts[value], load[expert] = expert, load[expert] + frequency[value]
        return cls(key, experts)

    def forward(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E), of which only the shape is used, and the key (T,) -> pairs."""
        value = inp.key(self.key, "selector Table").long()
        self._check(value, choice.shape[1])
        return pairs_from_choices(self.table[value], inp.mask)

    def _check(self, value: Tensor, experts: int) -> None:
        if torch.compiler.is_compiling():  # a traced graph cannot raise on values
            return
        if value.numel() and not 0 <= int(value.min()) <= int(value.max()) < self.table.shape[0]:
            raise RoutingError(
                f"'{self.key}' has values {int(value.min())} to {int(value.max())}",
                where="selector Table",
                fix=f"use 0 to {self.table.shape[0] - 1}, or build a larger table",
            )
        wrong = self.table[(self.table < 0) | (self.table >= experts)]
        if wrong.numel():
            raise RoutingError(
                f"the table names expert {int(wrong[0])} of {experts}",
                where="selector Table",
                fix="build it with the layer's number of experts",
            )


class HashedItem(nn.Module):
    """The expert is a locality-sensitive hash of the item: near items share it, nothing is learned.

    Reconstruction: bucket = sum_b 2^b [r_b . x > 0] mod E with fixed Gaussian directions; HetuMoE, 2022, arXiv
    2203.14685, names an LSH gate without its formula.
    """

    needs = "order"
    couples_items = False

    def __init__(self, dim: int, *, bits: int = 8, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("directions", torch.randn(bits, dim, generator=generator))

    def forward(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E), of which only the shape is used -> one expert per item."""
        x = inp.features()
        if x.shape[-1] != self.directions.shape[1]:
            raise RoutingError(
                f"items have {x.shape[-1]} channels, the hash expects {self.directions.shape[1]}",
                where="selector HashedItem",
                fix="build it with the width of its input",
            )
        bits = (x @ self.directions.T.to(x.dtype) > 0).long()
        bucket = (bits * 2 ** torch.arange(bits.shape[1], device=bits.device)).sum(-1)  # ONNX cannot shift int64
        return pairs_from_choices((bucket % choice.shape[1])[:, None], inp.mask)
