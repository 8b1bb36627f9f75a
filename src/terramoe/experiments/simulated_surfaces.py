"""Surfaces that simulated sensors see, with the truth behind them, so that every surface system can be tried without
data.

``terramoe fit surface:NAME[:SEED] --system SYSTEM`` reads one, ``terramoe world surface:NAME`` writes it as GeoTIFFs.
The scenes are those of the systems' claims; another seed is another scene.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from terramoe.data.surfaces import Surfaces
from terramoe.errors import ConfigError, DataError
from terramoe.experiments.claims import aggarwal, nagarajan_slatton
from terramoe.mixtures.quad_tree import Observation
from terramoe.storage import RasterForm, write_cog

PREFIX = "surface:"


@dataclass(frozen=True)
class KnownSurface:
    """What the sensors saw, and what they looked at.

    Attributes:
        surfaces: in metres, on a grid of pixels of 1 that is nowhere on Earth. truth: (H, W) heights.
        regimes: (H, W) ids from 0 of parts of different roughness, None where the truth has none.
    """

    surfaces: Surfaces
    truth: np.ndarray
    regimes: np.ndarray | None = None


@dataclass(frozen=True)
class SimulatedSurface:
    """One kind of scene.

    Attributes:
        about: what it is. system: that it was made for. make: seed -> scene. settings: of the system, beside its
            defaults.
    """

    about: str
    system: str
    make: Callable[[int], KnownSurface]
    settings: Mapping[str, Any] = field(default_factory=dict)


def jacksboro(seed: int) -> KnownSurface:
    """A window of the real elevation model of the Jacksboro fault, under a dense radar and a sparse laser."""
    truth = aggarwal.jacksboro(seed)
    noise = (aggarwal.RADAR_NOISE, aggarwal.LASER_NOISE)
    return _known(aggarwal.observe(truth, seed), ("radar", "laser"), noise, truth)


def fractal(seed: int) -> KnownSurface:
    """Quadrants of two fractal surfaces, one landscape where seen from afar: coarse means, and a few fine values."""
    truth, regimes = nagarajan_slatton.stitched(seed, "landscape")
    noise = (nagarajan_slatton.COARSE_NOISE, nagarajan_slatton.FINE_NOISE)
    seen = nagarajan_slatton.observe(truth, seed, "landscape")
    return _known(seen, ("coarse", "fine"), noise, truth, regimes)


SIMULATED_SURFACES: Mapping[str, SimulatedSurface] = {
    "jacksboro": SimulatedSurface("real mountains under a dense radar and a sparse laser", "aggarwal", jacksboro),
    "fractal": SimulatedSurface(
        "rough and smooth fractal quadrants: coarse means and a few fine values",
        "nagarajan-slatton",
        fractal,
        {"n_experts": 2},
    ),
}


def surface_facts(text: str) -> tuple[SimulatedSurface, int]:
    """``surface:NAME[:SEED]`` -> what it is, and the seed. DataError for another text."""
    name, _, seed = text.removeprefix(PREFIX).partition(":")
    if name not in SIMULATED_SURFACES:
        raise DataError(
            f"there is no simulated surface '{name}'", where=text, fix=f"use {', '.join(SIMULATED_SURFACES)}"
        )
    if seed and not seed.isdecimal():
        raise DataError(f"'{seed}' is no seed", where=text, fix=f"write {PREFIX}{name} or {PREFIX}{name}:3")
    return SIMULATED_SURFACES[name], int(seed or 0)


def known_surface(text: str) -> KnownSurface:
    """The scene that ``surface:NAME[:SEED]`` names."""
    facts, seed = surface_facts(text)
    return facts.make(seed)


def write_known(text: str, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write the scene that ``surface:NAME[:SEED]`` names: a raster a sensor, NaN in gaps, ``truth.tif`` and, of a scene
    that has them, ``regimes.tif``. A fit of the files is that of the name, bit for bit.

    Raises:
        ConfigError: a file is there already, and ``overwrite`` is not set. DataError: it cannot be written.
    """
    known, folder = known_surface(text), Path(folder)
    surfaces = known.surfaces
    rasters = {
        name: (one.value, one.scale) for name, one in zip(surfaces.names, surfaces.observations, strict=True)
    } | {"truth": (known.truth, 0)}
    if known.regimes is not None:
        rasters["regimes"] = (known.regimes, 0)
    paths = {name: folder / f"{name}.tif" for name in rasters}
    there = [path for path in paths.values() if path.exists()]
    if there and not overwrite:
        raise ConfigError(
            "the file is there already", where=there[0], fix="name another folder with -o, or add --overwrite"
        )
    for name, (values, scale) in rasters.items():
        ids = name == "regimes"
        form = RasterForm(
            *values.shape,
            ("regime" if ids else "height",),
            "int16" if ids else "float32",
            -1 if ids else np.nan,
            transform=_grid(known.truth.shape[0], 2**scale),
            ids=ids,
        )
        write_cog(paths[name], values[None].astype(form.dtype), form)
    return list(paths.values())


def _known(
    seen: list[Observation],
    names: tuple[str, ...],
    noise: tuple[float, ...],
    truth: np.ndarray,
    regimes: np.ndarray | None = None,
) -> KnownSurface:
    """Heights as a file of 32-bit numbers has them, so that the files say the same."""
    rounded = tuple(Observation(_single(one.value), s**2, one.scale) for one, s in zip(seen, noise, strict=True))
    surfaces = Surfaces(rounded, names, noise, truth.shape, transform=_grid(truth.shape[0], 1))
    return KnownSurface(surfaces, _single(truth), regimes)


def _grid(height: int, width: int) -> Affine:
    """Pixels of a width, from the upper left corner of ``height`` pixels of 1."""
    return Affine(width, 0, 0, 0, -width, height)


def _single(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64)
