"""A state-space layer that reads a window along one direction."""

from __future__ import annotations

from torch import Tensor, nn

from terramoe.nets.selective_scan import SelectiveScan

DIRECTIONS = ("rows", "columns", "rows reversed", "columns reversed")


def unroll(x: Tensor, direction: str) -> Tensor:
    """(T, h, w, C) -> (h * w, T, C): the window's pixels in the order of the direction."""
    if direction.startswith("columns"):
        x = x.transpose(1, 2)
    sequence = x.flatten(1, 2).transpose(0, 1)
    return sequence.flip(0) if direction.endswith("reversed") else sequence


def roll(sequence: Tensor, direction: str, height: int, width: int) -> Tensor:
    """(h * w, T, C) -> (T, h, w, C): the inverse of ``unroll``, so that every value returns to its own pixel."""
    if direction.endswith("reversed"):
        sequence = sequence.flip(0)
    x = sequence.transpose(0, 1)
    if direction.startswith("columns"):
        return x.unflatten(1, (width, height)).transpose(1, 2)
    return x.unflatten(1, (height, width))


class DirectionalSSM(nn.Module):
    """Selective scan of a window in one of four directions, after a depth-wise convolution, with a gate.

    Args:
        dim: channels C in and out.
        inner: width of the scan.
        state: state size per channel.
        direction: one of ``DIRECTIONS``.
    """

    def __init__(self, dim: int, inner: int, state: int, direction: str) -> None:
        super().__init__()
        self.direction, self.inner = direction, inner
        self.enter = nn.Linear(dim, 2 * inner)
        self.local = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scan = SelectiveScan(inner, state)
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.leave = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(T, h, w, C) -> (T, h, w, C)."""
        height, width = x.shape[1:3]
        x, gate = self.enter(x).chunk(2, dim=-1)
        x = nn.functional.silu(self.local(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        y = roll(self.scan(unroll(x, self.direction)), self.direction, height, width)
        return self.leave(self.norm(y) * nn.functional.silu(gate))


class SpectralSSM(nn.Module):
    """Scans the channels of each pixel in both orders; the weights are shared by all pixels.

    Args:
        dim: channels C in and out.
        tokens: pieces that the channels are cut into; the length of the sequence. Must divide ``dim``.
        state: state size per channel.
    """

    def __init__(self, dim: int, tokens: int, state: int) -> None:
        super().__init__()
        self.tokens = tokens
        inner = dim // tokens
        self.enter = nn.Linear(inner, 2 * inner)
        self.forward_scan = SelectiveScan(inner, state)
        self.reverse_scan = SelectiveScan(inner, state)
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.leave = nn.Linear(inner, inner)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        # (tokens, pixels, C / tokens)
        sequence = x.reshape(-1, self.tokens, x.shape[-1] // self.tokens).transpose(0, 1)
        u, gate = self.enter(sequence).chunk(2, dim=-1)
        u = nn.functional.silu(u)
        y = self.forward_scan(u) + self.reverse_scan(u.flip(0)).flip(0)
        y = self.leave(self.norm(y) * nn.functional.silu(gate))
        return y.transpose(0, 1).reshape(x.shape)
