"""Maps of a prediction as Cloud Optimized GeoTIFFs on the raster's own grid."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from terramoe.data import Raster
from terramoe.errors import DataError
from terramoe.inference.predict import NO_VALUE, ROUTING_BANDS, PredictedTile, predict_tiles, uncertainty_bands
from terramoe.inference.predictor import Predictor
from terramoe.moe import RoutingMeter
from terramoe.storage import RasterForm, RasterWriter, cog_writer, write_checksum

OnTile = Callable[[int], None]  # pixels done so far

UNCERTAINTY_BANDS = ("normalised entropy", "1 - top probability", "top - second probability")


def write_maps(
    predictor: Predictor,
    raster: Raster,
    folder: str | Path,
    *,
    tile: int = 256,
    colours: Sequence[tuple[int, int, int]] | None = None,
    probability: bool = False,
    on_tile: OnTile | None = None,
    meter: RoutingMeter | None = None,
) -> list[Path]:
    """Write ``prediction.tif``, ``uncertainty.tif``, ``experts.tif`` and, if asked, ``probability.tif``.

    ``prediction.tif`` holds the class values of the label file, 0 for nodata. ``experts.tif`` has five bands per
    routed layer (top expert counted from 0, its weight, entropy in nats, margin, dropped), -1 for nodata. All appear
    together or none does, each with a ``.sha256`` beside it. Memory does not grow with the raster.

    Returns:
        The paths of the rasters.

    Raises:
        DataError: another number of bands than the model's, unreadable pixels, or a folder that cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".maps-", dir=folder) as temporary:
            forms = None
            with ExitStack() as stack:
                writers: dict[str, RasterWriter] = {}
                done = 0
                for result in predict_tiles(predictor, raster, tile=tile, meter=meter):
                    if forms is None:  # the first tile tells which layers have maps
                        forms = _forms(predictor, raster, list(result.routing), colours, probability)
                        for name, form in forms.items():
                            writers[name] = stack.enter_context(cog_writer(Path(temporary) / name, form))
                    _write_tile(predictor, result, writers)
                    done += result.box.height * result.box.width
                    if on_tile is not None:
                        on_tile(done)
            for name in forms or {}:
                os.replace(Path(temporary) / name, folder / name)
    except OSError as error:
        raise DataError(
            f"cannot write maps: {error.strerror}", where=folder, fix="name another folder with -o"
        ) from error
    paths = [folder / name for name in forms or {}]
    for path in paths:
        write_checksum(path)
    return paths


def _forms(
    predictor: Predictor,
    raster: Raster,
    layers: list[str],
    colours: Sequence[tuple[int, int, int]] | None,
    probability: bool,
) -> Mapping[str, RasterForm]:
    def form(band_names: Sequence[str], dtype: str, nodata: float, **extra: object) -> RasterForm:
        size = (raster.height, raster.width)
        return RasterForm(*size, tuple(band_names), dtype, nodata, raster.crs, raster.transform, **extra)

    dtype = _prediction_type(predictor)
    with_colours = colours is not None and dtype == "uint8"  # a GeoTIFF colour table is for 8-bit values
    table = dict(zip(predictor.class_values, colours, strict=True)) if with_colours else None
    forms = {
        "prediction.tif": form(["class"], dtype, 0, ids=True, colours=table),
        "uncertainty.tif": form(UNCERTAINTY_BANDS, "float32", NO_VALUE),
    }
    if layers:
        names = [f"{layer}: {band}" for layer in layers for band in ROUTING_BANDS]
        forms["experts.tif"] = form(names, "float32", NO_VALUE, ids=True)
    if probability:
        forms["probability.tif"] = form(predictor.class_names, "float32", NO_VALUE)
    return forms


def _prediction_type(predictor: Predictor) -> str:
    return "uint8" if max(predictor.class_values) <= 255 else "uint16"


def _write_tile(predictor: Predictor, result: PredictedTile, writers: Mapping[str, RasterWriter]) -> None:
    row, column, valid = result.box.row, result.box.column, result.valid
    values = np.asarray(predictor.class_values)[result.probability.argmax(axis=0)]
    values = np.where(valid, values, 0)
    writers["prediction.tif"].write(row, column, values[None].astype(_prediction_type(predictor)))
    uncertainty = np.where(valid, uncertainty_bands(result.probability), np.float32(NO_VALUE))
    writers["uncertainty.tif"].write(row, column, uncertainty)
    if "experts.tif" in writers:
        writers["experts.tif"].write(row, column, np.concatenate(list(result.routing.values())))
    if "probability.tif" in writers:
        shown = np.where(valid, result.probability, np.float32(NO_VALUE))
        writers["probability.tif"].write(row, column, shown)
