"""Ways to fuse the features of two sensors, each usable as an expert, and a router that sees both.

A pair is ``torch.stack([a, b], dim=1)``: (T, 2, ..., D), channels last as everywhere in ``terramoe.moe``, so a pair
of vectors is (T, 2, D) and a pair of maps (T, 2, H, W, D). Every operator gives (T, ..., D_out) and works place by
place: an invalid pixel harms only itself, and what stands there afterwards is for the caller to drop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError, RoutingError
from terramoe.moe import ModuleBank, RouteInput, Scores
from terramoe.nets.cross_attention import BidirectionalCrossAttention


class ConcatFusion(nn.Module):
    """``W [a; b]``: concatenation and a 1 x 1 convolution."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.leave = nn.Linear(2 * dim, dim_out)

    def forward(self, pair: Tensor) -> Tensor:
        """(T, 2, ..., D) -> (T, ..., D_out)."""
        return self.leave(torch.cat(_split(pair), -1))


class SumFusion(nn.Module):
    """``W (a + b)``."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.leave = nn.Linear(dim, dim_out)

    def forward(self, pair: Tensor) -> Tensor:
        """(T, 2, ..., D) -> (T, ..., D_out)."""
        a, b = _split(pair)
        return self.leave(a + b)


class ProductFusion(nn.Module):
    """``W (a * b)``, the Hadamard product: it tells what neither sensor tells alone (an exclusive or)."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.leave = nn.Linear(dim, dim_out)

    def forward(self, pair: Tensor) -> Tensor:
        """(T, 2, ..., D) -> (T, ..., D_out)."""
        a, b = _split(pair)
        return self.leave(a * b)


class GatedFusion(nn.Module):
    """``W (g a + (1 - g) b)`` with ``g = sigmoid(W_g [a; b])`` per channel.

    Source: Gated Multimodal Units for Information Fusion, 2017, arXiv 1702.01992.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.gate, self.leave = nn.Linear(2 * dim, dim), nn.Linear(dim, dim_out)

    def forward(self, pair: Tensor) -> Tensor:
        """(T, 2, ..., D) -> (T, ..., D_out)."""
        a, b = _split(pair)
        return self.leave(torch.lerp(b, a, torch.sigmoid(self.gate(torch.cat([a, b], -1)))))


class AttentionFusion(nn.Module):
    """``W (a' + b')`` after cross-attention in both directions between groups of channels, at each place alone.

    One vector per sensor leaves nothing to attend to, so the channels are cut into ``groups`` tokens, each with a
    learned code of its place. Ours.
    """

    def __init__(self, dim: int, dim_out: int, groups: int = 4) -> None:
        super().__init__()
        if groups < 1 or dim % groups or dim // groups < 2:  # the norm of a single channel is 0
            raise ConfigError(
                f"{groups} groups over {dim} channels",
                where="AttentionFusion",
                fix="use groups that divide the channels and hold at least 2 of them, better 4 or more",
            )
        self.groups = groups
        self.place = nn.Parameter(torch.randn(groups, dim // groups))  # as an nn.Embedding starts
        self.attention = BidirectionalCrossAttention(dim // groups, heads=1)
        self.leave = nn.Linear(dim, dim_out)

    def forward(self, pair: Tensor) -> Tensor:
        """(T, 2, ..., D) -> (T, ..., D_out)."""
        a, b = _split(pair)
        tokens = (side.reshape(-1, self.groups, self.place.shape[1]) + self.place for side in (a, b))
        fused = torch.add(*self.attention(*tokens))
        return self.leave(fused.view(a.shape))


class BilinearFusion(nn.Module):
    """``W (U a * V b)``: all products of a channel of a and one of b, through rank ``rank``.

    Source: Hadamard Product for Low-rank Bilinear Pooling, 2016, arXiv 1610.04325 (without its tanh).
    """

    def __init__(self, dim: int, dim_out: int, rank: int | None = None) -> None:
        super().__init__()
        rank = dim if rank is None else rank
        self.enter_a, self.enter_b = nn.Linear(dim, rank), nn.Linear(dim, rank)
        self.leave = nn.Linear(rank, dim_out)

    def forward(self, pair: Tensor) -> Tensor:
        """(T, 2, ..., D) -> (T, ..., D_out)."""
        a, b = _split(pair)
        return self.leave(self.enter_a(a) * self.enter_b(b))


FUSIONS: dict[str, type[nn.Module]] = {
    "concat": ConcatFusion,
    "sum": SumFusion,
    "product": ProductFusion,
    "gated": GatedFusion,
    "attention": AttentionFusion,
    "bilinear": BilinearFusion,
}


def fusion_bank(dim: int, dim_out: int | None = None, names: Iterable[str] = tuple(FUSIONS)) -> ModuleBank:
    """A bank of fusion operators, one expert for each name; ConfigError for an unknown one.

    Source: the mixture of fusion strategies of CPLP-DMoEs, 2025, DOI 10.1109/TGRS.2025.3543498. Reconstruction: its
    abstract names no operators, the six are ours.
    """
    names = tuple(names)
    unknown = [name for name in names if name not in FUSIONS]
    if unknown:
        raise ConfigError(f"no fusion {unknown}", where="fusion_bank", fix=f"use some of {', '.join(FUSIONS)}")
    return ModuleBank(FUSIONS[name](dim, dim if dim_out is None else dim_out) for name in names)


class PairScorer(nn.Module):
    """Lets any scorer of width 2 D see a pair as [mean of a; mean of b]; a plain one would see the mean of both.

    Args:
        scorer: for example ``LinearScorer(2 * D, E)``.
    """

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with pairs (T, 2, ..., D), and keys["valid"] (T, ...) of the pixels to average, if any."""
        return self.scorer(replace(inp, x=pool_pair(inp.x, inp.keys.get("valid"))))


def pool_pair(pair: Tensor, valid: Tensor | None = None) -> Tensor:
    """Pairs (T, 2, ..., D), valid (T, ...) bool or None -> (T, 2 D): means over valid places, 0 without any."""
    _split(pair)
    places = pair.flatten(2, -2) if pair.ndim > 3 else pair[:, :, None]  # (T, 2, places, D)
    if valid is None:
        return places.mean(2).flatten(1)
    keep = valid.reshape(pair.shape[0], 1, -1, 1)
    return (torch.where(keep, places, 0).sum(2) / keep.sum(2).clamp_min(1)).flatten(1)


def _split(pair: Tensor) -> tuple[Tensor, Tensor]:
    """The two sides (T, ..., D) of a pair; RoutingError for anything else."""
    if pair.ndim < 3 or pair.shape[1] != 2:
        raise RoutingError(
            f"items have shape {tuple(pair.shape)}, expected (items, 2, ..., channels)",
            where="fusion operator",
            fix="stack the features of the two sensors along dimension 1, channels last",
        )
    return pair.unbind(1)
