"""One piece of ground under several satellites: train on one, test on the others, and elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from terramoe.data.scenes import Scene
from terramoe.data.splits import BlockSplit, OfficialSplit
from terramoe.data.worlds.fields import stream
from terramoe.data.worlds.satellites import COMMON, Satellite, acquire_satellite, satellite_of
from terramoe.errors import ConfigError


def cross_sensor(
    scene: Scene,
    source: str | Satellite,
    targets: Sequence[str | Satellite],
    seed: int = 0,
    *,
    haze: float = 0.1,
    gain: float = 0.1,
    offset: float = 0.01,
    noise: float = 1.0,
    block: int = 12,
    guard: int = 4,
    gap: int = 16,
) -> Scene:
    """The same ground under several satellites, side by side: train on one, test on the others, elsewhere.

    The ground is cut into blocks, of which one third tests. ``official``: the source's training blocks train, the
    targets' held-out blocks test, all else is guard. So no test pixel lies within ``guard`` of a training pixel on the
    ground, whatever the sensor. If the scene has an official split of its own, the ground is cut by that. A rare class
    may lose all its training pixels: see ``require_all_classes``.

    Args:
        source, targets: see ``acquire_satellite``; all with the four bands COMMON, which are kept.
        haze: each satellite has its own, evenly drawn between 0 and this. gain, offset, noise: as there.
        block, guard: in pixels, see ``BlockSplit``.
        gap: width in pixels of the strips without data between the copies; at least the patch of the model.

    Returns:
        image (4, H, n W + (n - 1) gap); ``domains`` 1 for the source, 2.. for the targets, 0 in the strips;
        ``places`` the blocks of the ground: one place has a test pixel for each target.
        ``wavelengths`` are the source's.

    Raises:
        ConfigError: as above, no target, one twice. DataError: as above. SplitError: fewer blocks with labels than 3.
    """
    satellites = [satellite_of(satellite) for satellite in (source, *targets)]
    names = [satellite.name for satellite in satellites]
    if len(names) < 2 or len(set(names)) < len(names) or gap < 0:
        raise ConfigError(
            f"satellites {', '.join(names)}, gap {gap}",
            where="cross_sensor",
            fix="name each once, two in all",
        )
    ground = BlockSplit(3, block, guard, seed) if scene.official is None else OfficialSplit(scene.official)
    split = next(iter(ground.masks(scene.labels)))
    kinds = [np.where(split.train, 1, 2)] + [np.where(split.test, 3, 2)] * len(targets)
    copies = [
        acquire_satellite(
            scene,
            satellite,
            seed,
            haze=haze * stream(seed, "haze", satellite.name).random(),
            gain=gain,
            offset=offset,
            noise=noise,
            bands=COMMON,
        )
        for satellite in satellites
    ]
    return Scene(
        name=f"{scene.name}, {names[0]} to {', '.join(names[1:])}",
        image=_side_by_side([copy.image for copy in copies], gap, 0),
        valid=_side_by_side([scene.valid] * len(names), gap, False),
        labels=_side_by_side([scene.labels] * len(names), gap, 0),
        class_values=scene.class_values,
        class_names=scene.class_names,
        band_names=COMMON,
        wavelengths=copies[0].wavelengths,
        domains=_side_by_side([np.full(scene.labels.shape, i) for i in range(1, len(names) + 1)], gap, 0),
        domain_names=tuple(names),
        official=_side_by_side(kinds, gap, 2),
        places=_side_by_side([split.blocks] * len(names), gap, int(split.blocks.max()) + 1),
    )


def _side_by_side(rasters: Sequence[np.ndarray], gap: int, fill: float) -> np.ndarray:
    """(..., H, W) each -> (..., H, n W + (n - 1) gap)."""
    strip = np.full((*rasters[0].shape[:-1], gap), fill, dtype=rasters[0].dtype)
    parts = [rasters[0]]
    for raster in rasters[1:]:
        parts += [strip, raster]
    return np.concatenate(parts, axis=-1)
