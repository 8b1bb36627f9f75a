"""Attention in which one set of tokens reads another: between two sensors, or from the class token to all tokens.

Tokens are (B, T, D), masks (B, T) bool; a masked token is read by nobody and comes out as 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import ConfigError


class CrossAttention(nn.Module):
    """What tokens read in a context, both normalised first; without residual.

    Args:
        dim: channels D of tokens and context.
        heads: must divide ``dim``.

    Raises:
        ConfigError: heads that do not divide the channels.

    Source: Attention Is All You Need, 2017, arXiv 1706.03762.
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        if min(dim, heads) < 1 or dim % heads:
            raise ConfigError(
                f"{heads} heads over {dim} channels", where="CrossAttention", fix="use heads that divide the channels"
            )
        self.heads = heads
        self.query_norm, self.context_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.leave = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, T, D), context (B, S, D), valid (B, S) bool of the context -> (B, T, D); 0 without a valid token."""
        key, value = self.key_value(self.context_norm(context)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        query = self.query(self.query_norm(x)).unflatten(-1, (self.heads, -1))
        seen = None
        if valid is not None:  # the softmax over no token is NaN: let such a row read all, and drop what it read
            seen = (valid | ~valid.any(1, keepdim=True))[:, None, None]
        read = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), seen)
        y = self.leave(read.transpose(1, 2).flatten(2))
        return y if valid is None else torch.where(valid.any(1)[:, None, None], y, 0)


class BidirectionalCrossAttention(nn.Module):
    """Two sets of tokens that read each other, at once: ``a + read(a from b)``, ``b + read(b from a)``.

    The two directions have weights of their own. A sample whose one set is fully masked keeps the other as it is, so a
    missing sensor harms nothing.

    Args:
        dim, heads: as in ``CrossAttention``.

    Source: the modality-guided complementary module of AMoFE as the survey describes it; reconstruction: pre-norm, no
    shared weights.
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.a_from_b, self.b_from_a = CrossAttention(dim, heads), CrossAttention(dim, heads)

    def forward(
        self, a: Tensor, b: Tensor, a_valid: Tensor | None = None, b_valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """a (B, S, D), b (B, T, D), masks (B, S) and (B, T) bool or None -> the same shapes."""
        a, b = _clear(a, a_valid), _clear(b, b_valid)
        return _clear(a + self.a_from_b(a, b, b_valid), a_valid), _clear(b + self.b_from_a(b, a, a_valid), b_valid)


class ClassAttention(nn.Module):
    """The class token, which is the first, reads all tokens; what it read is added to every token.

    The cost grows with T, not its square. Source: Multimodal Fusion Transformer for Remote Sensing Image
    Classification, 2023, arXiv 2203.16952.

    Args:
        dim, heads: as in ``CrossAttention``.
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.attention = CrossAttention(dim, heads)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, T, D), valid (B, T) bool or None -> (B, T, D). Mask other tokens than the class token."""
        x = _clear(x, valid)
        return _clear(x + self.attention(x[:, :1], x, valid), valid)


def _clear(x: Tensor, valid: Tensor | None) -> Tensor:
    """0 where invalid: a masked token may hold NaN, and 0 * NaN is not 0."""
    return x if valid is None else torch.where(valid[..., None], x, 0)
