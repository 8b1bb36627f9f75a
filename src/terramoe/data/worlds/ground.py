"""The truth of a world: terrain, regions, land cover and its changes; and the sky above it, date by date."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.data.worlds.change import change_points
from terramoe.data.worlds.clouds import cast, cloud_opacity, shadow_shift, sky_class
from terramoe.data.worlds.fields import cells, smooth_field, stream
from terramoe.data.worlds.land_cover import COVERS, Cover, land_cover
from terramoe.data.worlds.lidar import object_heights
from terramoe.data.worlds.phenology import season_of
from terramoe.data.worlds.radiometry import illumination, light_class, sun_position
from terramoe.data.worlds.recipes import Recipe
from terramoe.data.worlds.sensors import missing_chips
from terramoe.data.worlds.terrain import elevation, slope_aspect
from terramoe.errors import ConfigError

TEXTURE = 1.0  # pixels: size of bright and dark spots within a class
SUN_AT_LEAST = 5.0  # degrees above the horizon


@dataclass(frozen=True)
class Sky:
    """One date over the whole square; all (H, W).

    Attributes:
        day: of the year.
        zenith, azimuth: of the sun in radians; (R,), by region.
        opacity: of the cloud above a pixel. shadow: of the cloud between it and the sun.
    """

    day: float
    zenith: np.ndarray
    azimuth: np.ndarray
    opacity: np.ndarray
    shadow: np.ndarray


@dataclass(frozen=True)
class Ground:
    """The truth; (H, W) each, on a square whose side is a multiple of 60 m.

    Attributes:
        terrain: metres; slope, aspect: radians.
        region: 0..R-1. before, after: classes 1..K at the first date, and after all changes. change: see ``World``.
        brightness: factor of reflectance, of mean 1.
    """

    recipe: Recipe
    seed: int
    terrain: np.ndarray
    slope: np.ndarray
    aspect: np.ndarray
    region: np.ndarray
    before: np.ndarray
    after: np.ndarray
    change: np.ndarray
    brightness: np.ndarray

    @property
    def side(self) -> int:
        return len(self.terrain)

    def labels_at(self, date: int) -> np.ndarray:
        """Classes at a date."""
        return np.where((self.change > 0) & (self.change <= date), self.after, self.before)

    def covers(self) -> list[list[Cover]]:
        """What each region makes its classes of: R lists of K."""
        covers = [COVERS[name] for name in self.recipe.shares]
        turns = [r if self.recipe.swapped else 0 for r in range(len(self.recipe.latitudes))]
        return [[covers[(c + turn) % len(covers)] for c in range(len(covers))] for turn in turns]

    def lookup(self, by_region_and_class: np.ndarray, date: int) -> np.ndarray:
        """(R, K, ...) -> (H, W, ...): the value of each pixel's region and class."""
        return by_region_and_class[self.region, self.labels_at(date) - 1]

    def objects_at(self, date: int) -> np.ndarray:
        """Heights of objects above the ground, in metres."""
        facts = np.array([[(*c.height, c.roofed) for c in classes] for classes in self.covers()])
        mean, spread, roofed = np.moveaxis(self.lookup(facts, date), -1, 0)
        return object_heights(mean, spread, roofed > 0, stream(self.seed, "objects"))

    def light(self, sky: Sky, direct: np.ndarray | float = 1.0) -> np.ndarray:
        """Light relative to level ground without clouds."""
        zenith, azimuth = sky.zenith[self.region], sky.azimuth[self.region]
        return illumination(self.slope, self.aspect, zenith, azimuth, direct=direct)


def lay_ground(recipe: Recipe, side: int, seed: int) -> Ground:
    """Terrain, regions, land cover, changes."""
    terrain = elevation(side, 1.0, stream(seed, "terrain"))
    regions = len(recipe.latitudes)
    if recipe.zones:
        region = np.repeat(np.arange(side) * regions // side, side).reshape(side, side)
    else:
        region = cells(side, regions, stream(seed, "regions"), rounds=8)
    before = land_cover(recipe.shares, terrain, stream(seed, "cover"))
    into = [list(recipe.shares).index(name) + 1 for name in recipe.into]
    after, change = change_points(before, recipe.changes, len(recipe.weeks), into, stream(seed, "change"))
    if "water" in recipe.shares:  # it took the lowest ground: fill that up to its shore, which is height 0
        shore = terrain[before == list(recipe.shares).index("water") + 1].max()
        terrain = np.maximum(terrain, shore) - shore
    terrain = recipe.relief * terrain
    brightness = np.maximum(1 + recipe.texture * smooth_field(side, TEXTURE, stream(seed, "texture")), 0)
    return Ground(recipe, seed, terrain, *slope_aspect(terrain), region, before, after, change, brightness)


def open_sky(ground: Ground, date: int) -> Sky:
    """Sun and clouds at a date; ConfigError if the sun is too low to see by."""
    recipe = ground.recipe
    day = (7.0 * recipe.weeks[date] - 3) % 365  # the middle of the week
    zenith, azimuth = sun_position(day, np.array(recipe.latitudes))
    if zenith.max() > np.radians(90 - SUN_AT_LEAST):
        raise ConfigError(
            f"in week {recipe.weeks[date]} the sun is below {SUN_AT_LEAST:g} degrees at "
            f"latitude {recipe.latitudes[int(zenith.argmax())]:g}",
            where="recipe of a world",
            fix="choose weeks or latitudes with more light",
        )
    opacity = cloud_opacity(ground.side, recipe.clouds, stream(ground.seed, "clouds", date))
    shadow = np.zeros_like(opacity)
    for region, (z, a) in enumerate(zip(zenith, azimuth, strict=True)):
        inside = ground.region == region
        shadow[inside] = cast(opacity, shadow_shift(recipe.cloud_height, z, a))[inside]
    return Sky(day, zenith, azimuth, opacity, shadow)


def lost_chips(ground: Ground, platform: str, date: int) -> np.ndarray:
    """(H, W) bool: what a platform did not deliver."""
    return missing_chips(ground.side, ground.recipe.missing, stream(ground.seed, "missing", platform, date))


def regimes_of(ground: Ground, skies: list[Sky], delivered: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """The regimes that ``World`` describes.

    Args:
        delivered: for each date and platform, (H, W) bool.
    """
    latitude = np.array(ground.recipe.latitudes)
    return {
        "region": ground.region.astype(np.int64),
        "season": np.stack([season_of(sky.day, latitude)[ground.region] for sky in skies]),
        "light": np.stack([light_class(ground.light(sky)) for sky in skies]),
        "sky": np.stack([sky_class(sky.opacity, sky.shadow) for sky in skies]),
        "available": np.stack([sum(seen.astype(np.int64) << p for p, seen in enumerate(d)) for d in delivered]),
    }
