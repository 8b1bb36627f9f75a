"""A trained system together with everything that its predictions depend on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from terramoe.data import Normaliser
from terramoe.errors import ModelFileError
from terramoe.storage import load_model, save_model
from terramoe.systems import System, build, plain_config


@dataclass(frozen=True)
class Predictor:
    """What turns a raster into maps.

    Attributes:
        name: of the system, in the registry. system: the network, in evaluation mode.
        normaliser: of the bands.
        class_values, class_names: of class 1, 2, ...
        window, overlap: side of a prediction window and how far neighbours overlap, in pixels.
        sensors: name and number of bands of each sensor, () where they are not told apart.
    """

    name: str
    system: System
    normaliser: Normaliser
    class_values: tuple[int, ...]
    class_names: tuple[str, ...]
    window: int
    overlap: int
    sensors: tuple[tuple[str, int], ...] = ()

    @property
    def reach(self) -> int:
        """Pixels around a window that are read with it: half a patch, for a system of patches."""
        return (self.system.patch or 1) // 2

    @property
    def bands(self) -> int:
        return len(self.normaliser.offset)

    def save(self, folder: str | Path) -> Path:
        """Write ``model.safetensors`` and its manifest; returns the path of the weights."""
        data = {
            "normaliser": {
                "offset": list(self.normaliser.offset),
                "scale": list(self.normaliser.scale),
                "kind": self.normaliser.kind,
            },
            "class_values": list(self.class_values),
            "class_names": list(self.class_names),
            "window": self.window,
            "overlap": self.overlap,
            "sensors": [list(sensor) for sensor in self.sensors],
        }
        weights = self.system.state_dict()
        return save_model(folder, system=self.name, config=plain_config(self.system), tensors=weights, data=data)


def load_predictor(path: str | Path) -> Predictor:
    """Read a model, given its run folder or file.

    Raises:
        ModelFileError: see ``storage.load_model``; or the weights do not fit the system.
        ConfigError: the system or its settings are unknown to this version.
    """
    stored = load_model(path)
    system = build(stored.system, stored.config)
    try:
        system.load_state_dict(stored.tensors)
        data, normaliser = stored.data, stored.data["normaliser"]
        return Predictor(
            name=stored.system,
            system=system.eval(),
            normaliser=Normaliser(tuple(normaliser["offset"]), tuple(normaliser["scale"]), normaliser["kind"]),
            class_values=tuple(data["class_values"]),
            class_names=tuple(data["class_names"]),
            window=data["window"],
            overlap=data["overlap"],
            sensors=tuple((name, bands) for name, bands in data.get("sensors", [])),
        )
    except (RuntimeError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"the model does not fit {stored.system} of this version",
            where=path,
            fix=f"use TerraMoE {stored.version}, which wrote it, or train anew",
        ) from error
