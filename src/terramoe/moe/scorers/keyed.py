"""Scorers that read a key beside the item: the task, the sensor, the season, a vector of attributes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores, checked_features


class PerKeyScorer(nn.Module):
    """One scorer for each value 0 .. n-1 of an integer key, for example one router per task.

    Sources: Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, 2018, DOI
    10.1145/3219819.3220007; M3ViT, 2022, arXiv 2210.14793.
    """

    def __init__(self, key: str, scorers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.key, self.scorers = key, nn.ModuleList(scorers)
        if not self.scorers:
            raise RoutingError("no scorers were given", where="PerKeyScorer", fix="give one scorer per key value")

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with the key (T,) of integers -> logits (T, E)."""
        value = _index(inp, self.key, len(self.scorers), "PerKeyScorer")
        every = [scorer(inp) for scorer in self.scorers]
        widths = [scores.logits.shape[-1] for scores in every]
        if len(set(widths)) > 1:
            raise RoutingError(
                f"the scorers give {widths} logits", where="PerKeyScorer", fix="build all with as many experts"
            )
        return Scores(*(None if part[0] is None else _pick(part, value) for part in zip(*every, strict=True)))


class EmbeddedKeyScorer(nn.Module):
    """Logits from an embedding of an integer key, alone or beside the item.

    With the key alone all items of a task share their experts, so that a task's sub-network can be cut out (Beyond
    Distillation: Task-level Mixture-of-Experts, 2021, arXiv 2110.03742). With ``dim`` the embedding is appended to
    the item.

    Args:
        key: name of the key, (T,) integers.
        num_values: how many values it has.
        num_experts: E.
        width: width of the embedding.
        dim: channels of the item to look at as well; None looks at the key only.
    """

    def __init__(self, key: str, num_values: int, num_experts: int, *, width: int = 16, dim: int | None = None) -> None:
        super().__init__()
        self.key, self.num_experts, self.dim = key, num_experts, dim
        self.embedding = nn.Embedding(num_values, width)
        self.linear = nn.Linear(width + (dim or 0), num_experts)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with the key (T,) -> logits (T, E)."""
        value = _index(inp, self.key, self.embedding.num_embeddings, "EmbeddedKeyScorer")
        rows = self.embedding(value)
        if self.dim is not None:
            rows = torch.cat([checked_features(inp, self.dim, "EmbeddedKeyScorer"), rows], dim=-1)
        with torch.autocast(rows.device.type, enabled=False):
            dtype = torch.promote_types(rows.dtype, torch.float32)
            weight, bias = self.linear.weight.to(dtype), self.linear.bias.to(dtype)
            return Scores(nn.functional.linear(rows.to(dtype), weight, bias))


class AttributeScorer(nn.Module):
    """Logits from a vector of attributes (sensor, ground sampling distance, season, task ...), not from the item.

    ``attributes -> Linear(D) -> LayerNorm -> Linear(E)``; experts with equal attributes can be merged for inference.
    Source: Uni-Perceiver-MoE, 2022, arXiv 2206.04674.
    """

    def __init__(self, key: str, num_attributes: int, num_experts: int, *, width: int = 32) -> None:
        super().__init__()
        self.key, self.num_attributes, self.num_experts = key, num_attributes, num_experts
        self.encode = nn.Sequential(
            nn.Linear(num_attributes, width), nn.LayerNorm(width), nn.Linear(width, num_experts)
        )

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with the key (T, A) -> logits (T, E)."""
        attributes = inp.key(self.key, "AttributeScorer")
        if attributes.shape[1:] != (self.num_attributes,):
            raise RoutingError(
                f"'{self.key}' has shape {tuple(attributes.shape)}, expected (items, {self.num_attributes})",
                where="AttributeScorer",
                fix="give one row of attributes per item",
            )
        with torch.autocast(attributes.device.type, enabled=False):
            logits = self.encode(attributes.to(self.encode[0].weight.dtype))
            return Scores(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def _index(inp: RouteInput, key: str, size: int, where: str) -> Tensor:
    value = inp.key(key, where).long()
    if value.numel() and not torch.compiler.is_compiling() and not (0 <= int(value.min()) <= int(value.max()) < size):
        raise RoutingError(
            f"'{key}' has values {int(value.min())} to {int(value.max())}", where=where, fix=f"use 0 to {size - 1}"
        )
    return value


def _pick(parts: tuple[Tensor, ...], value: Tensor) -> Tensor:
    """Row t from tensor ``value[t]``."""
    return torch.stack(parts, 1)[torch.arange(value.shape[0], device=value.device), value]
