"""Scene-classification tiles of textures and shapes under several sensors, none of whose labels cover all classes.

For claims of Collaboration Between Multiple Experts for Knowledge Adaptation on Multiple Remote Sensing Sources, 2022,
doi:10.1109/TGRS.2022.3190476; classes, sensors and numbers are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.data.scenes import Scene
from terramoe.data.worlds.fields import smooth_field, stream
from terramoe.data.worlds.sensors import point_spread
from terramoe.errors import ConfigError

CLASSES = ("fine grain", "coarse grain", "stripes", "squares", "disc", "ring", "cross", "block")
KNOWN = 5  # classes that a source has
BANDS = ("blue", "green", "red")
SMALLEST = 11  # pixels: below, shapes are not to be told apart


@dataclass(frozen=True)
class Camera:
    """A sensor of the tiles.

    Attributes:
        name: of the domain.
        blur: full width at half maximum of the point spread, in pixels.
        gain: of each band. noise: standard deviation; the ground has contrasts from 0.2 to 0.4.
        spacing: ground distance between pixels, relative: objects look smaller the larger it is.
    """

    name: str
    blur: float
    gain: tuple[float, float, float]
    noise: float
    spacing: float


CAMERAS = (
    Camera("source 1", 0.8, (1.0, 1.0, 1.0), 0.02, 1.0),
    Camera("source 2", 1.6, (0.7, 1.0, 1.3), 0.04, 0.85),
    Camera("source 3", 1.0, (1.3, 0.9, 0.7), 0.06, 1.2),
    Camera("target", 1.3, (0.8, 1.2, 0.9), 0.05, 1.1),
)


def coverage() -> np.ndarray:
    """(4, 8) bool: which classes each domain has. A source has 5 of 8, every class is in one or two sources, the last
    row, the target, has all.
    """
    table = np.ones((len(CAMERAS), len(CLASSES)), dtype=bool)
    for source in range(len(CAMERAS) - 1):
        table[source] = (np.arange(len(CLASSES)) - 3 * source) % len(CLASSES) < KNOWN
    return table


def scene_tiles(tile: int = 17, count: int = 24, seed: int = 0) -> Scene:
    """Tiles laid out on one raster, one row of tiles for each class that a domain has.

    Only the centre pixel of a tile, (tile // 2, tile // 2), is labelled. A model's patch may be as large as the tile,
    not larger, lest it see the next. Brightness and colour of ground and object are drawn for each tile, and either
    may be the brighter: only their form tells the class.

    Args:
        tile: side in pixels. count: tiles of each class in a domain, an even number. seed: of everything.

    Returns:
        image (3, 23 tile, count tile); ``domains`` 1..4 (the last is the target); ``official``: the sources' tiles
        train; of each row of the target the first half is guard (it may be adapted to, without its labels), the
        second half tests.

    Raises:
        ConfigError: tile below 11, count odd or below 2.
    """
    if tile < SMALLEST or count < 2 or count % 2:
        raise ConfigError(
            f"tile is {tile}, count {count}",
            where="scene_tiles",
            fix=f"use a tile of {SMALLEST} pixels or more and an even count",
        )
    rows = np.argwhere(coverage())  # (23, 2): domain and class
    image = np.concatenate(
        [
            np.concatenate([render(tile, kind, domain, number, seed) for number in range(count)], axis=2)
            for domain, kind in rows
        ],
        axis=1,
    )
    domain, kind = (np.broadcast_to(column[:, None], (len(rows), count)) for column in rows.T)
    labels = np.zeros(image.shape[1:], dtype=np.int64)
    labels[tile // 2 :: tile, tile // 2 :: tile] = kind + 1
    held_out = np.where(np.arange(count) < count // 2, 2, 3)
    official = np.where(domain < len(CAMERAS) - 1, 1, held_out)
    return Scene(
        name=f"tiles, seed {seed}",
        image=image.astype(np.float32),
        valid=np.ones(labels.shape, dtype=bool),
        labels=labels,
        class_values=tuple(range(1, len(CLASSES) + 1)),
        class_names=CLASSES,
        band_names=BANDS,
        wavelengths=(490.0, 560.0, 665.0),
        domains=(domain + 1).repeat(tile, 0).repeat(tile, 1),
        domain_names=tuple(camera.name for camera in CAMERAS),
        official=official.repeat(tile, 0).repeat(tile, 1),
    )


def render(tile: int, kind: int, domain: int, number: int, seed: int) -> np.ndarray:
    """(3, tile, tile): one tile as a camera sees it. kind: from 0, of CLASSES; domain: from 0, of CAMERAS."""
    camera, draw = CAMERAS[domain], stream(seed, "tile", domain, kind, number)
    form = _form(CLASSES[kind], tile, camera.spacing, draw)  # 0..1
    ground = draw.uniform(0.3, 0.5, len(BANDS))
    contrast = draw.choice((-1, 1)) * draw.uniform(0.2, 0.4) * draw.uniform(0.8, 1.2, len(BANDS)) / 2
    image = ground[:, None, None] + contrast[:, None, None] * (2 * form - 1)
    image = point_spread(image, camera.blur) * np.array(camera.gain)[:, None, None]
    return image + camera.noise * draw.standard_normal(image.shape)


def _form(kind: str, tile: int, spacing: float, draw: np.random.Generator) -> np.ndarray:
    """(tile, tile) 0..1: what is drawn, turned and shifted at random; sizes are shares of a tile at spacing 1."""
    if kind == "fine grain":
        return smooth_field(tile, 0.6 / spacing, draw) > 0
    if kind == "coarse grain":
        return smooth_field(tile, 2.0 / spacing, draw) > 0
    place = (np.indices((tile, tile)) - (tile - 1) / 2) * spacing / tile
    turn = draw.uniform(0, np.pi)
    down = place[0] * np.cos(turn) + place[1] * np.sin(turn) - draw.uniform(-0.1, 0.1)
    right = place[1] * np.cos(turn) - place[0] * np.sin(turn) - draw.uniform(-0.1, 0.1)
    far, size, phase = np.hypot(down, right), draw.uniform(0.85, 1.15), draw.uniform(0, 1)
    period = 0.3 * size
    if kind == "stripes":
        return (down / period + phase) % 1 < 0.5
    if kind == "squares":
        return ((down / period + phase) % 1 < 0.5) ^ ((right / period + phase) % 1 < 0.5)
    if kind == "disc":
        return far < 0.3 * size
    if kind == "ring":
        return (far > 0.2 * size) & (far < 0.35 * size)
    if kind == "cross":
        return np.minimum(np.abs(down), np.abs(right)) < 0.08 * size
    return np.maximum(np.abs(down), np.abs(right) / 0.4) < 0.38 * size
