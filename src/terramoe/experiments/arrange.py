"""A scene with its sensors in the order of a model, whatever the order and number of the files it came from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from terramoe.data import Scene
from terramoe.errors import DataError
from terramoe.inference import Predictor


def arrange(scene: Scene, predictor: Predictor) -> Scene:
    """The scene as the model wants it; a sensor of the model that the scene lacks is missing everywhere.

    A scene that does not tell its sensors apart is taken to have the model's, in the model's order. A model that makes
    no use of sensors takes any scene; only if all names are the same are its bands put in order.

    Raises:
        DataError: a sensor that the model does not know, or another number of bands.
    """
    wanted, own = predictor.sensors, dict(scene.sensors)
    if scene.sensors == wanted or not wanted:
        return scene
    if not own:
        return replace(scene, sensors=wanted) if scene.bands == predictor.bands else scene
    if not predictor.system.multi_sensor and sorted(scene.sensors) != sorted(wanted):
        return scene
    strange = [name for name, bands in scene.sensors if bands != dict(wanted).get(name)]
    if strange:
        raise DataError(
            f"the scene's sensor '{strange[0]}' of {own[strange[0]]} bands is none of the model's",
            where=scene.name,
            fix=f"use {', '.join(f'{name} ({bands} bands)' for name, bands in wanted)}",
        )
    first = dict(zip(own, (np.cumsum([0, *own.values()])).tolist(), strict=False))
    # The number of each wanted band in the scene; of those that it lacks, of an empty band behind the last.
    order = [first[name] + i if name in own else scene.bands for name, bands in wanted for i in range(bands)]
    nothing = np.zeros((1, *scene.valid.shape), dtype=bool)
    return replace(
        scene,
        image=np.concatenate([scene.image, nothing.astype(scene.image.dtype)])[order],
        sensors=wanted,
        available=_available(scene, [name for name, _ in wanted], nothing),
        band_names=tuple((*scene.band_names, "")[i] for i in order) if scene.band_names else (),
        wavelengths=tuple((*scene.wavelengths, 0.0)[i] for i in order) if scene.wavelengths else (),
    )


def _available(scene: Scene, wanted: list[str], nothing: np.ndarray) -> np.ndarray | None:
    """(wanted, H, W) bool; None if every valid pixel has all of them."""
    own = [name for name, _ in scene.sensors]
    if scene.available is None and len(own) == len(wanted):
        return None
    has = np.broadcast_to(scene.valid, (len(own), *scene.valid.shape))
    has = has if scene.available is None else has & scene.available
    return np.concatenate([has, nothing])[[own.index(name) if name in own else len(own) for name in wanted]]
