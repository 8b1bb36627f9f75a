"""A scene: an image and its labels, whole in memory, ready to be split and trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from terramoe.data.labels import read_labels
from terramoe.data.rasters import MEMORY_GIB, open_raster
from terramoe.data.sensor_stack import Sensors, open_stack, sensor_files
from terramoe.errors import DataError

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

INDIAN_PINES = "Indian Pines"
INDIAN_PINES_CLASSES = (
    "Alfalfa",
    "Corn-notill",
    "Corn-mintill",
    "Corn",
    "Grass-pasture",
    "Grass-trees",
    "Grass-pasture-mowed",
    "Hay-windrowed",
    "Oats",
    "Soybean-notill",
    "Soybean-mintill",
    "Soybean-clean",
    "Wheat",
    "Woods",
    "Buildings-Grass-Trees-Drives",
    "Stone-Steel-Towers",
)


@dataclass(frozen=True)
class Scene:
    """An image with labels.

    Attributes:
        name: for titles.
        image: (bands, H, W) float32, 0 where invalid.
        valid: (H, W) bool.
        labels: (H, W) int64: 0 unlabelled, else class 1..K.
        class_values: the value in the label file of class 1, 2, ..., K.
        class_names: a name for each.
        crs, transform: georeference, None if the image has none.
        band_names: as the file gives them, "" for a band without; () if they are unknown.
        nodata: the file's nodata value, None if it has none.
        sensors: name and number of bands of each sensor, in the order of the bands; () for one sensor without a name.
        available: (sensors, H, W) bool: which sensors a pixel has, None if every valid pixel has them all.
        wavelengths: of the bands in nanometres, 0 where a band has none; () if they are unknown.
        domains: (H, W) int64, 1.. = which sensor, place or season a pixel comes from, 0 = none of them; None if all
            pixels come from one.
        domain_names: a name for each domain.
        official: (H, W) int64, 1 train, 2 guard, 3 test: the split that the benchmark prescribes, or None.
        places: (H, W) int64: pixels of one number are no independent tests, such as those of one place on the ground
            in several images of it; None if square blocks will do.
    """

    name: str
    image: np.ndarray
    valid: np.ndarray
    labels: np.ndarray
    class_values: tuple[int, ...]
    class_names: tuple[str, ...]
    crs: CRS | None = None
    transform: Affine | None = None
    band_names: tuple[str, ...] = ()
    nodata: float | None = None
    sensors: Sensors = ()
    available: np.ndarray | None = None
    wavelengths: tuple[float, ...] = ()
    domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()
    official: np.ndarray | None = None
    places: np.ndarray | None = None

    def __post_init__(self) -> None:
        named = sum(bands for _, bands in self.sensors)
        for what, number in (("bands of the sensors", named), ("wavelengths", len(self.wavelengths))):
            if number not in (0, self.bands):
                raise DataError(f"{number} {what} for {self.bands} bands", where=self.name, fix="name all of them")
        rasters = {"domains": self.domains, "official split": self.official, "places": self.places}
        for what, raster in rasters.items():
            if raster is not None and raster.shape != self.labels.shape:
                raise DataError(f"{what} of {raster.shape}", where=self.name, fix="use the grid of the labels")

    @property
    def bands(self) -> int:
        return self.image.shape[0]

    @property
    def seen(self) -> np.ndarray | None:
        """(bands, H, W) bool: where each band has data, None if wherever the pixel is valid."""
        if self.available is None:
            return None
        return np.repeat(self.available, [bands for _, bands in self.sensors], axis=0)

    @property
    def height(self) -> int:
        return self.image.shape[1]

    @property
    def width(self) -> int:
        return self.image.shape[2]

    @property
    def classes(self) -> int:
        return len(self.class_values)


def load_scene(
    image: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    *,
    image_variable: str | None = None,
    labels_variable: str | None = None,
    class_names: Sequence[str] | None = None,
    max_gib: float = MEMORY_GIB,
) -> Scene:
    """Read an image and its label raster whole.

    Args:
        image, labels: see ``open_raster`` and ``read_labels``; an image may be "NAME=FILE,NAME=FILE", one a sensor.
        image_variable, labels_variable: arrays of .mat files.
        class_names: names of the label values 1, 2, 3 ...; a value beyond them is an error.
        max_gib: budget of the image as float32.

    Raises:
        DataError: unreadable files, sizes that differ, labels out of range, fewer than two classes, no valid pixel.
    """
    files, sensors, available = sensor_files(str(image)), (), None
    if files is None:
        opened = open_raster(image, variable=image_variable, max_gib=max_gib)
    else:
        opened, sensors = open_stack(files, max_gib=max_gib)
    with opened as raster:
        values = read_labels(
            labels, height=raster.height, width=raster.width, variable=labels_variable, max_gib=max_gib
        )
        pixels, valid = raster.read(0, 0, raster.height, raster.width)
        if sensors:
            available = raster.read_available(0, 0, raster.height, raster.width, len(sensors))
            available = None if (available == valid).all() else available
    if not valid.any():
        raise DataError("no pixel is valid: all are NaN or nodata", where=image, fix="check the file's nodata value")
    present = np.unique(values[(values > 0) & valid])
    if class_names is not None and present.size and present[-1] > len(class_names):
        raise DataError(
            f"label value {present[-1]} with {len(class_names)} class names",
            where=labels,
            fix="name every class, or correct the labels",
        )
    if present.size < 2:
        raise DataError(f"{present.size} classes are labelled", where=labels, fix="label at least two classes")
    names = [f"class {v}" if class_names is None else str(class_names[v - 1]) for v in present]
    ranks = np.searchsorted(present, values) + 1
    return Scene(
        name=raster.path.stem,
        image=pixels,
        valid=valid,
        labels=np.where((values > 0) & valid, ranks, 0).astype(np.int64),
        class_values=tuple(int(v) for v in present),
        class_names=tuple(names),
        crs=raster.crs,
        transform=raster.transform,
        band_names=raster.band_names,
        nodata=raster.nodata,
        sensors=sensors,
        available=available,
    )


def indian_pines() -> Scene:
    """The Indian Pines scene: 145 x 145 pixels, 200 bands, 16 classes, 10,249 labelled pixels, about 20 m.

    AVIRIS, 12 June 1992, north-west Indiana; 220 Band AVIRIS Hyperspectral Image Data Set, 2015,
    doi:10.4231/R7RX991C. The water absorption bands are removed. The package tensorly ships the arrays (BSD-3); they
    carry no georeference.
    """
    spec = find_spec("tensorly")
    if spec is None or spec.origin is None:
        raise DataError("the package tensorly, which holds the scene, is missing", fix="pip install tensorly")
    folder = Path(spec.origin).parent / "datasets" / "data"
    scene = load_scene(
        folder / "Indian_pines_corrected.npy", folder / "Indian_pines_gt.npy", class_names=INDIAN_PINES_CLASSES
    )
    return replace(scene, name=INDIAN_PINES)
