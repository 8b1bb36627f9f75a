"""Speckle: the multiplicative noise of radar intensity.

Fully developed speckle of one look is exponential; the mean of L independent looks follows a gamma law of mean 1 and
variance 1/L: Some fundamental properties of speckle, 1976, doi:10.1364/JOSA.66.001145. More looks, less noise: code
that takes L for the variance has it upside down.
"""

from __future__ import annotations

import numpy as np

from terramoe.errors import ConfigError


def speckle(shape: tuple[int, ...], looks: float, generator: np.random.Generator) -> np.ndarray:
    """Factors of ``shape`` for intensities (powers, not decibels); ConfigError unless ``looks`` is above 0.

    The equivalent number of looks need not be whole: Sentinel-1's ground range product has 4.4.
    """
    if not looks > 0:
        raise ConfigError(f"{looks} looks", where="speckle", fix="use a number above 0, such as 4")
    return generator.gamma(looks, 1 / looks, shape)


def decibel(power: np.ndarray) -> np.ndarray:
    """10 log10, where speckle becomes additive and of equal spread everywhere; powers below 1e-6 count as 1e-6."""
    return 10 * np.log10(np.maximum(power, 1e-6))


def power(decibels: float | np.ndarray) -> np.ndarray:
    """The inverse of ``decibel``."""
    return 10 ** (np.asarray(decibels) / 10)
