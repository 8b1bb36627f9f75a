"""Real scenes that others compare on, each with its traps taken out: hyperspectral here, others elsewhere.

The files are research data that we may not pass on: the user gives their folder. Where they come from, and on what
terms, is in ``SOURCES``; Indian Pines needs only its small split map, the scene comes with the package tensorly. Scenes
of Landsat and Sentinel-2 are in ``satellite_benchmarks``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from terramoe.data.benchmark_files import FOLDER, Source, read_mat
from terramoe.data.satellite_benchmarks import SATELLITE_BENCHMARKS, SATELLITE_OPENERS, SATELLITE_SOURCES
from terramoe.data.scenes import Scene, indian_pines
from terramoe.errors import ConfigError, DataError

PURE = 0.5  # a pixel of an unmixing scene takes the label of the material that covers more than this share of it
TRAIN, GUARD, TEST = 1, 2, 3
FIRST, LAST = 0.55, 0.35  # Houston: shares of each class, in scan order, that train and that test

BENCHMARKS: Mapping[str, str] = {
    "houston2013-pixels": "2832 pixels of Houston without coordinates, 144 HSI bands + 21 LiDAR profiles, 15 classes",
    "muufl": "Gulfport campus, 90 x 90 pixels, 64 HSI bands + DSM and 4 profiles of it, 5 materials",
    "samson": "Samson, 95 x 95 pixels, 156 HSI bands, 3 materials",
    "jasper": "Jasper Ridge, 100 x 100 pixels, 198 HSI bands, 4 materials",
    "indian-pines-disjoint": "Indian Pines with the spatially disjoint training map that papers share, 16 classes",
    **SATELLITE_BENCHMARKS,
}

_UNMIXING = "UPCGIT/Hyperspectral-Unmixing-Models"
_HOUSTON = ("danfenghong/IEEE_TGRS_MDL-RS", "repository GPL-3; data on the terms of the IEEE data fusion contest 2013")
SOURCES: Mapping[str, tuple[Source, ...]] = {
    "houston2013-pixels": tuple(
        Source(f"hsi/houston2013_train_pixels/{name}.mat", *_HOUSTON)
        for name in ("HSI_TrSet", "LiDAR_TrSet", "TrLabel")
    ),
    "muufl": (
        Source("hsi/muufl_hsi_dsm/muffle_dataset_130_90.mat", _UNMIXING, "repository GPL-3; data: research use, cite"),
    ),
    "samson": (Source("hsi/unmixing/Samson.mat", _UNMIXING, "data re-posted without a licence"),),
    "jasper": (Source("hsi/unmixing/Jasper.mat", _UNMIXING, "data re-posted without a licence"),),
    "indian-pines-disjoint": (
        Source("hsi/indian_pines/indianpines_disjoint_dset.mat", "mhaut/HSI-datasets", "map GPL-3; scene BSD-3"),
    ),
    **SATELLITE_SOURCES,
}

# fmt: off
HOUSTON_CLASSES = (
    "healthy grass", "stressed grass", "synthetic grass", "trees", "soil", "water", "residential", "commercial", "road",
    "highway", "railway", "parking lot 1", "parking lot 2", "tennis court", "running track",
)
# fmt: on


def open_benchmark(name: str, folder: str | os.PathLike[str] | None = None) -> Scene:
    """Read a benchmark scene.

    Images are as the files have them, 0..1, but for Indian Pines (its numbers) and the satellites (see their openers).
    The files hold no wavelengths. Those of the hyperspectral scenes are ours, by convention: evenly spaced over the
    range of each of the instrument's spectrometers, less the bands that were removed, and good to about 10 nm: the
    oxygen line at 762 nm and the red edge lie where they should. AVIRIS's spectrometers overlap, so its wavelengths do
    not increase throughout. LiDAR bands have 0.

    The labels of muufl, samson and jasper are unmixed from the very spectra: they flatter the spectral sensor (a random
    forest on blocks: muufl .97 without any height), and serve to compare models, not to say how good one is.

    Args:
        name: of ``BENCHMARKS``.
        folder: that holds hsi/, seg/ and series/; the environment variable TERRAMOE_DATA if None.

    Raises:
        ConfigError: an unknown name. DataError: no folder, a file missing, or not the one that we know.
    """
    if name not in _OPENERS:
        raise ConfigError(f"no benchmark '{name}'", where="open_benchmark", fix=f"use one of {', '.join(BENCHMARKS)}")
    folder = os.environ.get(FOLDER) if folder is None else folder
    if not folder:
        raise DataError("no folder of data is named", where=name, fix=f"set {FOLDER}, or give the folder")
    return _OPENERS[name](Path(folder))


def _read(name: str, folder: Path, shapes: dict[str, tuple[int, ...]], file: int = 0) -> list[np.ndarray]:
    """Arrays of a benchmark's file."""
    return read_mat(name, folder, SOURCES[name][file], shapes)


def _houston(folder: Path) -> Scene:
    """Hyperspectral and LiDAR Data Fusion: Outcome of the 2013 GRSS Data Fusion Contest, 2014,
    doi:10.1109/JSTARS.2014.2305441.

    The pixels lie in one row. They are in scan order, so neighbours in it mostly are neighbours on the ground: of
    each class the first 55 % train and the last 35 % test. The range is also given as 380 to 1050 nm; then the oxygen
    lines of these spectra would lie 12 nm off.
    """
    name, n = "houston2013-pixels", 2832
    (hsi,), (lidar,), (labels,) = (
        _read(name, folder, arrays, file)
        for file, arrays in enumerate(({"HSI_TrSet": (n, 144)}, {"LiDAR_TrSet": (n, 21)}, {"TrLabel": (n, 1)}))
    )
    labels = labels.T.astype(np.int64)
    official = np.full(labels.shape, GUARD, dtype=np.int64)
    for value in np.unique(labels):
        places = np.flatnonzero(labels == value)
        official.flat[places[: int(FIRST * places.size)]] = TRAIN
        official.flat[places[places.size - int(LAST * places.size) :]] = TEST
    scene = _scene("Houston 2013 pixels", np.hstack([hsi, lidar])[None], labels, HOUSTON_CLASSES)
    sensors = (("hsi", 144), ("lidar", 21))
    return replace(scene, sensors=sensors, wavelengths=_channels((364, 1046, 144)) + 21 * (0.0,), official=official)


def _muufl(folder: Path) -> Scene:
    """MUUFL Gulfport hyperspectral and LiDAR airborne data set, 2013, University of Florida REP-2013-570 (a crop).

    7864 of 8100 pixels are pure enough for a label. The file names no material: the names are ours, from spectra
    and heights. The DSM is the last of the file's five profiles; here it comes first. Scaled to 0..1, not metres.
    """
    shapes = {"Y": (90, 90, 64), "MPN": (90, 90, 5), "label": (90, 90, 5)}
    hsi, profiles, shares = _read("muufl", folder, shapes)
    names = ("building", "grass", "trees", "asphalt and shadow", "bright ground")
    scene = _scene("MUUFL Gulfport", np.dstack([hsi, np.roll(profiles, 1, axis=2)]), _pure(shares), names)
    waves = _channels((375, 1050, 72), removed=(*range(1, 5), *range(69, 73)))
    return replace(scene, sensors=(("hsi", 64), ("lidar", 5)), wavelengths=waves + 5 * (0.0,))


def _samson(folder: Path) -> Scene:
    """Spectral Unmixing via Data-Guided Sparsity, 2014, doi:10.1109/TIP.2014.2363423.

    8730 of 9025 pixels are pure enough for a label. Columns are stored one after the other. The file names no
    material: its order, soil, tree, water, follows from the spectra.
    """
    cube, shares = _read("samson", folder, {"Y": (156, 95 * 95), "S_GT": (95, 95, 3)})
    scene = _scene("Samson", _from_columns(cube, 95), _pure(shares), ("soil", "tree", "water"))
    return replace(scene, sensors=(("hsi", 156),), wavelengths=_channels((401, 889, 156)))


def _jasper(folder: Path) -> Scene:
    """Spectral Unmixing via Data-Guided Sparsity, 2014, doi:10.1109/TIP.2014.2363423.

    9639 of 10000 pixels are pure enough for a label. Columns are stored one after the other; values are divided by
    5437, the largest. The file names no material: tree, water, soil, road follow from the spectra.
    """
    cube, shares = _read("jasper", folder, {"Y": (198, 100 * 100), "S_GT": (100, 100, 4)})
    scene = _scene("Jasper Ridge", _from_columns(cube, 100) / 5437, _pure(shares), ("tree", "water", "soil", "road"))
    aviris = ((366, 665, 32), (655, 1262, 64), (1253, 1872, 64), (1867, 2497, 64))
    gone = (1, 2, 3, *range(108, 113), *range(154, 167), *range(220, 225))
    return replace(scene, sensors=(("hsi", 198),), wavelengths=_channels(*aviris, removed=gone))


def _indian_pines(folder: Path) -> Scene:
    """As ``indian_pines``, with the published split: 5538 pixels train, 4711 test. It has no guard band.

    The map numbers its classes in another order than the scene, so only its mask is used; 151 pixels that it would
    train on have no label.
    """
    (chosen,) = _read("indian-pines-disjoint", folder, {"indianpines_disjoint_dset": (145, 145)})
    gone = (*range(104, 109), *range(150, 164), 220)
    return replace(
        indian_pines(),
        sensors=(("hsi", 200),),
        wavelengths=_channels((400, 696.5, 31), (687, 2500, 189), removed=gone),
        official=np.where(chosen > 0, TRAIN, TEST).astype(np.int64),
    )


def _scene(name: str, pixels: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Scene:
    """pixels: (H, W, bands)."""
    image = np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32)
    values = tuple(range(1, len(class_names) + 1))
    return Scene(name, image, np.ones(labels.shape, dtype=bool), labels, values, class_names)


def _pure(shares: np.ndarray) -> np.ndarray:
    """Shares (H, W, K) -> (H, W) int64: the material that covers most of a pixel, 0 where none covers enough."""
    return np.where(shares.max(axis=-1) > PURE, shares.argmax(axis=-1) + 1, 0).astype(np.int64)


def _from_columns(cube: np.ndarray, side: int) -> np.ndarray:
    """(bands, pixels), column after column -> (H, W, bands)."""
    return cube.T.reshape(side, side, len(cube), order="F")


def _channels(*spectrometers: tuple[float, float, int], removed: tuple[int, ...] = ()) -> tuple[float, ...]:
    """Centres in nanometres, from (first, last, channels) of each spectrometer, less those removed (from 1)."""
    return tuple(
        np.delete(np.concatenate([np.linspace(*s) for s in spectrometers]), np.array(removed, int) - 1).tolist()
    )


_OPENERS: Mapping[str, Callable[[Path], Scene]] = {
    "houston2013-pixels": _houston,
    "muufl": _muufl,
    "samson": _samson,
    "jasper": _jasper,
    "indian-pines-disjoint": _indian_pines,
    **SATELLITE_OPENERS,
}
