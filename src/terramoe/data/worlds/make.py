"""Make a world: lay the ground, open the sky, let every sensor look."""

from __future__ import annotations

from affine import Affine
from rasterio.crs import CRS

from terramoe.data.worlds.acquire import acquire
from terramoe.data.worlds.ground import lay_ground, lost_chips, open_sky, regimes_of
from terramoe.data.worlds.recipes import Recipe, recipe_of
from terramoe.data.worlds.sensors import COARSEST, PIXEL
from terramoe.data.worlds.spectra import SpectralTable, stand_ins
from terramoe.data.worlds.world import World
from terramoe.errors import ConfigError

SMALLEST, LARGEST = 48, 2048  # pixels of 10 m
EPSG, WEST, NORTH = 32633, 499_980, 5_400_000  # multiples of 60 m, so that the grids of all sensors nest


def make_world(recipe: str | Recipe, *, size: int = 256, seed: int = 0, spectra: SpectralTable | None = None) -> World:
    """Make a world.

    Args:
        recipe: a name of ``RECIPES``, or a recipe.
        size: side in pixels of 10 m, 48 to 2048.
        seed: the same seed gives the same world, bit for bit. Every law has draws of its own: a recipe that differs in
            one law gives the same world but for that law.
        spectra: of the materials; the stand-ins if None.

    Raises:
        ConfigError: an unknown name, size or seed out of range, dates without light.
    """
    name = recipe if isinstance(recipe, str) else "own world"
    recipe = recipe_of(recipe) if isinstance(recipe, str) else recipe
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(f"size is {size}", where=f"world {name}", fix=f"use {SMALLEST} to {LARGEST} pixels")
    if seed < 0:
        raise ConfigError(f"seed is {seed}", where=f"world {name}", fix="use 0 or more")
    ground = lay_ground(recipe, -(-size * PIXEL // COARSEST) * (COARSEST // PIXEL), seed)
    dates = range(len(recipe.weeks))
    skies = [open_sky(ground, date) for date in dates]
    transform = Affine(PIXEL, 0, WEST, 0, -PIXEL, NORTH)
    spectra = stand_ins() if spectra is None else spectra
    platforms = {sensor.platform: sensor for sensor in recipe.sensors}
    delivered = [[~lost_chips(ground, p, 0 if s.once else date) for p, s in platforms.items()] for date in dates]
    shown = (..., slice(size), slice(size))
    return World(
        name=name,
        recipe=recipe,
        size=size,
        seed=seed,
        sensors={s.name: acquire(ground, s, skies, size, transform, spectra) for s in recipe.sensors},
        class_names=tuple(recipe.shares),
        labels=ground.after[shown],
        labels_before=ground.before[shown],
        change=ground.change[shown],
        regimes={name: values[shown] for name, values in regimes_of(ground, skies, delivered).items()},
        platforms=tuple(platforms),
        terrain=ground.terrain[shown],
        objects=ground.objects_at(0)[shown],
        crs=CRS.from_epsg(EPSG),
        transform=transform,
    )
