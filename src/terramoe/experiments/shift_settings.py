"""Which changes of a scene a shift report tries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from terramoe.errors import ConfigError
from terramoe.experiments.perturb import KINDS, OF_ONE_SENSOR, Sensors


@dataclass(frozen=True)
class ShiftSettings:
    """What is tried.

    Attributes:
        kinds: of bands, sensor, cloud, gain, offset, noise, band-shift, label-shift. "sensor" takes each sensor away in
            turn, if any are named.
        severities: other severities than the usual, by kind.
        sensors: first and last band of each sensor, counted from 1; those of the scene unless given.
        seed: of everything that is drawn.
        draws: of the bootstrap over blocks.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    severities: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    sensors: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    seed: int = 0
    draws: int = 2000

    def __post_init__(self) -> None:
        unknown = sorted({*self.kinds, *self.severities} - set(KINDS))
        if unknown:
            raise ConfigError(f"there is no shift '{unknown[0]}'", where="shift", fix=f"use {', '.join(KINDS)}")
        if self.draws < 1:
            raise ConfigError(f"draws is {self.draws}", where="shift", fix="use at least 1")

    def trials(self, own: Sensors | None = None, *, apart: bool = False) -> list[tuple[str, float]]:
        """(kind, severity) of all that is tried, mildest first.

        Args:
            own: the bands of each sensor of the scene, where ``sensors`` gives none; one alone is not taken away.
            apart: the model tells them apart. Then what can be is tried on each sensor by itself, such as "gain:radar".

        Raises:
            ConfigError: only "sensor" is asked for, and none can be taken away; or some are named that the model names
                itself.
        """
        if apart and self.sensors:
            raise ConfigError("the model names its sensors itself", where="shift", fix="leave --sensors out")
        named = self.sensors or own or {}
        taken = named if self.sensors or len(named) > 1 else {}
        if self.kinds == ("sensor",) and not taken:
            raise ConfigError(
                "no sensor is named that others could do without",
                where="shift",
                fix="--sensors '{optical: [1, 10], radar: [11, 12]}', bands from 1, or a raster for each sensor",
            )
        single = [name for name, (first, last) in named.items() if first == last]  # no share of a band can be missing
        names = {kind: [kind] for kind in self.kinds} | {"sensor": [f"sensor:{name}" for name in taken]}
        if apart:
            names |= {kind: [f"{kind}:{name}" for name in named] for kind in OF_ONE_SENSOR if kind != "sensor"}
            names["bands"] = [f"bands:{name}" for name in named if name not in single]
        return [
            (name, severity)
            for kind in self.kinds
            for name in names[kind]
            for severity in sorted(self.severities.get(kind, KINDS[kind][1]))
        ]
