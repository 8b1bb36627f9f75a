"""The worlds by name: which laws are on, and how strongly. A recipe is data; another world is another recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from terramoe.data.worlds.land_cover import COVERS
from terramoe.data.worlds.sensors import LIDAR, OPTICAL10, OPTICAL20, OPTICAL60, RADAR, Sensor
from terramoe.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """All that makes a world but its size and its seed. The defaults are a world without any nuisance.

    Attributes:
        about: one line for the list of worlds.
        shares: class of ``COVERS`` -> share of the area; classes are numbered in this order.
        sensors: what observes it.
        weeks: of the dates, increasing; 53 is the first of the next year.
        latitudes: one a region, in degrees. The regions are places laid side by side: the scene is a mosaic, and its
            georeference is nominal.
        zones: regions are strips from north to south instead of cells.
        swapped: region r makes class c of what class c + r is made of in region 0 (cyclic), so that no rule for one
            region holds in another.
        relief: standard deviation of the terrain, in metres.
        texture: relative standard deviation of brightness within a class.
        haze: path light at 450 nm of each region, as reflectance; none if empty.
        gain_spread, offset_spread: of the radiometry of regions, optical sensors only.
        noise: standard deviation of optical sensors, as reflectance.
        looks: of the radar.
        clouds: share of the sky. cloud_height: metres.
        missing: probability that a platform did not deliver a chip at a date.
        shift: standard deviation of mis-registration along each axis, in metres.
        blur: full width at half maximum of the point spread, in pixels of the sensor.
        changes: how many discs change. into: the classes that they may become.
    """

    about: str
    shares: Mapping[str, float]
    sensors: tuple[Sensor, ...]
    weeks: tuple[int, ...] = (26,)
    latitudes: tuple[float, ...] = (45.0, 45.0, 45.0, 45.0)
    zones: bool = False
    swapped: bool = False
    relief: float = 0.0
    texture: float = 0.0
    haze: tuple[float, ...] = ()
    gain_spread: float = 0.0
    offset_spread: float = 0.0
    noise: float = 0.0
    looks: float = 4.0
    clouds: float = 0.0
    cloud_height: float = 1200.0
    missing: float = 0.0
    shift: float = 0.0
    blur: float = 0.0
    changes: int = 0
    into: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted((set(self.shares) | set(self.into)) - set(COVERS))
        wrong = {
            f"no class '{', '.join(unknown)}'": bool(unknown),
            f"shares sum to {sum(self.shares.values()):g}, not 1": abs(sum(self.shares.values()) - 1) > 1e-6,
            "fewer than two classes, or one without a share": len(self.shares) < 2 or min(self.shares.values()) <= 0,
            f"weeks {self.weeks} do not increase": not self.weeks
            or list(self.weeks) != sorted(set(self.weeks))
            or self.weeks[0] < 1,
            f"{len(self.haze)} haze values for {len(self.latitudes)} regions": bool(self.haze)
            and len(self.haze) != len(self.latitudes),
            f"{self.looks} looks": not self.looks > 0,
            f"clouds {self.clouds} or missing {self.missing} outside 0..1": not (
                0 <= self.clouds <= 1 and 0 <= self.missing <= 1
            ),
            "no sensor, or two of one name": not self.sensors
            or len({s.name for s in self.sensors}) != len(self.sensors),
            "changes into no class of the world": self.changes > 0
            and (not self.into or not set(self.into) <= set(self.shares)),
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise ConfigError(what, where="recipe of a world", fix="correct it; see the Recipe's attributes")


RECIPES: Mapping[str, Recipe] = {
    "delta": Recipe(
        about="everything at once: four regions and dates, five products, clouds, gaps, slopes, changes",
        shares={
            "water": 0.15,
            "sand": 0.01,
            "rock": 0.02,
            "built-up": 0.04,
            "broadleaf forest": 0.15,
            "needleleaf forest": 0.10,
            "grassland": 0.15,
            "wheat": 0.13,
            "maize": 0.12,
            "soybean": 0.09,
            "bare soil": 0.04,
        },
        sensors=(OPTICAL10, OPTICAL20, OPTICAL60, RADAR, LIDAR),
        weeks=(16, 24, 32, 40),
        latitudes=(38.0, 44.0, 50.0, 56.0),
        relief=50.0,
        texture=0.06,
        haze=(0.0, 0.01, 0.02, 0.04),
        gain_spread=0.05,
        offset_spread=0.004,
        noise=0.004,
        clouds=0.2,
        missing=0.1,
        shift=3.0,
        blur=1.0,
        changes=24,
        into=("water", "built-up", "bare soil"),
    ),
    "plain": Recipe(
        about="a null: one product, four classes, equal noise, no nuisance, so no routing can help",
        shares={"needleleaf forest": 0.25, "grassland": 0.25, "bare soil": 0.25, "built-up": 0.25},
        sensors=(OPTICAL10,),
        noise=0.06,
    ),
    "regimes": Recipe(
        about="the right expert is known: each region makes its classes of other materials, and haze tells it apart",
        shares={"needleleaf forest": 0.25, "grassland": 0.25, "bare soil": 0.25, "built-up": 0.25},
        sensors=(OPTICAL10, OPTICAL20),
        swapped=True,
        haze=(0.0, 0.12, 0.24, 0.36),
        noise=0.02,
    ),
    "seasons": Recipe(
        about="five latitudes, four dates: the same crop is green here and stubble there",
        shares={"broadleaf forest": 0.2, "grassland": 0.2, "wheat": 0.2, "maize": 0.2, "soybean": 0.2},
        sensors=(OPTICAL10, OPTICAL20),
        weeks=(12, 20, 28, 42),
        latitudes=(56.0, 48.0, 40.0, 10.0, -35.0),
        zones=True,
        texture=0.05,
        noise=0.01,
    ),
    "missing": Recipe(
        about="three platforms, each absent in a third of the chips; clouds hide the optical one from the rest",
        shares={
            "water": 0.2,
            "built-up": 0.1,
            "broadleaf forest": 0.2,
            "grassland": 0.2,
            "maize": 0.2,
            "bare soil": 0.1,
        },
        sensors=(OPTICAL10, RADAR, LIDAR),
        weeks=(22, 30),
        texture=0.05,
        noise=0.01,
        clouds=0.35,
        missing=1 / 3,
    ),
}


def recipe_of(name: str) -> Recipe:
    """The recipe of a named world; ConfigError if there is none."""
    if name not in RECIPES:
        raise ConfigError(f"there is no world '{name}'", where="world", fix=f"use one of {', '.join(RECIPES)}")
    return RECIPES[name]
