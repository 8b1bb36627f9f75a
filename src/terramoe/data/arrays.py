"""Arrays from MATLAB and NumPy files, header first, without ever unpickling anything."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadError

from terramoe.errors import DataError

_NUMERIC = ("double", "single", "logical", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)))


def open_mat(path: Path, variable: str | None, max_gib: float, dims: tuple[int, ...] = (3,)) -> np.ndarray:
    """The numeric array of a MATLAB file, version 4 or 5: (H, W, bands), or (H, W) when ``dims`` is (2,).

    Raises:
        DataError: another version, damaged, over the budget, or not exactly one candidate array.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(128)
        if start.startswith(b"\x89HDF") or b"MATLAB 7.3" in start:
            raise DataError("this is a MATLAB 7.3 file", where=path, fix="save it again with save(..., '-v7')")
        found = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        name = _choose(found, path, variable, dims)
        gib = 4 * math.prod(found[name][0]) / 2**30
        if gib > max_gib:
            raise DataError(
                f"'{name}' takes {gib:.1f} GiB, the budget is {max_gib:g}",
                where=path,
                fix="crop it, or raise --max-gib",
            )
        return np.asarray(loadmat(path, variable_names=[name])[name])
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError, EOFError, KeyError) as error:
        raise DataError(
            "this MATLAB file cannot be read", where=path, fix="save it again with save(..., '-v7')"
        ) from error


def _choose(
    found: dict[str, tuple[tuple[int, ...], str]], path: Path, variable: str | None, dims: tuple[int, ...]
) -> str:
    usable = [n for n, (shape, kind) in found.items() if len(shape) in dims and kind in _NUMERIC and min(shape) > 0]
    if dims == (2,) and len(usable) > 1:  # scalars and vectors are 2-D in MATLAB
        usable = [name for name in usable if min(found[name][0]) > 1]
    if variable is not None:
        usable = [name for name in usable if name == variable]
    if len(usable) == 1:
        return usable[0]
    what = f"{'no' if not usable else 'several'} numeric {dims[0]}-D arrays"
    named = f" named '{variable}'" if variable is not None else ""
    raise DataError(
        f"{what}{named} (the file holds {', '.join(f'{n} {s}' for n, (s, _) in found.items()) or 'nothing'})",
        where=path,
        fix="name the array with --image-variable or --labels-variable",
    )


def open_npy(path: Path) -> np.ndarray:
    """A .npy array, mapped, not read; DataError if it holds objects or is damaged."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            "this .npy file is damaged or holds Python objects", where=path, fix="save a plain numeric array"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or array.dtype.kind not in "biuf":
        raise DataError("this is no numeric (H, W) or (H, W, bands) array", where=path, fix="save such an array")
    return array
