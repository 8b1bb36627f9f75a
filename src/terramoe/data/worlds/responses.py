"""What broad bands see of measured spectra: averages over Gaussian responses, and which bands the channels cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from terramoe.data.worlds.sensors import Band
from terramoe.errors import ConfigError, DataError


def integrate(spectra: np.ndarray, wavelengths: Sequence[float], bands: Sequence[Band]) -> np.ndarray:
    """Spectra (channels, ...) -> (bands, ...): averages over Gaussian responses.

    Channels may have any order and spacing, as where the spectrometers of one instrument overlap.

    Raises:
        DataError: wavelengths missing, or not one a channel. ConfigError: a band that the channels do not cover.
    """
    nanometres = _nanometres(wavelengths)
    if len(spectra) != len(nanometres):
        raise DataError(f"{len(nanometres)} wavelengths for {len(spectra)} channels", where="integrate", fix="one each")
    for band, seen in zip(bands, covered(nanometres, bands), strict=True):
        if not seen:
            raise ConfigError(
                f"the spectra do not cover band '{band.name}' at {band.centre:g} +- {band.width / 2:g} nm",
                where=f"integrate, {nanometres.min():g}..{nanometres.max():g} nm",
                fix="leave the band out",
            )
    centres, widths = (np.array([getattr(band, key) for band in bands]) for key in ("centre", "width"))
    spacing = np.empty(nanometres.size)
    spacing[np.argsort(nanometres)] = np.gradient(np.sort(nanometres))  # channels that crowd count less
    response = gaussian_response(nanometres, centres, widths) * spacing
    return np.tensordot(response / response.sum(axis=1, keepdims=True), spectra, axes=1)


def gaussian_response(nanometres: np.ndarray, centres: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """(bands, channels): 1 at a band's centre (bands,), 1/2 at half its full width (bands,) from it; all in nm."""
    return np.exp(-4 * np.log(2) * ((nanometres - centres[:, None]) / widths[:, None]) ** 2)


def covered(wavelengths: Sequence[float], bands: Sequence[Band]) -> np.ndarray:
    """(bands,) bool: the channels reach over the band's half maximum, and none of the gaps between them is wider."""
    nanometres = np.sort(_nanometres(wavelengths))
    step = np.median(np.diff(nanometres))
    found = []
    for band in bands:
        low, high = band.centre - band.width / 2, band.centre + band.width / 2
        first = max(np.searchsorted(nanometres, low, "right") - 1, 0)
        last = min(np.searchsorted(nanometres, high), nanometres.size - 1)
        reached = nanometres[first] <= low + step / 2 and nanometres[last] >= high - step / 2
        widest = np.diff(nanometres[first : last + 1]).max(initial=0)
        found.append(bool(reached and widest <= max(band.width, 1.5 * step)))
    return np.array(found)


def _nanometres(wavelengths: Sequence[float]) -> np.ndarray:
    nanometres = np.asarray(wavelengths, dtype=float)
    if nanometres.ndim != 1 or nanometres.size < 2 or not (nanometres > 0).all():
        raise DataError("not all channels have a wavelength", where="spectra", fix="give two or more, in nanometres")
    return nanometres
