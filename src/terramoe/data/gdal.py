"""Reading through GDAL, with a short list of allowed formats and every failure turned into one of our errors."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from terramoe.errors import DataError

# The formats that are read, by their first bytes: those that hold their own pixels. Not VRT and its like, which may
# name any other file or network address. ENVI data have no mark of their own; a header beside them tells.
SIGNATURES = {
    b"II*\x00": "GTiff",
    b"MM\x00*": "GTiff",
    b"II+\x00": "GTiff",
    b"MM\x00+": "GTiff",
    b"\x89PNG": "PNG",
}


class GdalPixels:
    """An open GDAL dataset.

    Attributes:
        shape: (bands, height, width).
        crs, transform, nodata, band_names: as the file states them; None or "" where it does not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = _data_file(path)
        driver = _driver(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                # An absolute path keeps names such as "s3:..." from being taken for anything but a local file.
                self._dataset = rasterio.open(data.absolute(), driver=driver)
        except RasterioError as error:
            raise DataError(
                f"this {driver} file is corrupt or truncated", where=path, fix="copy or download the file again"
            ) from error
        dataset = self._dataset
        if np.dtype(dataset.dtypes[0]).kind == "c":
            raise DataError("the raster holds complex numbers", where=path, fix="store amplitude and phase as bands")
        self.shape = (dataset.count, dataset.height, dataset.width)
        self.crs, self.nodata = dataset.crs, dataset.nodata
        self.transform = None if dataset.transform.is_identity else dataset.transform
        self.band_names = tuple(name or "" for name in dataset.descriptions)

    def read(self, row: int, column: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(bands, h, w) in the file's type and (h, w) bool; DataError names file, bands and window."""
        window = Window(column, row, width, height)
        try:
            values = self._dataset.read(window=window)
            mask = self._dataset.read_masks(window=window)
        except RasterioError as error:
            raise DataError(
                "the pixels cannot be read: the file is corrupt or truncated",
                where=f"{self.path}, bands 1..{self.shape[0]}, rows {row}..{row + height - 1}, "
                f"columns {column}..{column + width - 1}",
                fix="copy or download the file again",
            ) from error
        return values, (mask > 0).all(axis=0)

    def read_available(self, row: int, column: int, height: int, width: int) -> None:
        """A file does not say which sensors its bands are from."""

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()


def _driver(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(4)
    if start in SIGNATURES:
        return SIGNATURES[start]
    if path.with_suffix(".hdr").is_file() or path.with_name(path.name + ".hdr").is_file():
        return "ENVI"
    raise DataError(
        "this is no GeoTIFF, ENVI or PNG raster", where=path, fix="convert it to GeoTIFF; an ENVI file needs its .hdr"
    )


def _data_file(path: Path) -> Path:
    """The data file that belongs to an ENVI header; any other path as it is."""
    if path.suffix.lower() != ".hdr":
        return path
    stem = path.with_suffix("")
    for candidate in (stem, *(stem.with_suffix(s) for s in (".img", ".dat", ".bin", ".bsq", ".bil", ".bip", ".raw"))):
        if candidate.is_file():
            return candidate
    raise DataError(
        "the header has no data file beside it", where=path, fix=f"put {stem.name} or {stem.name}.img there"
    )
