"""Normalisation of bands, fitted on training pixels only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from terramoe.errors import ConfigError, SplitError


@dataclass(frozen=True)
class Normaliser:
    """``(image - offset) / scale``, band by band.

    Attributes:
        offset, scale: one number a band.
        kind: how they were found.
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    kind: str

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(bands, ...) -> the same shape, float32."""
        shape = (-1,) + (1,) * (image.ndim - 1)
        offset, scale = (np.asarray(v, dtype=np.float32).reshape(shape) for v in (self.offset, self.scale))
        return (image.astype(np.float32) - offset) / scale


def fit_normaliser(
    image: np.ndarray,
    training_pixels: np.ndarray,
    kind: Literal["standard", "minmax"] = "standard",
    seen: np.ndarray | None = None,
) -> Normaliser:
    """Fit on the pixels that train, and on no others: anything else leaks the test set into the model.

    Args:
        image: (bands, H, W). training_pixels: (H, W) bool.
        kind: "standard" (mean 0, standard deviation 1) or "minmax" (0..1). A constant band gets scale 1.
        seen: (bands, H, W) bool, False where a band's sensor has no data; None where all have. A band that training
            never sees gets offset 0.
    """
    pixels = image[:, training_pixels].astype(np.float64)
    if pixels.shape[1] == 0:
        raise SplitError("no training pixel to fit the normalisation on", where="normaliser", fix="check the split")
    shown = np.ones_like(pixels, dtype=bool) if seen is None else seen[:, training_pixels]
    shown = shown | ~shown.any(axis=1, keepdims=True)  # of a band that is never seen, its zeros
    if kind == "standard":
        offset = pixels.mean(axis=1, where=shown)
        scale = pixels.std(axis=1, where=shown)
    elif kind == "minmax":
        offset = pixels.min(axis=1, where=shown, initial=np.inf)
        scale = pixels.max(axis=1, where=shown, initial=-np.inf) - offset
    else:
        raise ConfigError(f"normalisation '{kind}'", where="normaliser", fix="use 'standard' or 'minmax'")
    scale = np.where(scale > 0, scale, 1.0)
    return Normaliser(tuple(offset.astype(np.float32).tolist()), tuple(scale.astype(np.float32).tolist()), kind)
