"""How a trained model bears images that differ from those it was trained on: one table over kinds and severities."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from terramoe.data import Scene, Split
from terramoe.errors import ConfigError
from terramoe.evaluation import Interval, block_confusions, interval, overall_accuracy, reliability
from terramoe.experiments.arrange import arrange
from terramoe.experiments.perturb import bands_of_sensors, perturb
from terramoe.experiments.shift_settings import ShiftSettings
from terramoe.inference import PredictedTile, Predictor, predict_array
from terramoe.moe import RoutingMeter

NONE = "none"


@dataclass(frozen=True)
class ShiftRow:
    """One kind of change at one severity, on the test pixels that still have data.

    Attributes:
        kind, severity: "none" and 0 for the scene as it is.
        pixels: that are scored.
        overall: accuracy, with 95 % interval over blocks.
        drop: points of accuracy lost against the unchanged scene on the same pixels, paired over blocks.
        ece: calibration error.
        load_change: total variation (0..1) between the experts' shares of the load now and before, by layer.
        moved: share of the scored pixels whose top expert is another, by layer.
    """

    kind: str
    severity: float
    pixels: int
    overall: Interval
    drop: Interval
    ece: float
    load_change: Mapping[str, float]
    moved: Mapping[str, float]

    def plain(self) -> dict[str, Any]:
        """One line of the CSV: intervals as three columns, routing as means over layers."""
        values: dict[str, Any] = {"kind": self.kind, "severity": self.severity, "pixels": self.pixels}
        for name in ("overall", "drop"):
            found = asdict(getattr(self, name))
            values |= {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
        means = {name: _mean(getattr(self, name)) for name in ("load_change", "moved")}
        return {**values, "ece": self.ece, **means}


def shift_report(
    predictor: Predictor,
    scene: Scene,
    split: Split,
    settings: ShiftSettings | None = None,
    on_row: Callable[[ShiftRow], None] | None = None,
) -> list[ShiftRow]:
    """Predict the scene unchanged and under every change; the first row is the unchanged scene.

    Test pixels that lose their data, under a cloud or at an edge, cannot be scored; the drop is taken over the others.
    A model of several sensors is told which of them a pixel has lost, and every change of bands is tried on each sensor
    by itself.

    Args:
        split: its ``test`` pixels count, its ``train`` pixels are hidden from the network; see ``fair_pixels``.
        on_row: hears every row as it is found.

    Raises:
        ConfigError: see ``perturb``; or a change leaves no test pixel. DataError: other bands than the model's.
    """
    settings = settings or ShiftSettings()
    scene = arrange(scene, predictor)
    before = _predict(predictor, scene, split)
    rows = []
    for kind, severity in [(NONE, 0.0), *shift_trials(predictor, scene, split, settings)]:
        if kind == NONE:
            changed, now = scene, before
        else:
            changed = perturb(scene, kind, severity, settings.seed, settings.sensors)
            now = _predict(predictor, changed, split)
        scored = split.test & changed.valid
        if not scored.any():
            raise ConfigError(f"{kind} {severity:g} leaves no test pixel", where="shift", fix="use a smaller severity")
        rows.append(_row(kind, severity, scene, split.blocks, scored, before, now, settings.draws))
        if on_row is not None:
            on_row(rows[-1])
    return rows


def shift_trials(predictor: Predictor, scene: Scene, split: Split, settings: ShiftSettings) -> list[tuple[str, float]]:
    """(kind, severity) of all that is tried with this model on this scene; of its sensors, those that test pixels have.

    Raises:
        ConfigError: see ``ShiftSettings.trials``.
    """
    sensors = bands_of_sensors(scene.sensors)
    if scene.available is not None:
        has = (scene.available & split.test).any((1, 2))
        sensors = {name: bands for (name, bands), there in zip(sensors.items(), has, strict=True) if there}
    return settings.trials(sensors, apart=predictor.system.multi_sensor)


def shift_csv(rows: list[ShiftRow]) -> str:
    """A table with one line a row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0].plain()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.plain() for row in rows)
    return text.getvalue()


Seen = tuple[PredictedTile, dict[str, np.ndarray]]  # a prediction, and the load of every layer as shares


def _predict(predictor: Predictor, scene: Scene, split: Split) -> Seen:
    meter = RoutingMeter()
    tile = predict_array(predictor, scene.image, scene.valid, available=scene.available, hide=split.train, meter=meter)
    return tile, {name: np.array(found.load) for name, found in meter.compute().items()}


def _row(
    kind: str,
    severity: float,
    scene: Scene,
    blocks: np.ndarray,
    scored: np.ndarray,
    before: Seen,
    now: Seen,
    draws: int,
) -> ShiftRow:
    truth = scene.labels[scored]
    counts = [
        block_confusions(truth, tile.probability[:, scored].argmax(0) + 1, blocks[scored], scene.classes)
        for tile, _ in (before, now)
    ]
    (tile, load), (old_tile, old_load) = now, before
    return ShiftRow(
        kind=kind,
        severity=severity,
        pixels=len(truth),
        overall=interval(overall_accuracy, counts[1], draws=draws),
        drop=interval(_points_lost, np.stack(counts, axis=1), draws=draws),
        ece=reliability(tile.probability[:, scored].T, truth).ece,
        load_change={name: float(np.abs(share - old_load[name]).sum() / 2) for name, share in load.items()},
        moved={
            name: float((maps[0, scored] != old_tile.routing[name][0, scored]).mean())
            for name, maps in tile.routing.items()
        },
    )


def _points_lost(pair: np.ndarray) -> np.ndarray:
    """(..., 2, K, K) counts before and now -> points of overall accuracy."""
    return 100 * (overall_accuracy(pair[..., 0, :, :]) - overall_accuracy(pair[..., 1, :, :]))


def _mean(by_layer: Mapping[str, float]) -> float | None:
    """None for a network without routed layers."""
    return float(np.mean(list(by_layer.values()))) if by_layer else None
