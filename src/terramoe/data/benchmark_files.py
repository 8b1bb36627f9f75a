"""The files of benchmarks: where each comes from, and a clear word where one is missing or not the one that we know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from terramoe.data.arrays import open_mat
from terramoe.data.rasters import MEMORY_GIB
from terramoe.errors import DataError

FOLDER = "TERRAMOE_DATA"  # environment variable: the folder that holds hsi/, seg/ and series/


@dataclass(frozen=True)
class Source:
    """Where a file comes from. path: below the folder. repository: owner/name on GitHub, or pypi.org/... terms: of
    use."""

    path: str
    repository: str
    terms: str

    @property
    def address(self) -> str:
        """Of the repository, with its host."""
        return self.repository if self.repository.startswith("pypi.org/") else f"github.com/{self.repository}"


def find_file(name: str, folder: Path, source: Source) -> Path:
    """The path of a benchmark's file; DataError if it is missing."""
    path = folder / source.path
    if not path.is_file():
        raise DataError(
            f"the file of benchmark '{name}' is missing; it comes from {source.address} ({source.terms})",
            where=path,
            fix=f"put it there, or set {FOLDER} to the folder that holds {source.path.split('/')[0]}/",
        )
    return path


def read_mat(name: str, folder: Path, source: Source, shapes: dict[str, tuple[int, ...]]) -> list[np.ndarray]:
    """Arrays of a MATLAB file, by name and shape; DataError if it is missing, holds NaN or other shapes."""
    path = find_file(name, folder, source)
    return [
        require_known(open_mat(path, variable, MEMORY_GIB, (len(shape),)), shape, variable, path)
        for variable, shape in shapes.items()
    ]


def read_npy(name: str, folder: Path, source: Source, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a .npy file; DataError if it is missing or damaged, or holds objects, NaN or another shape."""
    path = find_file(name, folder, source)
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError("this .npy file is damaged", where=path, fix="get the file that we name") from error
    return require_known(array, shape, path.stem, path)


def require_known(array: np.ndarray, shape: tuple[int, ...], what: str, path: Path) -> np.ndarray:
    """The array itself; DataError if it is not of this shape or has numbers that are not finite."""
    if array.shape != shape or not np.isfinite(array).all():
        raise DataError(
            f"'{what}' is {array.shape}, not {shape}, or holds NaN", where=path, fix="get the file that we name"
        )
    return array
