"""Prediction of a raster of any size, tile by tile, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from terramoe.data import Raster, raster_of
from terramoe.errors import ConfigError, DataError
from terramoe.inference.predictor import Predictor
from terramoe.inference.window_reader import WindowReader
from terramoe.inference.windows import Box, blend_weights, tiles, touching
from terramoe.moe import RoutingMeter
from terramoe.systems import Output

ROUTING_BANDS = ("top expert", "weight", "entropy", "margin", "dropped")
NO_VALUE = -1.0  # where a pixel has no routing or no prediction


@dataclass(frozen=True)
class PredictedTile:
    """Predictions of one tile of a raster, h x w pixels.

    Attributes:
        box: where it lies.
        valid: (h, w) bool: pixels with data.
        probability: (K, h, w) float32, summing to 1; 0 in invalid pixels.
        routing: per routed layer (5, h, w) float32, see ``ROUTING_BANDS``; -1 in invalid pixels. Expert ids are
            those of the window whose centre is nearest: ids are never blended.
    """

    box: Box
    valid: np.ndarray
    probability: np.ndarray
    routing: dict[str, np.ndarray]


def predict_tiles(
    predictor: Predictor,
    raster: Raster,
    *,
    tile: int = 256,
    hide: np.ndarray | None = None,
    meter: RoutingMeter | None = None,
    missing: Sequence[str] = (),
) -> Iterator[PredictedTile]:
    """Predict a raster tile by tile.

    Windows lie on one grid for the whole raster and are run one at a time, so that the result is the same to the
    last bit whatever the tile size; windows that touch several tiles are computed for each.

    Args:
        tile: side of a tile, in pixels; memory grows with it and not with the raster.
        hide: (H, W) bool: pixels that the network must not see, such as those it was trained on.
        meter: counts the routings of all windows (with a tile as large as the raster, each window once).
        missing: sensors that are taken away everywhere.

    Raises:
        DataError: the raster's number of bands is not the model's. ConfigError: no such sensor, or none is left.
    """
    if raster.bands != predictor.bands:
        raise DataError(
            f"the raster has {raster.bands} bands, the model was trained on {predictor.bands}",
            where=raster.path,
            fix="use the same bands in the same order as in training",
        )
    if tile < 1:
        raise ConfigError(f"tile is {tile}", where="predict", fix="use at least 1 pixel")
    reader = WindowReader(predictor, raster, hide, tuple(missing))
    stride = predictor.window - predictor.overlap
    for box in tiles(raster.height, raster.width, tile):
        windows = touching(box, raster.height, raster.width, predictor.window, stride)
        yield _predict_tile(predictor, reader, box, windows, meter)


def _predict_tile(
    predictor: Predictor, reader: WindowReader, box: Box, windows: list[Box], meter: RoutingMeter | None
) -> PredictedTile:
    size, reach = predictor.window, predictor.reach
    area = Box(
        windows[0].row,
        windows[0].column,
        windows[-1].row + size - windows[0].row,
        windows[-1].column + size - windows[0].column,
    )
    view = reader.read(area.grown(reach))
    weights = blend_weights(size, predictor.overlap)

    shape = (box.height, box.width)
    probability = np.zeros((len(predictor.class_values), *shape))
    total, best = np.zeros(shape), np.zeros(shape)
    routing: dict[str, np.ndarray] = {}
    for window in windows:
        batch = view.batch(window, reach)
        with torch.inference_mode():
            output = predictor.system(batch)
            scores = torch.softmax(output.prediction[0].double(), dim=0).numpy()
        if meter is not None:
            meter.update(output.routings)
        here, there = window.within(box), box.within(window)
        inside = tuple(slice(part.start + reach, part.stop + reach) for part in there)
        weight = weights[there]
        probability[:, *here] += weight * scores[:, *inside]
        total[here] += weight
        nearer = weight > best[here]
        best[here] = np.maximum(best[here], weight)
        for name, maps in routing_maps(output).items():
            layer = routing.setdefault(name, np.full((len(ROUTING_BANDS), *shape), NO_VALUE, dtype=np.float32))
            layer[:, *here] = np.where(nearer, maps[0][:, *inside], layer[:, *here])

    valid = view.has_data[box.within(view.box)]
    probability = np.where(valid, probability / total, 0).astype(np.float32)
    routing = {name: np.where(valid, maps, np.float32(NO_VALUE)) for name, maps in routing.items()}
    return PredictedTile(box, valid, probability, routing)


def routing_maps(output: Output) -> dict[str, np.ndarray]:
    """Per layer with a layout: (B, 5, H, W) float32, the bands of ``ROUTING_BANDS`` on the pixel grid."""
    maps = {}
    for name, layout in output.layouts.items():
        routing = output.routings[name].detach()
        columns = (
            routing.top_expert(),
            routing.top_weight(),
            routing.item_entropy(),
            routing.margin(),
            routing.dropped_items(),
        )
        values = torch.stack([column.float() for column in columns], dim=1)
        values[~routing.valid()] = NO_VALUE
        maps[name] = layout.to_pixels(values).permute(0, 3, 1, 2).numpy()
    return maps


def predict_array(
    predictor: Predictor,
    image: np.ndarray,
    valid: np.ndarray,
    *,
    available: np.ndarray | None = None,
    hide: np.ndarray | None = None,
    meter: RoutingMeter | None = None,
    missing: Sequence[str] = (),
) -> PredictedTile:
    """Predict an image (bands, H, W) in memory as one tile.

    Args:
        valid: (H, W) bool. available: (sensors, H, W) bool, None where every pixel has them all.
        hide, meter, missing: see ``predict_tiles``.
    """
    raster = raster_of("array", image, valid, available)
    size = max(raster.height, raster.width)
    return next(predict_tiles(predictor, raster, tile=size, hide=hide, meter=meter, missing=missing))


def uncertainty_bands(probability: np.ndarray) -> np.ndarray:
    """(3, h, w) from (K, h, w): entropy over log K, one minus the top probability, top minus second probability."""
    classes = len(probability)
    p = np.clip(probability, 1e-12, 1)
    entropy = -(p * np.log(p)).sum(axis=0) / np.log(max(classes, 2))
    ordered = np.sort(probability, axis=0)
    second = ordered[-2] if classes > 1 else np.zeros_like(ordered[-1])
    return np.stack([entropy, 1 - ordered[-1], ordered[-1] - second]).astype(np.float32)
