"""A fitted surface system from disk, and its maps as Cloud Optimized GeoTIFFs on the user's own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from terramoe.data.surfaces import Surfaces
from terramoe.errors import ModelFileError
from terramoe.storage import RasterForm, StoredEstimator, load_estimator, write_checksum, write_cog
from terramoe.systems.surface_system import SurfaceSystem

EXPERT_BANDS = ("top expert", "weight", "entropy")
NO_EXPERT = -1


def load_surface_system(path: str | Path) -> StoredEstimator:
    """The system of a run; ``data`` names its sensors and their noise. ModelFileError if there is no surface system."""
    stored = load_estimator(path)
    if not isinstance(stored.estimator, SurfaceSystem):
        raise ModelFileError(f"this is a model of {stored.system}", where=path, fix="name a run of a surface system")
    return stored


def write_surface_maps(system: SurfaceSystem, surfaces: Surfaces, folder: str | Path) -> list[Path]:
    """Write ``mean.tif``, ``std.tif``, ``experts.tif`` (top expert from 0, its weight, entropy of the gate in nats)
    and, of a system that segments, ``segments.tif`` (from 0), each with a ``.sha256`` beside it.

    Every pixel has a value: where no sensor saw anything near, the standard deviation tells.

    Returns:
        The paths of the rasters.

    Raises:
        DataError: another number of sensors or other scales than at the fit, or a folder that cannot be written.
    """
    folder, scene = Path(folder), list(surfaces.observations)
    posterior, routing = system.posterior(scene), system.routing(scene)["gate"]
    shape = posterior.mean.shape
    experts = (routing.top_expert(), routing.top_weight(), routing.item_entropy())
    bands = [column.detach().numpy().reshape(shape) for column in experts]
    maps = {
        "mean.tif": _form(surfaces, ("mean",)),
        "std.tif": _form(surfaces, ("standard deviation",)),
        "experts.tif": _form(surfaces, EXPERT_BANDS, nodata=NO_EXPERT, ids=True),
    }
    pixels = {"mean.tif": [posterior.mean], "std.tif": [np.sqrt(posterior.variance)], "experts.tif": bands}
    segments = system.segments(scene)
    if segments is not None:
        maps["segments.tif"] = _form(surfaces, ("segment",), dtype="int16", nodata=NO_EXPERT, ids=True)
        pixels["segments.tif"] = [segments]
    for name, form in maps.items():
        write_cog(folder / name, np.stack([surfaces.crop(band) for band in pixels[name]]).astype(form.dtype), form)
        write_checksum(folder / name)
    return [folder / name for name in maps]


def _form(
    surfaces: Surfaces, bands: tuple[str, ...], *, dtype: str = "float32", nodata: float = np.nan, ids: bool = False
) -> RasterForm:
    return RasterForm(*surfaces.grid, bands, dtype, nodata, surfaces.crs, surfaces.transform, ids=ids)
