"""A fitted surface system from disk, and its maps as Cloud Optimized GeoTIFFs on the user's own grid."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class SurfaceMaps:
    """What a system says of a scene, on the user's grid (H, W).

    Attributes:
        mean, std: of the surface. expert: the most used, from 0. share: its weight. entropy: of the gate, in nats.
        segments: ids from 0, or None of a system that does not segment.
        names: of the experts. load, top: (K,) share of the weight of each, and of the pixels in which it is most used.
    """

    mean: np.ndarray
    std: np.ndarray
    expert: np.ndarray
    share: np.ndarray
    entropy: np.ndarray
    segments: np.ndarray | None
    names: tuple[str, ...]
    load: np.ndarray
    top: np.ndarray


def surface_maps(system: SurfaceSystem, surfaces: Surfaces) -> SurfaceMaps:
    """The maps of a fitted system. DataError: another number of sensors or other scales than at the fit.

    Every pixel has a value: where no sensor saw anything near, the standard deviation tells.
    """
    scene = list(surfaces.observations)
    posterior, routing = system.posterior(scene), system.routing(scene)["gate"]
    experts = (routing.top_expert(), routing.top_weight(), routing.item_entropy())
    bands = [column.detach().numpy().reshape(posterior.mean.shape) for column in experts]
    expert, share, entropy = (surfaces.crop(band) for band in bands)
    segments = system.segments(scene)
    names = system.expert_names("gate")
    return SurfaceMaps(
        mean=surfaces.crop(posterior.mean),
        std=np.sqrt(surfaces.crop(posterior.variance)),
        expert=expert,
        share=share,
        entropy=entropy,
        segments=None if segments is None else surfaces.crop(segments),
        names=names,
        load=surfaces.crop(posterior.weight).mean(axis=(0, 1)),
        top=np.bincount(expert.ravel(), minlength=len(names)) / expert.size,
    )


def write_surface_maps(maps: SurfaceMaps, surfaces: Surfaces, folder: str | Path) -> list[Path]:
    """Write ``mean.tif``, ``std.tif``, ``experts.tif`` (top expert from 0, its weight, entropy of the gate in nats)
    and, of a system that segments, ``segments.tif`` (from 0), each with a ``.sha256`` beside it.

    Returns:
        The paths of the rasters.

    Raises:
        DataError: a folder that cannot be written.
    """
    folder = Path(folder)
    bands = {
        "mean.tif": ([maps.mean], _form(surfaces, ("mean",))),
        "std.tif": ([maps.std], _form(surfaces, ("standard deviation",))),
        "experts.tif": (
            [maps.expert, maps.share, maps.entropy],
            _form(surfaces, EXPERT_BANDS, nodata=NO_EXPERT, ids=True),
        ),
    }
    if maps.segments is not None:
        form = _form(surfaces, ("segment",), dtype="int16", nodata=NO_EXPERT, ids=True)
        bands["segments.tif"] = ([maps.segments], form)
    for name, (pixels, form) in bands.items():
        write_cog(folder / name, np.stack(pixels).astype(form.dtype), form)
        write_checksum(folder / name)
    return [folder / name for name in bands]


def _form(
    surfaces: Surfaces, bands: tuple[str, ...], *, dtype: str = "float32", nodata: float = np.nan, ids: bool = False
) -> RasterForm:
    return RasterForm(*surfaces.grid, bands, dtype, nodata, surfaces.crs, surfaces.transform, ids=ids)
