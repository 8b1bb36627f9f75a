"""Local texture of an image with gaps: how much it varies, scale by scale, around each pixel.

The features on which the gate over Kalman smoothers decides: where the detail grows fast with the scale, the surface
is smooth. A fractal dimension is the slope of the same numbers over the scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from terramoe.errors import DataError
from terramoe.mixtures.quad_tree import Observation, spread
from terramoe.mixtures.scaling import Scaling

POOL = 4  # a window of this many details at each scale gives one energy


def detail_energy(values: np.ndarray, scales: int) -> np.ndarray:
    """Log energy of the detail at ``scales`` dyadic scales: (H, W) with NaN for gaps -> (H, W, scales).

    The detail at scale j is the mean over 2 ** j pixels less the mean over 2 ** (j + 1); its square is averaged over
    ``POOL`` times the larger window. Means run over what is there; without any pixel the energy is that of the whole
    image. The unit of the image only shifts all features.
    """
    seen = ~np.isnan(values)
    share = seen.astype(float)
    filled = np.where(seen, values, 0.0)
    fine, features = filled, []
    for scale in range(scales):
        window = 2 ** (scale + 1)
        coarse = _local_mean(filled, share, window)
        energy = _local_mean(share * (fine - coarse) ** 2, share, POOL * window)
        features.append(energy)
        fine = coarse
    energy = np.stack(features, axis=-1)
    rounding = (1e-12 * np.abs(filled).max()) ** 2  # a plain has no texture, whatever its height
    floor = max(1e-9 * float(energy.max()), rounding, np.finfo(float).tiny)
    return np.log(np.maximum(energy, floor))


def texture_of(observation: Observation, shape: tuple[int, int], scales: int) -> np.ndarray:
    """(H, W, scales) of the leaves (H, W) of a quad-tree, from one observation of any scale.

    Raises:
        DataError: an observation without a value.
    """
    if not observation.seen.any():
        raise DataError("no value to take texture from", where="observation", fix="name a sensor that saw the scene")
    energy = detail_energy(observation.value, scales).transpose(2, 0, 1)
    return spread(energy, observation.scale).transpose(1, 2, 0)[: shape[0], : shape[1]]


@dataclass(frozen=True)
class TextureDesign:
    """What a softmax gate reads of texture: the energies, standardised, and their squares. With squares, the middle of
    a range can go to an expert of its own; squared after the mean is gone, they do not depend on the unit.

    Attributes:
        low, high: (scales,) range of the energies at fit; what lies outside is moved to its edge, because a quadratic
            gate means nothing there.
        scaling: of the energies.
    """

    low: np.ndarray
    high: np.ndarray
    scaling: Scaling

    @classmethod
    def of(cls, texture: np.ndarray) -> TextureDesign:
        """From the energies (n, scales) at fit."""
        return cls(texture.min(axis=0), texture.max(axis=0), Scaling.of(texture, np.ones(len(texture))))

    def apply(self, texture: np.ndarray) -> np.ndarray:
        """(n, scales) -> (n, 2 scales)."""
        scaled = self.scaling.apply(np.clip(texture, self.low, self.high))
        return np.hstack([scaled, scaled**2])


def _local_mean(values: np.ndarray, share: np.ndarray, window: int) -> np.ndarray:
    """Mean over square windows of the pixels that are there, (H, W); of the whole image where there is none.

    ``values`` is 0 in gaps.
    """
    total, weight = (uniform_filter(part, window, mode="constant") for part in (values * share, share))
    overall = values.sum() / max(share.sum(), 1.0)
    near = weight > 0.5 / window**2  # uniform_filter's running sums leave traces of rounding
    return np.where(near, total / np.where(near, weight, 1.0), overall)
