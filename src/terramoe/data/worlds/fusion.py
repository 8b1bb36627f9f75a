"""Simulated two-sensor scenes for claims on fusion: only where it is planted which sensor knows what, can it be checked
that a model asks the right one.

Spectra are the hand-drawn stand-ins of ``spectra``; nothing here is measured. All is made of ``fields.stream``: a seed
makes one scene, and every draw has a name of its own.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.special import ndtr

from terramoe.data.scenes import Scene
from terramoe.data.worlds.fields import cells, smooth_field, stream
from terramoe.data.worlds.responses import integrate
from terramoe.data.worlds.satellites import COMMON, SATELLITES
from terramoe.data.worlds.sensors import Band, area_mean, point_spread
from terramoe.data.worlds.spectra import band_reflectance, stand_ins
from terramoe.errors import ConfigError

SMALLEST = 48  # pixels
XOR_CLASSES = (
    "grass",
    "wheat",
    "low canopy",
    "high canopy",
    "low rock or high roof",
    "high rock or low roof",
)
XOR_MATERIALS = (("grass", "wheat"), ("broadleaf", "soybean"), ("rock", "roofs"))  # of each pair: bit 0, bit 1
XOR_BANDS = np.linspace(420.0, 2400.0, 32)
LOW, HIGH, HEIGHT_SPREAD = 3.0, 9.0, 1.0  # metres
MIXED = 0.2  # largest share of soil in a pixel

SPECTRAL, TEXTURED, THIN = range(3)
REGIME_CLASSES = ("crop a", "crop b", "crop c", "stripes along rows", "stripes along columns", "open ground", "track")
COARSE = 4  # pixels: what one pixel of the hyperspectral sensor covers
REGIME_BANDS = np.linspace(430.0, 980.0, 24)
SIGNATURE = 0.012  # reflectance: standard deviation over the bands of what tells one crop from another
CONTRAST = 0.25  # of stripes and tracks, relative
UNEVEN = 0.25  # standard deviation of the brightness of open ground, relative
LANES = 100  # pixels: area of the parcels that a track crosses


def xor_fusion(size: int, seed: int = 0, *, noise: float = 0.004) -> Scene:
    """A hyperspectral image (32 bands) and heights (1 band): three pairs of classes.

    Each pixel has two hidden bits, drawn independently over parcels: which of two spectra, and low or high. The first
    pair of classes differs by the first bit only, the second by the second only, the third by their XOR. Each class
    so has either spectrum and either height unless its pair says otherwise: a sum of the two sensors' votes settles
    the first two pairs, the third takes their product. Where a pixel's pair comes from is in its spectrum.

    Pixels mix linearly at borders and with soil. Completion of the test in the survey of CPLP-DMoEs, 2025,
    doi:10.1109/TGRS.2025.3543498: numbers are ours.

    Args:
        size: side in pixels. noise: standard deviation as reflectance; heights have theirs (HEIGHT_SPREAD).

    Raises:
        ConfigError: size below 48.
    """
    _check(size, "xor_fusion")
    pair, first, second = (
        _parcels(size, of, area, stream(seed, "xor", name))
        for name, of, area in (("pair", 3, 150), ("first", 2, 80), ("second", 2, 80))
    )
    bit = np.choose(pair, (first, second, first ^ second))
    materials = _band_values([name for both in XOR_MATERIALS for name in both], XOR_BANDS)
    spectra = materials[:, 2 * pair + first]  # (bands, H, W)
    soil = _band_values(["dark soil"], XOR_BANDS)[:, :, None]
    share = MIXED * ndtr(smooth_field(size, 3.0, stream(seed, "xor", "soil")))  # evenly from 0 to MIXED
    light = 1 + 0.05 * smooth_field(size, 6.0, stream(seed, "xor", "light"))
    hsi = light * point_spread((1 - share) * spectra + share * soil, 1.0)
    hsi = hsi + noise * stream(seed, "xor", "noise").standard_normal(hsi.shape)
    height = np.where(second == 1, HIGH, LOW) + HEIGHT_SPREAD * stream(seed, "xor", "height").standard_normal(
        pair.shape
    )
    return _scene(
        f"XOR of spectrum and height, seed {seed}",
        np.concatenate([hsi, height[None]]),
        2 * pair + bit + 1,
        XOR_CLASSES,
        (("hsi", len(XOR_BANDS)), ("lidar", 1)),
        (*XOR_BANDS.tolist(), 0.0),
    )


def three_regimes(size: int, seed: int = 0, *, noise: float = 0.006) -> tuple[Scene, np.ndarray]:
    """A coarse hyperspectral image (24 bands), a sharp multispectral one (4), and where each is needed.

    Regime 0, spectral: smooth fields of three crops whose spectra differ, but not in what the four broad bands see of
    them (metamers): only the hyperspectral sensor tells them apart. Regime 1, textured: stripes of one spectrum along
    rows or columns, with a period that the coarse pixels average out: only neighbourhoods of the sharp image tell.
    Regime 2, thin: tracks one pixel wide, brighter than their ground by no more than the ground is uneven: only the
    contrast to what is around tells, which is the next pixels, or the coarse pixel that holds their mean. The regimes
    themselves are plain to see: their ground differs.

    Completion of the test in the survey of AMoFE: regimes are the dossier's, numbers ours.

    Args:
        size: side in pixels. noise: standard deviation as reflectance of the sharp image; half that of the coarse one.

    Returns:
        the scene, the coarse bands first, each repeated over the pixels that it covers; and (H, W) int64 regimes 0..2.

    Raises:
        ConfigError: size below 48, or no multiple of 4.
    """
    _check(size, "three_regimes", COARSE)
    regime = _coarse_parcels(size, 3, 60, seed, "place")
    along = _coarse_parcels(size, 2, 8, seed, "stripes")
    crop = _parcels(size, 3, 150, stream(seed, "regimes", "crop"))
    track = _tracks(size, seed)
    labels = np.choose(regime, (crop, 3 + along, 5 + track)) + 1

    rows, columns = np.indices((size, size))
    wave = np.where(np.where(along == 0, rows, columns) // 2 % 2, 1.0, -1.0)
    uneven = np.exp(UNEVEN * smooth_field(size, 5.0, stream(seed, "regimes", "uneven")))
    light = np.choose(regime, (np.ones_like(uneven), 1 + CONTRAST * wave, uneven * (1 + CONTRAST * track)))
    ground, fine = stand_ins(), np.arange(400.0, 1001.0, 5.0)
    base = np.stack([np.interp(fine, ground.nanometres, ground.reflectance[m]) for m in ("soybean", "roofs", "sand")])
    crops = base[0] + SIGNATURE * _metamers(fine, 3, stream(seed, "regimes", "signatures"))
    table = np.vstack([crops, base[1:]])  # (5, W)
    material = np.choose(regime, (crop, 3, 4))
    msi_bands, hsi_bands = _four_bands(), integrate(table.T, fine, _narrow(REGIME_BANDS))
    hsi = area_mean(point_spread(light * hsi_bands[:, material], 1.0), COARSE)
    hsi = hsi + noise / 2 * stream(seed, "regimes", "hsi noise").standard_normal(hsi.shape)
    msi = light * integrate(table.T, fine, msi_bands)[:, material]
    msi = msi + noise * stream(seed, "regimes", "msi noise").standard_normal(msi.shape)
    scene = _scene(
        f"three regimes, seed {seed}",
        np.concatenate([hsi.repeat(COARSE, 1).repeat(COARSE, 2), msi]),
        labels,
        REGIME_CLASSES,
        (("hsi", len(REGIME_BANDS)), ("msi", 4)),
        (*REGIME_BANDS.tolist(), *(band.centre for band in msi_bands)),
    )
    return scene, regime.astype(np.int64)


def _check(size: int, where: str, multiple: int = 1) -> None:
    if size < SMALLEST or size % multiple:
        fix = f"use {SMALLEST} or more" + (f", a multiple of {multiple}" if multiple > 1 else "")
        raise ConfigError(f"size is {size}", where=where, fix=fix)


def _parcels(size: int, values: int, area: float, generator: np.random.Generator) -> np.ndarray:
    """(size, size) int64 0..values-1: parcels of about so many pixels, each value given to as many."""
    count = max(values, round(size * size / area))
    return generator.permutation(np.arange(count) % values)[cells(size, count, generator, rounds=2)]


def _coarse_parcels(size: int, values: int, area: float, seed: int, name: str) -> np.ndarray:
    """The same of whole coarse pixels, so that none of them sees two values; area in coarse pixels."""
    coarse = _parcels(size // COARSE, values, area, stream(seed, "regimes", name))
    return coarse.repeat(COARSE, 0).repeat(COARSE, 1)


def _tracks(size: int, seed: int) -> np.ndarray:
    """(size, size) int64: 1 on lines one pixel wide, one across the middle of each parcel, in any direction."""
    generator = stream(seed, "regimes", "tracks")
    count = max(1, size * size // LANES)
    parcel, places = cells(size, count, generator, rounds=2).ravel(), np.indices((size, size)).reshape(2, -1)
    area = np.maximum(np.bincount(parcel, minlength=count), 1)
    down, right = (axis - (np.bincount(parcel, axis, minlength=count) / area)[parcel] for axis in places)
    turn = generator.uniform(0, np.pi, count)[parcel]
    return (np.abs(down * np.cos(turn) + right * np.sin(turn)) < 0.5).astype(np.int64).reshape(size, size)


def _band_values(materials: list[str], centres: np.ndarray) -> np.ndarray:
    """(bands, materials) of bands as wide as their distance."""
    seen = band_reflectance(stand_ins(), centres, np.gradient(centres))
    return np.stack([seen[name] for name in materials], axis=1)


def _narrow(centres: np.ndarray) -> list[Band]:
    return [Band(f"{c:.0f}", c, w) for c, w in zip(centres, np.gradient(centres), strict=True)]


def _four_bands() -> list[Band]:
    return [band for band in SATELLITES["sentinel-2"].bands if band.name in COMMON]


def _metamers(nanometres: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """(count, W) smooth curves of standard deviation 1 of which the four broad bands see nothing."""
    response = integrate(np.eye(len(nanometres)), nanometres, _four_bands())  # (4, W)
    curves = gaussian_filter1d(generator.standard_normal((count, len(nanometres))), 4, axis=1)  # over 20 nm
    curves = curves - curves @ np.linalg.pinv(response) @ response
    return curves / curves.std(axis=1, keepdims=True)


def _scene(
    name: str,
    image: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    sensors: tuple[tuple[str, int], ...],
    wavelengths: tuple[float, ...],
) -> Scene:
    return Scene(
        name=name,
        image=image.astype(np.float32),
        valid=np.ones(labels.shape, dtype=bool),
        labels=labels.astype(np.int64),
        class_values=tuple(range(1, len(class_names) + 1)),
        class_names=class_names,
        sensors=sensors,
        wavelengths=wavelengths,
    )
