"""The scene of the tests as the rasters of two sensors, and an untrained model of them."""

import numpy as np
import rasterio
import torch
from affine import Affine
from conftest import write_tif

from terramoe.data import Normaliser
from terramoe.inference import Predictor
from terramoe.systems.mixturers import MixtureRS, MixtureRSConfig

SENSORS = (("hsi", 3), ("lidar", 1))
GAP = 16  # columns on the right that have no LiDAR


def write_sensors(folder, files, lidar_gain=1.0, finer=2):
    """Bands 1 to 3, and band 4 on finer pixels. Returns how the command line names them."""
    with rasterio.open(files / "image.tif") as file:
        image, transform = file.read(), file.transform
    lidar = np.where(np.arange(image.shape[2]) < image.shape[2] - GAP, lidar_gain * image[3:], np.float32(-9999))
    lidar[:, :3, :3] = -9999
    fine = Affine(transform.a / finer, 0, transform.c, 0, transform.e / finer, transform.f)
    hsi = write_tif(folder / "hsi.tif", image[:3], nodata=-9999)
    lidar = write_tif(folder / "lidar.tif", lidar.repeat(finer, 1).repeat(finer, 2), nodata=-9999, transform=fine)
    return f"hsi={hsi},lidar={lidar}"


def write_model(folder, scene):
    """Returns the folder of the model."""
    torch.manual_seed(0)
    system = MixtureRS(
        MixtureRSConfig(
            bands=(3, 1), classes=3, patch=3, width=16, depth=1, heads=2, tokens=2, filters=2, band_kernel=3, experts=3,
            hidden=8,
        )
    )  # fmt: skip
    normaliser = Normaliser((0.0,) * 4, (1.0,) * 4, "none")
    predictor = Predictor(
        "mixturers", system.eval(), normaliser, scene.class_values, scene.class_names, window=32, overlap=16,
        sensors=SENSORS,
    )  # fmt: skip
    predictor.save(folder)
    return str(folder)
