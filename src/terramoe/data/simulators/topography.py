"""Two elevation sensors over given terrain: radar interferometry, coarse and noisy, and airborne laser, fine with gaps.

The radar's height error follows from the coherence of its two images: the phase variance is the Cramer-Rao bound of
Theory and Design of Interferometric Synthetic Aperture Radars, 1992, DOI 10.1049/ip-f-2.1992.0018, and the loss of
coherence on slopes the spectral shift of Decorrelation in Interferometric Radar Echoes, 1992, DOI 10.1109/36.175330.
Fusing the two: Combining Interferometric Radar and Laser Altimeter Data to Improve Estimates of Topography, 2000,
DOI 10.1109/IGARSS.2000.857989. The heights are those of the ground: the canopy takes coherence and returns, but adds
no height of its own.

Heights and pixels are in metres; rows run south, columns east. Both sensors give the mean height of the ground in a
pixel plus a normal error of just the variance they report, so that a filter is told the truth about the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from terramoe.data.simulators.limits import between, count, positive
from terramoe.data.worlds.fields import stream
from terramoe.data.worlds.terrain import slope_aspect
from terramoe.errors import DataError

HIGHEST = 1e5  # metres: no height or depth on a planet is larger
COARSEST = 16  # levels above the ground's own pixels
LEAST_PIXELS = 2  # along a side: a slope needs two


@dataclass(frozen=True)
class ElevationMap:
    """What one sensor measured.

    Attributes:
        value: (h, w) heights in metres, NaN in gaps.
        variance: (h, w) of their error, in square metres; finite in gaps, too.
        scale: one pixel is 2 ** scale pixels of the ground wide.
    """

    value: np.ndarray
    variance: np.ndarray
    scale: int


@dataclass(frozen=True)
class RadarPair:
    """An interferometric pair, looking east.

    Attributes:
        scale: one pixel covers 2 ** scale pixels of the ground in each direction, averaged.
        incidence: degrees from the vertical.
        ambiguity: metres of height per full turn of the phase.
        looks: independent samples averaged in one pixel.
        flat_coherence: over flat bare ground, above 0 and below 1.
        baseline: as a share of the critical baseline over flat ground; what slopes toward the radar lose grows with it.
        canopy_loss: share of the coherence lost under full vegetation.
        least_coherence: below it there is no height.
    """

    scale: int = 1
    incidence: float = 35.0
    ambiguity: float = 60.0
    looks: float = 2.0
    flat_coherence: float = 0.8
    baseline: float = 0.1
    canopy_loss: float = 0.5
    least_coherence: float = 0.2


@dataclass(frozen=True)
class LaserScan:
    """An airborne laser survey in flight lines that run north to south.

    Attributes:
        noise: metres, standard deviation of the height over flat ground.
        position_noise: metres, standard deviation of the place; on slopes it becomes an error of height.
        share: of the pixels of bare ground under the lines that have a return.
        canopy_loss: share of these returns that do not reach the ground under full vegetation.
        swath, gap: pixels, width of a line and of what is left out between two; a gap of 0 is full cover.
    """

    noise: float = 0.15
    position_noise: float = 0.3
    share: float = 0.5
    canopy_loss: float = 0.8
    swath: int = 48
    gap: int = 32


def radar_heights(
    heights: np.ndarray, pixel: float, pair: RadarPair, seed: int, vegetation: ArrayLike = 0.0
) -> ElevationMap:
    """Block means of the ground (H, W) as an interferometer measures them: (ceil(H / 2 ** scale), ...).

    Args:
        heights: (H, W) metres, finite.
        pixel: metres between neighbours.
        pair: the instrument.
        seed: of the errors.
        vegetation: cover, 0 to 1, one number or (H, W).

    Raises:
        DataError: heights that are no finite image. ConfigError: an impossible instrument, pixel or cover.
    """
    count(seed, "seed", "radar_heights", low=0)
    ground, cover = _ground(heights, pixel, vegetation)
    coherence = radar_coherence(ground, pixel, pair, cover)
    looks, ambiguity = positive(pair.looks, "looks", "RadarPair"), positive(pair.ambiguity, "ambiguity", "RadarPair")
    least = between(pair.least_coherence, 1e-3, 1, "least_coherence", "RadarPair")
    mean, coherence = (_block_mean(part, pair.scale) for part in (ground, coherence))
    seen = coherence >= least
    variance = (ambiguity / (2 * np.pi)) ** 2 * phase_variance(np.maximum(coherence, least), float(looks))
    error = np.sqrt(variance) * stream(seed, "radar", "error").standard_normal(mean.shape)
    return ElevationMap(np.where(seen, mean + error, np.nan), variance, pair.scale)


def phase_variance(coherence: ArrayLike, looks: float) -> np.ndarray:
    """Square radians: ``(1 - c ** 2) / (2 looks c ** 2)``, for coherence c above 0."""
    square = np.asarray(coherence, dtype=float) ** 2
    return (1 - square) / (2 * looks * square)


def radar_coherence(heights: np.ndarray, pixel: float, pair: RadarPair, vegetation: ArrayLike = 0.0) -> np.ndarray:
    """(H, W) coherence: flat ground's, less what vegetation takes, less what slopes take.

    Slopes toward the radar stretch the shift of the spectra from the two antennas, ``baseline tan(i) / tan(i - a)``
    for incidence i and slope a; where the ground folds over (a >= i) or lies in shadow nothing is left.
    Errors as ``radar_heights``.
    """
    ground, cover = _ground(heights, pixel, vegetation)
    between(count(pair.scale, "scale", "RadarPair", low=0), 0, COARSEST, "scale", "RadarPair")
    incidence = np.radians(between(pair.incidence, 5, 85, "incidence", "RadarPair"))
    flat = between(pair.flat_coherence, 1e-3, 1 - 1e-6, "flat_coherence", "RadarPair")
    baseline = between(pair.baseline, 0, 1, "baseline", "RadarPair")
    loss = between(pair.canopy_loss, 0, 1, "canopy_loss", "RadarPair")
    slope, aspect = slope_aspect(ground, pixel)
    toward = np.arctan(-np.tan(slope) * np.sin(aspect))  # rising eastwards, away from the antenna, faces it
    local = incidence - toward
    visible = (local > 0) & (local < np.pi / 2)
    shift = baseline * np.tan(incidence) / np.tan(np.where(visible, local, incidence))
    excess = np.maximum(shift - baseline, 0)  # flat ground's own loss is part of flat_coherence
    return np.where(visible, flat * np.maximum(1 - excess, 0) * (1 - loss * cover), 0.0)


def laser_heights(
    heights: np.ndarray, pixel: float, scan: LaserScan, seed: int, vegetation: ArrayLike = 0.0
) -> ElevationMap:
    """The ground (H, W) where a laser pulse met it, NaN elsewhere. Arguments and errors as ``radar_heights``."""
    count(seed, "seed", "laser_heights", low=0)
    ground, cover = _ground(heights, pixel, vegetation)
    noise = positive(scan.noise, "noise", "LaserScan")
    place = between(scan.position_noise, 0, 1e3, "position_noise", "LaserScan")
    share = between(scan.share, 0, 1, "share", "LaserScan")
    loss = between(scan.canopy_loss, 0, 1, "canopy_loss", "LaserScan")
    swath, gap = count(scan.swath, "swath", "LaserScan"), count(scan.gap, "gap", "LaserScan", low=0)
    slope, _ = slope_aspect(ground, pixel)
    variance = noise**2 + (place * np.tan(slope)) ** 2
    start = stream(seed, "laser", "lines").integers(swath + gap)
    flown = (np.arange(ground.shape[1]) + start) % (swath + gap) < swath
    hit = stream(seed, "laser", "returns").random(ground.shape) < share * (1 - loss * cover)
    error = np.sqrt(variance) * stream(seed, "laser", "error").standard_normal(ground.shape)
    return ElevationMap(np.where(hit & flown, ground + error, np.nan), variance, 0)


def _ground(heights: np.ndarray, pixel: float, vegetation: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Heights and cover as (H, W) float64, checked."""
    positive(pixel, "pixel", "topography")
    try:
        ground = np.asarray(heights, dtype=np.float64)
    except (TypeError, ValueError):
        ground = np.empty(0)
    if ground.ndim != 2 or min(ground.shape) < LEAST_PIXELS:
        fix = f"give an (H, W) array of at least {LEAST_PIXELS} x {LEAST_PIXELS} numbers"
        raise DataError("heights are no image of numbers", where="topography", fix=fix)
    if not (np.abs(ground) <= HIGHEST).all():
        raise DataError("heights hold NaN, or are no heights in metres", where="topography", fix="fill or crop gaps")
    cover = between(vegetation, 0, 1, "vegetation", "topography")
    if cover.shape not in ((), ground.shape):
        raise DataError(
            f"vegetation {cover.shape} over heights {ground.shape}", where="topography", fix="give one number or (H, W)"
        )
    return ground, np.broadcast_to(cover, ground.shape)


def _block_mean(values: np.ndarray, scale: int) -> np.ndarray:
    """(H, W) -> (ceil(H / 2 ** scale), ceil(W / 2 ** scale)): means over blocks, the last of what there is."""
    side = 2**scale
    height, width = values.shape
    rows, columns = (np.arange(0, length, side) for length in (height, width))
    total = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    tall = np.minimum(side, height - rows)
    wide = np.minimum(side, width - columns)
    return total / np.outer(tall, wide)
