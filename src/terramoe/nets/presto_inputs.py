"""What Presto reads: bands, channel groups, units.

Source: Lightweight, Pre-trained Transformers for Remote Sensing Timeseries, 2023, arXiv 2304.14065. [measured] marks
what the published decoder's predictions on real series decide, [inferred] what is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.errors import DataError

BANDS = (
    *("VV", "VH"),  # Sentinel-1, dB
    *("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"),  # Sentinel-2, reflectance x 10 000
    *("temperature_2m", "total_precipitation"),  # ERA5, K and m
    *("elevation", "slope"),  # SRTM, m and degrees
    "NDVI",  # (B8 - B4) / (B8 + B4)
)
# The order is that of the tensors in the file, and the row of the channel embedding. [measured]
GROUPS = {
    "S1": ("VV", "VH"),
    "S2_RGB": ("B2", "B3", "B4"),
    "S2_NIR_10m": ("B8",),
    "S2_NIR_20m": ("B8A",),
    "S2_Red_Edge": ("B5", "B6", "B7"),
    "S2_SWIR": ("B11", "B12"),
    "ERA5": ("temperature_2m", "total_precipitation"),
    "SRTM": ("elevation", "slope"),
    "NDVI": ("NDVI",),
}
NO_CLASS = 9  # where Dynamic World's class (0 to 8) is unknown
LONGEST = 24  # steps
PLACES = {name: [BANDS.index(band) for band in bands] for name, bands in GROUPS.items()}
_OFFSET = (25.0, 25.0, *[0.0] * 10, -272.15, 0.0, 0.0, 0.0, 0.0)
_SCALE = (25.0, 25.0, *[1e4] * 10, 35.0, 0.03, 2000.0, 50.0, 1.0)


def normalise(series: Tensor) -> Tensor:
    """(..., 17) in the units of ``BANDS`` -> what the weights expect: (value + offset) / scale.

    [measured] for Sentinel-1, Sentinel-2, temperature and NDVI: raw values regressed on the decoder's predictions give
    these scales within 6 % (VH 21 %). [inferred] for precipitation, elevation and slope, predicted too coarsely.
    """
    return (series + series.new_tensor(_OFFSET)) / series.new_tensor(_SCALE)


def on_the_sphere(latlon: Tensor) -> Tensor:
    """(..., 2) degrees, latitude first -> (..., 3) on the unit sphere."""
    latitude, longitude = latlon.deg2rad().unbind(-1)
    x, y = latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin()
    return torch.stack([x, y, latitude.sin()], dim=-1)


def check_inputs(series: Tensor, months: Tensor, valid: Tensor, dynamic_world: Tensor, latlon: Tensor | None) -> None:
    """DataError where ``Presto`` could not read these."""
    shape = series.shape[:2]
    if series.ndim != 3 or series.shape[2] != len(BANDS) or not 1 <= series.shape[1] <= LONGEST:
        raise DataError(f"series {tuple(series.shape)}", where="Presto", fix="give (B, T, 17) with T from 1 to 24")
    if valid.shape != series.shape or valid.dtype != torch.bool:
        raise DataError(f"valid {valid.dtype} {tuple(valid.shape)}", where="Presto", fix="give bool, shaped as series")
    for name, values, top in (("months", months, 11), ("dynamic_world", dynamic_world, NO_CLASS)):
        if values.shape != shape or values.is_floating_point():
            raise DataError(f"{name} {values.dtype} {tuple(values.shape)}", where="Presto", fix="give integers (B, T)")
        if values.numel() and (values.min() < 0 or values.max() > top):
            raise DataError(f"{name} from {values.min()} to {values.max()}", where="Presto", fix=f"use 0 to {top}")
    if latlon is not None and latlon.shape != (len(series), 2):
        raise DataError(f"latlon {tuple(latlon.shape)}", where="Presto", fix="give (B, 2): latitude, longitude")
