"""Reads what a network sees of a raster: normalised pixels, what is hidden, and which sensors are there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from terramoe.data import Raster
from terramoe.errors import ConfigError
from terramoe.inference.predictor import Predictor
from terramoe.inference.windows import Box


@dataclass(frozen=True)
class View:
    """A part of a raster as the network gets it; nodata beyond the raster's edge.

    Attributes:
        box: where it lies, maybe partly outside.
        image: (bands, h, w) float32, normalised, 0 where there is no data. visible, has_data: (h, w) bool.
        available: (sensors, h, w) bool, or None where sensors are not told apart.
        patches: whether predictions are asked for pixel by pixel.
    """

    box: Box
    image: np.ndarray
    visible: np.ndarray
    has_data: np.ndarray
    available: np.ndarray | None
    patches: bool

    def batch(self, window: Box, reach: int) -> dict[str, Tensor]:
        """A window and ``reach`` pixels around it as a batch of one, for predictions of the window itself."""
        inside = window.grown(reach).within(self.box)
        batch = {
            "image": torch.from_numpy(self.image[:, *inside])[None],
            "valid": torch.from_numpy(self.visible[inside])[None],
        }
        if self.available is not None:
            batch["available"] = torch.from_numpy(self.available[:, *inside])[None]
        if self.patches:
            wanted = torch.zeros_like(batch["valid"])
            wanted[:, *window.within(window.grown(reach))] = True
            batch["wanted"] = wanted
        return batch


class WindowReader:
    """Reads views of one raster for one predictor.

    Args:
        hide: (H, W) bool: pixels that the network must not see.
        missing: names of sensors that are taken away.

    Raises:
        ConfigError: a sensor that the predictor does not know, or none would be left.
    """

    def __init__(
        self, predictor: Predictor, raster: Raster, hide: np.ndarray | None = None, missing: tuple[str, ...] = ()
    ) -> None:
        known = [name for name, _ in predictor.sensors]
        if not set(missing) <= set(known):
            strange = sorted(set(missing) - set(known))
            raise ConfigError(
                f"no sensor {', '.join(strange)}", where="predict", fix=f"sensors: {known or 'not named'}"
            )
        if missing and set(missing) == set(known):
            raise ConfigError("every sensor is taken away", where="predict", fix="leave at least one")
        self.predictor, self.raster, self.hide = predictor, raster, hide
        self.taken = np.array([name in missing for name in known], dtype=bool)
        self.bands_of = [bands for _, bands in predictor.sensors]

    def read(self, box: Box) -> View:
        """One view. DataError if the raster cannot be read there."""
        raster = self.raster
        whole = Box(0, 0, raster.height, raster.width)
        rows, columns = box.within(whole)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        inner = whole.within(box)
        values, valid = raster.read(rows.start, columns.start, height, width)
        image = np.zeros((raster.bands, box.height, box.width), dtype=np.float32)
        has_data = np.zeros((box.height, box.width), dtype=bool)
        image[:, *inner] = np.where(valid, self.predictor.normaliser(values), 0)
        has_data[inner] = valid
        available = None
        if self.predictor.system.multi_sensor:
            available = np.zeros((len(self.taken), box.height, box.width), dtype=bool)
            available[:, *inner] = raster.read_available(rows.start, columns.start, height, width, len(self.taken))
            available[self.taken] = False
            image *= np.repeat(available, self.bands_of, axis=0)
            has_data &= available.any(axis=0)
        visible = has_data.copy()
        if self.hide is not None:
            visible[inner] &= ~self.hide[rows, columns]
        return View(box, image, visible, has_data, available, self.predictor.system.patch is not None)
