"""Random fields, the raw material of every map: periodic, of mean 0 and variance 1, and reproducible by name."""

from __future__ import annotations

import zlib

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree


def stream(seed: int, *names: object) -> np.random.Generator:
    """A generator of its own for each name, so that switching one law off leaves the draws of all others alone."""
    return np.random.default_rng([seed, zlib.crc32("/".join(map(str, names)).encode())])


def rough_field(size: int, exponent: float, generator: np.random.Generator) -> np.ndarray:
    """(size, size) Gaussian field whose power falls as frequency ** -exponent: terrain, clouds.

    A surface of roughness (Hurst exponent) H has exponent 2 H + 2.
    """
    noise = np.fft.rfft2(generator.standard_normal((size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf  # takes the mean out
    field = np.fft.irfft2(noise * frequency ** (-exponent / 2), s=(size, size))
    return field / field.std()


def smooth_field(size: int, length: float, generator: np.random.Generator) -> np.ndarray:
    """(size, size) Gaussian field with structures of about ``length`` pixels: patches of land cover, texture."""
    field = gaussian_filter(generator.standard_normal((size, size)), length, mode="wrap")
    field -= field.mean()
    return field / field.std()


def cells(size: int, count: int, generator: np.random.Generator, rounds: int = 0) -> np.ndarray:
    """(size, size) int64 ids 0..count-1: the nearest of ``count`` random points: parcels, regions, buildings.

    Each round moves the points to the centres of their cells, which evens out the areas (Lloyd's algorithm).
    """
    pixels = np.indices((size, size)).reshape(2, -1).T
    points = generator.uniform(0, size, (count, 2))
    for _ in range(rounds):
        ids = cKDTree(points).query(pixels)[1]
        area = np.maximum(np.bincount(ids, minlength=count), 1)
        points = np.stack([np.bincount(ids, axis, minlength=count) / area for axis in pixels.T], axis=1)
    return cKDTree(points).query(pixels)[1].reshape(size, size)
