"""The channel groups of Galileo: which bands, of which shape, in which units.

Source: Galileo: Learning Global and Local Features in Pretrained Remote Sensing Models, 2025, arXiv 2502.09356;
means and deviations are those of the published pretraining data (10,000 of 127,155 samples).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from terramoe.errors import ConfigError, DataError

LARGEST_PATCH = 8  # pixels
LONGEST = 24  # steps
Kind = Literal["space_time", "space", "time", "static"]
SHAPES = {
    "space_time": "(B, T, C, H, W)",
    "space": "(B, C, H, W)",
    "time": "(B, T, C)",
    "static": "(B, C)",
}
COVER = ("water", "trees", "grass", "flooded_vegetation", "crops", "shrub_and_scrub", "built", "bare", "snow_and_ice")
CROPS = ("temporarycrops", "maize", "wintercereals", "springcereals", "irrigation")


@dataclass(frozen=True)
class ChannelGroup:
    """Bands that share one token. ``mean`` and ``std``, one a band, are in the units that ``unit`` names."""

    kind: Kind
    bands: tuple[str, ...]
    unit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


_DN = "reflectance x 10 000"
# In the order of the tensors of the file, which is the row of the channel embedding of each kind [inferred]. Units are
# those in which the published means make sense [inferred]; of TC, VIIRS, WC and LS they were not checked on data.
GROUPS: dict[str, ChannelGroup] = {
    "S1": ChannelGroup("space_time", ("VV", "VH"), "dB", (-11.73, -18.86), (4.887, 5.730)),
    "S2_RGB": ChannelGroup("space_time", ("B2", "B3", "B4"), _DN, (1395.3, 1338.4, 1343.1), (917.7, 913.3, 1092.7)),
    "S2_Red_Edge": ChannelGroup(
        "space_time", ("B5", "B6", "B7"), _DN, (1543.9, 2186.2, 2525.1), (1047.2, 1048.0, 1143.7)
    ),
    "S2_NIR_10m": ChannelGroup("space_time", ("B8",), _DN, (2410.3,), (1099.0,)),
    "S2_NIR_20m": ChannelGroup("space_time", ("B8A",), _DN, (2750.3,), (1204.5,)),
    "S2_SWIR": ChannelGroup("space_time", ("B11", "B12"), _DN, (2234.9, 1474.5), (1146.0, 980.2)),
    "NDVI": ChannelGroup("space_time", ("NDVI",), "(B8 - B4) / (B8 + B4)", (0.2892,), (0.2721,)),
    "SRTM": ChannelGroup("space", ("elevation", "slope"), "m, degrees", (673.0, 5.930), (983.1, 8.167)),
    "DW": ChannelGroup(
        "space",
        COVER,
        "probability of a Dynamic World class",
        (0.1047, 0.2397, 0.08158, 0.04247, 0.1130, 0.1733, 0.06990, 0.1213, 0.04671),
        (0.1877, 0.2368, 0.08024, 0.04045, 0.1135, 0.1280, 0.1204, 0.1360, 0.04397),
    ),
    "WC": ChannelGroup(
        "space",
        CROPS,
        "WorldCereal, percent",
        (10.97, 1.093, 1.699, 0.03721, 1.367),
        (31.26, 10.40, 12.92, 1.929, 11.61),
    ),
    "ERA5": ChannelGroup(
        "time", ("temperature_2m", "total_precipitation_sum"), "K, m", (271.6, 0.08554), (79.81, 0.1167)
    ),
    "TC": ChannelGroup(
        "time", ("def", "soil", "aet"), "TerraClimate, 0.1 mm", (657.3, 692.1, 562.8), (704.0, 925.0, 453.2)
    ),
    "VIIRS": ChannelGroup("time", ("avg_rad",), "nW / cm2 / sr", (1.565,), (7.513,)),
    "LS": ChannelGroup("static", ("population",), "LandScan, persons a cell", (188.2,), (1154.6,)),
    "location": ChannelGroup(
        "static", ("x", "y", "z"), "unit sphere", (0.2805, 0.1137, 0.05878), (0.5277, 0.7022, 0.3653)
    ),
    "DW_static": ChannelGroup(
        "static",
        COVER,
        "as DW, mean over the area",
        (0.1047, 0.2397, 0.08152, 0.04248, 0.1130, 0.1733, 0.06998, 0.1212, 0.04672),
        (0.1747, 0.2041, 0.06608, 0.03381, 0.09809, 0.1129, 0.09721, 0.1291, 0.04000),
    ),
    "WC_static": ChannelGroup(
        "static",
        CROPS,
        "as WC, mean over the area",
        (10.98, 1.097, 1.695, 0.03320, 1.360),
        (23.73, 5.715, 9.030, 0.9950, 7.754),
    ),
}


def names_of(kind: Kind) -> list[str]:
    """The groups of one kind, in order."""
    return [name for name, group in GROUPS.items() if group.kind == kind]


def normalise(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Groups in natural units -> (value - mean + 2 std) / (4 std): mean +- 2 std becomes 0 to 1. [inferred]

    The configuration says "std"; the published means and deviations are facts, the factor 2 and the same treatment of
    all groups are ours. ConfigError for an unknown group.
    """
    unknown = [name for name in inputs if name not in GROUPS]
    if unknown:
        raise ConfigError(f"no channel group '{unknown[0]}'", where="Galileo", fix=f"use {', '.join(GROUPS)}")
    result = {}
    for name, values in inputs.items():
        group = GROUPS[name]
        shape = (-1, 1, 1) if group.kind in ("space", "space_time") else (-1,)
        mean, std = (values.new_tensor(numbers).view(shape) for numbers in (group.mean, group.std))
        result[name] = (values - mean + 2 * std) / (4 * std)
    return result


def check_inputs(
    inputs: Mapping[str, Tensor], months: Tensor | None, valid: Mapping[str, Tensor], patch: int
) -> tuple[int, tuple[int, int] | None]:
    """-> number of steps, and (H, W) where a group has space; DataError where ``Galileo`` could not read these."""
    steps = None if months is None else months.shape[-1]
    size, rows = None, None
    if not inputs or patch not in range(1, LARGEST_PATCH + 1):
        raise DataError(
            f"{len(inputs)} groups, patch {patch}", where="Galileo", fix="give groups and a patch of 1 to 8"
        )
    for name, x in inputs.items():
        if name not in GROUPS:
            raise DataError(f"no channel group '{name}'", where="Galileo", fix=f"use {', '.join(GROUPS)}")
        kind, bands = GROUPS[name].kind, len(GROUPS[name].bands)
        place, spatial, timed = f"group {name}", kind.startswith("space"), kind in ("space_time", "time")
        axis = 1 + (kind == "space_time" or kind == "time")
        fix = f"give {SHAPES[kind]} with C = {bands}, B, T, H and W as in the other groups"
        rows, size = rows or len(x), size or (tuple(x.shape[-2:]) if spatial else None)
        shape = (rows, *((steps,) if timed else ()), bands, *(size if spatial else ()))
        if timed and months is None:
            raise DataError("months are missing", where=place, fix="give months (B, T) for groups with time")
        if x.shape != shape:
            raise DataError(f"shape {tuple(x.shape)}", where=place, fix=fix)
        seen = valid.get(name)
        if seen is not None and (seen.dtype != torch.bool or seen.shape != x.shape[:axis] + x.shape[axis + 1 :]):
            raise DataError(f"valid {seen.dtype} {tuple(seen.shape)}", where=place, fix="give bool, shaped without C")
    if size is not None and (size[0] % patch or size[1] % patch or not min(size)):
        raise DataError(f"{size[0]} x {size[1]} pixels", where="Galileo", fix=f"pad to multiples of patch {patch}")
    if months is not None and (
        months.is_floating_point() or months.shape[0] != rows or not 1 <= steps <= LONGEST or months.ndim != 2
    ):
        raise DataError(f"months {months.dtype} {tuple(months.shape)}", where="Galileo", fix="give (B, T), T <= 24")
    if months is not None and months.numel() and (months.min() < 0 or months.max() > 11):
        raise DataError("a month out of range", where="Galileo", fix="use 0 to 11")
    return steps or 0, size
