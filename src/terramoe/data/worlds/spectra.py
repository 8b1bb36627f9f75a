"""Spectra of materials, and what a band sees of them.

The numbers in ``STAND_INS`` are not measurements. They are smooth curves, drawn by hand after well-known shapes: the
chlorophyll wells, the green peak and the red edge of leaves, their water bands at 970, 1200, 1450 and 1950 nm, the
steady rise of soils with the clay band at 2200 nm, water that swallows the infrared, snow that is bright until 1 um
and dark beyond. Who has measured spectra gives them to ``spectra_from_table``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from terramoe.data.worlds.responses import gaussian_response
from terramoe.errors import DataError

# fmt: off
NANOMETRES = (
    400, 450, 500, 550, 600, 650, 680, 700, 720, 750, 800, 900,
    970, 1100, 1200, 1300, 1450, 1600, 1700, 1950, 2100, 2200, 2350, 2500,
)
STAND_INS = {
    "broadleaf": (.03, .035, .04, .10, .06, .045, .04, .12, .28, .45, .48, .49,
                  .46, .49, .43, .44, .20, .31, .29, .08, .16, .18, .12, .06),
    "needleleaf": (.02, .025, .03, .06, .04, .03, .025, .06, .15, .27, .30, .31,
                   .29, .31, .26, .27, .12, .17, .15, .05, .08, .09, .06, .03),
    "grass": (.04, .05, .06, .11, .08, .06, .055, .13, .26, .40, .44, .46,
              .43, .47, .42, .42, .20, .31, .28, .10, .17, .19, .13, .07),
    "wheat": (.03, .04, .05, .10, .06, .045, .04, .11, .27, .46, .52, .54,
              .50, .54, .46, .47, .17, .27, .25, .06, .12, .14, .09, .05),
    "maize": (.03, .04, .05, .12, .08, .06, .05, .14, .28, .40, .43, .45,
              .42, .45, .40, .41, .18, .29, .27, .08, .14, .17, .11, .06),
    "soybean": (.03, .035, .045, .12, .07, .045, .04, .13, .34, .54, .58, .59,
                .56, .59, .52, .53, .22, .33, .31, .08, .16, .19, .12, .06),
    "straw": (.08, .11, .15, .20, .24, .28, .30, .31, .33, .35, .38, .42,
              .44, .48, .48, .49, .40, .47, .46, .30, .33, .37, .30, .25),
    "dark soil": (.04, .05, .06, .08, .10, .11, .12, .125, .13, .14, .155, .18,
                  .19, .22, .235, .25, .23, .27, .28, .22, .26, .25, .23, .20),
    "bright soil": (.08, .10, .13, .18, .23, .26, .275, .28, .29, .30, .32, .35,
                    .365, .40, .415, .43, .40, .45, .46, .37, .42, .40, .37, .33),
    "sand": (.14, .18, .23, .29, .34, .37, .38, .39, .395, .405, .42, .44,
             .445, .47, .48, .49, .45, .51, .52, .42, .49, .48, .44, .40),
    "rock": (.08, .10, .12, .14, .16, .17, .175, .18, .18, .185, .19, .19,
             .195, .20, .205, .21, .205, .215, .22, .20, .215, .205, .20, .19),
    "water": (.05, .055, .06, .06, .035, .028, .025, .02, .015, .01, .008, .005,
              .003, .002, .002, .002, .001, .001, .001, .001, .001, .001, .001, .001),
    "roofs": (.07, .09, .11, .14, .18, .21, .215, .22, .225, .23, .24, .25,
              .255, .28, .29, .30, .30, .32, .325, .30, .33, .32, .31, .30),
    "snow": (.96, .97, .97, .97, .96, .95, .945, .94, .935, .92, .89, .84,
             .78, .72, .48, .50, .06, .10, .12, .02, .05, .07, .03, .02),
}
# fmt: on


@dataclass(frozen=True)
class SpectralTable:
    """Reflectance of materials over wavelength.

    Attributes:
        nanometres: (W,) increasing.
        reflectance: material -> (W,), as shares: 0.3, not 30 %.
    """

    nanometres: np.ndarray
    reflectance: Mapping[str, np.ndarray]


def stand_ins() -> SpectralTable:
    """The hand-drawn spectra every 5 nm from 400 to 2500 nm, without overshoot between the points of the table."""
    fine = np.arange(NANOMETRES[0], NANOMETRES[-1] + 1, 5.0)
    return SpectralTable(fine, {name: PchipInterpolator(NANOMETRES, v)(fine) for name, v in STAND_INS.items()})


def spectra_from_table(nanometres: np.ndarray, measured: Mapping[str, np.ndarray]) -> SpectralTable:
    """The stand-ins with measured spectra in place of those that are named, for ``make_world(..., spectra=...)``.

    Between its first and last wavelength a measured spectrum is kept as it is. Beyond them, where a field
    spectrometer often ends, the stand-in goes on, scaled so that the two meet.

    Args:
        nanometres: (W,) increasing. measured: a material of ``STAND_INS`` -> (W,) reflectance as shares.

    Raises:
        DataError: unknown material, wavelengths that do not increase, other lengths, values outside 0..1.
    """
    nanometres, base = np.asarray(nanometres, dtype=float), stand_ins()
    if nanometres.ndim != 1 or len(nanometres) < 2 or not (np.diff(nanometres) > 0).all():
        raise DataError("the wavelengths do not increase", where="spectra_from_table", fix="sort them, in nanometres")
    fine = base.nanometres
    inside = (fine >= nanometres[0]) & (fine <= nanometres[-1])
    if not inside.any():
        raise DataError(
            f"wavelengths from {nanometres[0]:g} to {nanometres[-1]:g}",
            where="spectra_from_table",
            fix="give nanometres, 400 to 2500",
        )
    first, last = np.flatnonzero(inside)[[0, -1]]
    spectra = dict(base.reflectance)
    for name, values in measured.items():
        values = np.asarray(values, dtype=float)
        if name not in STAND_INS:
            raise DataError(f"no material '{name}'", where="spectra_from_table", fix=f"use {', '.join(STAND_INS)}")
        if values.shape != nanometres.shape:
            raise DataError(f"{values.shape} values for {len(nanometres)} wavelengths", where=name, fix="give one each")
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise DataError("reflectance outside 0..1", where=name, fix="give shares: divide percent by 100")
        joined = np.interp(fine, nanometres, values)
        own = spectra[name]
        joined[:first] = own[:first] * joined[first] / own[first]
        joined[last + 1 :] = own[last + 1 :] * joined[last] / own[last]
        spectra[name] = np.clip(joined, 0.0, 1.0)
    return SpectralTable(fine, spectra)


def band_reflectance(table: SpectralTable, centres: np.ndarray, widths: np.ndarray) -> dict[str, np.ndarray]:
    """What bands see of each material: its spectrum averaged over Gaussian responses.

    Args:
        centres, widths: (B,) in nanometres; width is the full width at half maximum.

    Returns:
        material -> (B,).
    """
    response = gaussian_response(table.nanometres, np.asarray(centres, dtype=float), np.asarray(widths, dtype=float))
    response /= response.sum(axis=1, keepdims=True)
    return {name: response @ values for name, values in table.reflectance.items()}
