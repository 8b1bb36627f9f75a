"""Shared small data: a scene in memory and the same scene as files."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny arrays: threads cost more than they give
os.environ.setdefault("TERRAMOE_DATA", str(Path(__file__).parents[2] / "shared" / "data"))  # benchmarks, if any

import numpy as np
import pytest
import rasterio
from affine import Affine

from terramoe.data import Scene

TRANSFORM = Affine(10, 0, 500_000, 0, -10, 4_000_000)


def make_scene(height=48, width=56, bands=4, classes=3, seed=0, unlabelled=0.2):
    """Patches of 8 x 8 pixels with class-dependent spectra; class values 10, 20, 30 ..."""
    generator = np.random.default_rng(seed)
    tiles = generator.integers(1, classes + 1, size=(-(-height // 8), -(-width // 8)))
    labels = np.kron(tiles, np.ones((8, 8), dtype=np.int64))[:height, :width].astype(np.int64)
    centres = generator.normal(size=(classes + 1, bands))
    image = (centres[labels] + 0.3 * generator.normal(size=(height, width, bands))).transpose(2, 0, 1)
    labels[generator.random(labels.shape) < unlabelled] = 0
    valid = np.ones((height, width), dtype=bool)
    valid[:3, :3] = False
    labels[~valid] = 0
    image[:, ~valid] = 0
    return Scene(
        name="made",
        image=image.astype(np.float32),
        valid=valid,
        labels=labels,
        class_values=tuple(10 * (i + 1) for i in range(classes)),
        class_names=tuple(f"class {10 * (i + 1)}" for i in range(classes)),
        crs=rasterio.crs.CRS.from_epsg(32617),
        transform=TRANSFORM,
    )


@pytest.fixture(scope="session")
def scene():
    return make_scene()


def write_tif(path, array, **profile):
    """(bands, H, W) as a GeoTIFF."""
    form = {"driver": "GTiff", "crs": "EPSG:32617", "transform": TRANSFORM, **profile}
    bands, height, width = array.shape
    with rasterio.open(path, "w", count=bands, height=height, width=width, dtype=array.dtype, **form) as file:
        file.write(array)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory, scene):
    """The scene as image.tif (nodata -9999) and labels.tif (values 10, 20, 30)."""
    folder = tmp_path_factory.mktemp("scene")
    image = np.where(scene.valid, scene.image, np.float32(-9999))
    write_tif(folder / "image.tif", image, nodata=-9999)
    write_tif(folder / "labels.tif", (10 * scene.labels).astype(np.uint8)[None])
    return folder
