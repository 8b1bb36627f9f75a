"""Simulated worlds: only where the truth was planted is the right expert known.

One file a law: ``terrain``, ``land_cover``, ``spectra``, ``phenology``, ``radiometry`` (sun, slopes, regions),
``clouds``, ``speckle``, ``lidar``, ``sensors`` (sampling, blur, mis-registration, gaps), ``change``; ``fields`` draws
the random maps. ``recipes`` names the worlds, ``ground`` and ``acquire`` apply the laws, ``make`` puts a ``World``
together. Beside the worlds: ``satellites`` look at real spectra through their ``responses``, ``cross_sensor`` lays
their scenes side by side, ``fusion`` and ``tiles`` make the scenes that claims of several sensors need.

    world = make_world("delta", size=256, seed=0)
    scene = world.scene(["optical10", "radar"])      # a Scene as of any file
    world.regime("region"), world.regime("sky", 2)   # what an ideal router would find
"""

from terramoe.data.worlds.cross_sensor import cross_sensor
from terramoe.data.worlds.fusion import three_regimes, xor_fusion
from terramoe.data.worlds.make import make_world
from terramoe.data.worlds.recipes import RECIPES, Recipe, recipe_of
from terramoe.data.worlds.responses import integrate
from terramoe.data.worlds.satellites import SATELLITES, Satellite, acquire_satellite
from terramoe.data.worlds.sensors import LIDAR, OPTICAL10, OPTICAL20, OPTICAL60, RADAR, Band, Sensor
from terramoe.data.worlds.spectra import SpectralTable, spectra_from_table, stand_ins
from terramoe.data.worlds.tiles import coverage, scene_tiles
from terramoe.data.worlds.world import Acquisition, World

__all__ = [
    "LIDAR",
    "OPTICAL10",
    "OPTICAL20",
    "OPTICAL60",
    "RADAR",
    "RECIPES",
    "SATELLITES",
    "Acquisition",
    "Band",
    "Recipe",
    "Satellite",
    "Sensor",
    "SpectralTable",
    "World",
    "acquire_satellite",
    "coverage",
    "cross_sensor",
    "integrate",
    "make_world",
    "recipe_of",
    "scene_tiles",
    "spectra_from_table",
    "stand_ins",
    "three_regimes",
    "xor_fusion",
]
