"""Where a band lies in the spectrum, as a vector: what a network needs to read sensors of any bands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError, DataError

_SHORTEST, _LONGEST = 100.0, 40_000.0  # periods in nanometres: some bands wide, and beyond thermal infrared


def encode_wavelengths(nanometres: Tensor, dim: int) -> Tensor:
    """Sines, then cosines of the wavelength at dim / 2 periods from 100 to 40 000 nm, in geometric steps.

    nanometres (...,) -> (..., dim). Source: Attention Is All You Need, 2017, arXiv 1706.03762, with wavelengths for
    positions; the range of periods is ours. ConfigError: ``dim`` odd or below 2.
    """
    if dim < 2 or dim % 2:
        raise ConfigError(f"dim {dim}", where="encode_wavelengths", fix="use an even number, at least 2")
    # in 64 bits: the phase of a short period would lose digits in 32
    period = torch.logspace(math.log10(_SHORTEST), math.log10(_LONGEST), dim // 2, dtype=torch.float64)
    angle = nanometres[..., None] * (2 * math.pi / period.to(nanometres.device))
    return torch.cat([angle.sin(), angle.cos()], -1).to(torch.get_default_dtype())


class WavelengthEmbedding(nn.Module):
    """Bands -> vectors: the encoding of their wavelength, or one learned vector where a band has none.

    Args:
        dim: width D, even.

    Raises:
        ConfigError: an odd width.
        DataError: a wavelength that is negative or not finite.

    Source: SpectralX, 2026 (ISPRS J. 239, 774-792), adds such an encoding to its spectral tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        encode_wavelengths(torch.zeros(1), dim)  # checks dim
        self.dim = dim
        self.none = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, nanometres: Tensor | Sequence[float]) -> Tensor:
        """Wavelengths (bands,) in nanometres, 0 where a band has none -> (bands, D)."""
        nanometres = torch.as_tensor(nanometres, dtype=torch.float64, device=self.none.device)
        if not torch.compiler.is_compiling() and not bool((nanometres.isfinite() & (nanometres >= 0)).all()):
            raise DataError(
                "a wavelength is negative or not finite",
                where="WavelengthEmbedding",
                fix="give nanometres, 0 for a band that has no wavelength",
            )
        encoded = encode_wavelengths(nanometres, self.dim).to(self.none.dtype)
        return torch.where(nanometres[..., None] > 0, encoded, self.none)
